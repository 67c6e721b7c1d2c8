#!/usr/bin/env bash
#SBATCH --job-name=medhaul-submit
#SBATCH --output=medhaul-submit-%j.log
#SBATCH --open-mode=append
# Plan a run and submit it:  submit_array.sh CONFIG|RUN [options of `medhaul submit`]
#
# Works as `sbatch slurm/submit_array.sh CONFIG`, as `bash slurm/submit_array.sh CONFIG` on a login node, and on a
# machine without Slurm. Setting: MEDHAUL_ENV, a file that is sourced first to make the `medhaul` command available: it
# loads modules, activates a virtual environment, or puts a wrapper of a container on PATH (docs/slurm.md). Without it:
# the `medhaul` on PATH, else .venv/bin/medhaul of MEDHAUL_HOME or of the folder above this file's. Under `sbatch` this
# file is a copy, called slurm_script; Slurm is asked where it came from, or it is the folder `sbatch` was called from.
set -eo pipefail # not -u, which activation scripts seldom bear
words=("$@")
set -- # what is sourced must not take them for its own

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    [[ "$MEDHAUL_ENV" == /* ]] || MEDHAUL_ENV="$PWD/$MEDHAUL_ENV" # tasks start in another folder
    export MEDHAUL_ENV
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "submit_array.sh: MEDHAUL_ENV=$MEDHAUL_ENV: not there, or it failed" >&2; exit 78; }
fi

medhaul="$(type -P medhaul)" || medhaul=""
if [[ ! -x "$medhaul" ]]; then
    if [[ "${BASH_SOURCE[0]}" == */slurm_script && -n "${SLURM_JOB_ID:-}" ]]; then
        origin="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')" || origin=""
        [[ "$origin" == /* ]] || origin="${SLURM_SUBMIT_DIR:-}/$origin" # it is as `sbatch` was given it
        homes=("${origin%%/slurm/submit_array.sh*}" "${SLURM_SUBMIT_DIR:-}")
    else
        origin="$(realpath -- "${BASH_SOURCE[0]}")"
        homes=("${origin%/*/*}")
    fi
    for home in "${MEDHAUL_HOME:-}" "${homes[@]}"; do
        if [[ -n "$home" && -x "$home/.venv/bin/medhaul" ]]; then
            medhaul="$home/.venv/bin/medhaul"
            export MEDHAUL_HOME="$home"
            break
        fi
    done
fi
if [[ ! -x "$medhaul" ]]; then
    echo "submit_array.sh: no medhaul found; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi

exec "$medhaul" submit "${words[@]}"
