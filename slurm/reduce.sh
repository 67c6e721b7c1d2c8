#!/usr/bin/env bash
# The reduce job: joins what the array tasks made. The scheduler runs a copy of this file after all tasks have ended,
# however they ended. By hand: bash slurm/reduce.sh RUN [options of `medhaul reduce`]
#
# Given by the submission: MEDHAUL_RUN (run directory), MEDHAUL_HOME (folder above slurm/). Setting: MEDHAUL_ENV, the
# absolute path of a file that is sourced first to make the `medhaul` command available: it loads modules, activates a
# virtual environment, or puts a wrapper of a container on PATH (docs/slurm.md). Without it: the `medhaul` on PATH, else
# MEDHAUL_HOME/.venv/bin/medhaul.
set -eo pipefail # not -u, which activation scripts seldom bear
words=("$@")
set -- # what is sourced must not take them for its own

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "reduce.sh: MEDHAUL_ENV=$MEDHAUL_ENV: not there, or it failed" >&2; exit 78; }
fi
medhaul="$(type -P medhaul)" || medhaul="${MEDHAUL_HOME:-}/.venv/bin/medhaul"
if [[ ! -x "$medhaul" ]]; then
    echo "reduce.sh: no medhaul on PATH nor at $medhaul; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi

exec "$medhaul" reduce ${MEDHAUL_RUN:+"$MEDHAUL_RUN"} "${words[@]}"
