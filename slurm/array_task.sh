#!/usr/bin/env bash
# One array task: one shard. The scheduler runs a copy of this file; `medhaul submit` starts it, people do not.
#
# Given by the submission: MEDHAUL_RUN (run directory), MEDHAUL_ATTEMPT (number), MEDHAUL_OFFSET (of this array in the
# attempt's plan), MEDHAUL_HOME (folder above slurm/). Setting: MEDHAUL_ENV, the absolute path of a file that is sourced
# first to make the `medhaul` command available: it loads modules, activates a virtual environment, or puts a wrapper
# of a container on PATH (docs/slurm.md). Without it: the `medhaul` on PATH, else MEDHAUL_HOME/.venv/bin/medhaul.
set -eo pipefail # not -u, which activation scripts seldom bear

if [[ -n "${MEDHAUL_ENV:-}" ]]; then
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || { echo "array_task.sh: MEDHAUL_ENV=$MEDHAUL_ENV: not there, or it failed" >&2; exit 78; }
fi
medhaul="$(type -P medhaul)" || medhaul="${MEDHAUL_HOME:-}/.venv/bin/medhaul"
if [[ ! -x "$medhaul" ]]; then
    echo "array_task.sh: no medhaul on PATH nor at $medhaul; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi
for name in MEDHAUL_RUN MEDHAUL_ATTEMPT MEDHAUL_OFFSET SLURM_ARRAY_TASK_ID; do
    [[ -n "${!name:-}" ]] || { echo "array_task.sh: $name is not set; start it with \`medhaul submit\`" >&2; exit 64; }
done

# `exec`, so that the scheduler's early signal, which goes to this process alone, reaches medhaul.
exec "$medhaul" task "$MEDHAUL_RUN" --attempt "$MEDHAUL_ATTEMPT" --index "$((SLURM_ARRAY_TASK_ID + MEDHAUL_OFFSET))"
