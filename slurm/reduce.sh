#!/usr/bin/env bash
# The reduce job: joins what the array tasks made. The scheduler runs a copy of this file after all tasks have ended,
# however they ended. `bash slurm/reduce.sh` with MEDHAUL_RUN set does the same by hand.
#
# Given by the submission: MEDHAUL_RUN (run directory), MEDHAUL_HOME (folder above slurm/). Setting: MEDHAUL_ENV, a file
# that is sourced first to make the `medhaul` command available. Without it: the `medhaul` on PATH, else
# MEDHAUL_HOME/.venv/bin/medhaul.
set -euo pipefail

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    set +u # activation scripts seldom bear it
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "reduce.sh: MEDHAUL_ENV=$MEDHAUL_ENV: cannot be sourced" >&2; exit 78; }
    set -u
fi
medhaul="$(type -P medhaul || true)"
if [[ -z "$medhaul" ]]; then
    medhaul="${MEDHAUL_HOME:-}/.venv/bin/medhaul"
fi
if [[ ! -x "$medhaul" ]]; then
    echo "reduce.sh: no medhaul on PATH nor at $medhaul; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi

exec "$medhaul" reduce "$MEDHAUL_RUN"
