"""The entry of all commands: `commands.py NAME ARGUMENTS...`. Standard library only."""

# ruff: noqa: PTH100, PTH120

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    """Note the call and run the command."""
    from tests.slurm_shims import store

    name, argv = sys.argv[1], sys.argv[2:]
    store.log_call(store.root(), [name, *argv])
    if name == "sbatch":
        from tests.slurm_shims.sbatch import main as run
    elif name in {"squeue", "sacct"}:
        from tests.slurm_shims import queries

        run = getattr(queries, name)
    else:
        from tests.slurm_shims import control

        run = getattr(control, name)
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
