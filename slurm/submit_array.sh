#!/usr/bin/env bash
#SBATCH --job-name=medhaul-submit
#SBATCH --output=medhaul-submit-%j.log
#SBATCH --open-mode=append
# Plan a run and submit it:  submit_array.sh CONFIG|RUN [options of `medhaul submit`]
#
# Works as `sbatch slurm/submit_array.sh CONFIG`, as `bash slurm/submit_array.sh CONFIG` on a login node, and on a
# machine without Slurm. Setting: MEDHAUL_ENV, a file that is sourced first to make the `medhaul` command available
# (module loads, activation of a virtual environment). Without it: the `medhaul` on PATH, else .venv/bin/medhaul of the
# checkout, which is looked for at MEDHAUL_HOME, beside this file, in the folder `sbatch` was called from, and at the
# place Slurm says the script came from: under `sbatch` this file is a copy in a spool folder.
set -euo pipefail

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    set +u # activation scripts seldom bear it
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "submit_array.sh: MEDHAUL_ENV=$MEDHAUL_ENV: cannot be sourced" >&2; exit 78; }
    set -u
fi

medhaul="$(type -P medhaul || true)"
if [[ -z "$medhaul" ]]; then
    homes=("${MEDHAUL_HOME:-}" "$(dirname -- "${BASH_SOURCE[0]}")/.." "${SLURM_SUBMIT_DIR:-}")
    if [[ -n "${SLURM_JOB_ID:-}" ]] && type -P scontrol >/dev/null; then
        origin="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')" || origin=""
        homes+=("${origin%%/slurm/submit_array.sh*}")
    fi
    for home in "${homes[@]}"; do
        if [[ -n "$home" && -x "$home/.venv/bin/medhaul" ]]; then
            medhaul="$home/.venv/bin/medhaul"
            export MEDHAUL_HOME="$home"
            break
        fi
    done
fi
if [[ -z "$medhaul" ]]; then
    echo "submit_array.sh: no medhaul found; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi

exec "$medhaul" submit "$@"
