#!/usr/bin/env bash
# One array task: one shard. The scheduler runs a copy of this file; it is not started by hand.
#
# Given by the submission: MEDHAUL_RUN (run directory), MEDHAUL_ATTEMPT (number), MEDHAUL_OFFSET (of this array in the
# attempt's plan), MEDHAUL_HOME (folder above slurm/). Setting: MEDHAUL_ENV, a file that is sourced first to make the
# `medhaul` command available (module loads, activation of a virtual environment). Without it: the `medhaul` on PATH,
# else MEDHAUL_HOME/.venv/bin/medhaul.
set -euo pipefail

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    set +u # activation scripts seldom bear it
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "array_task.sh: MEDHAUL_ENV=$MEDHAUL_ENV: cannot be sourced" >&2; exit 78; }
    set -u
fi
medhaul="$(type -P medhaul || true)"
if [[ -z "$medhaul" ]]; then
    medhaul="${MEDHAUL_HOME:-}/.venv/bin/medhaul"
fi
if [[ ! -x "$medhaul" ]]; then
    echo "array_task.sh: no medhaul on PATH nor at $medhaul; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi

# `exec`, so that the scheduler's early signal, which goes to this process alone, reaches medhaul.
exec "$medhaul" task "$MEDHAUL_RUN" --attempt "$MEDHAUL_ATTEMPT" --index "$((SLURM_ARRAY_TASK_ID + MEDHAUL_OFFSET))"
