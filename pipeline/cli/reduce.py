"""`medhaul reduce`: join the parts of a run into its archives."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import InterruptedRunError

if TYPE_CHECKING:
    from pipeline.rundir import RunDir


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--allow-partial", is_flag=True, help="Join what there is; failed items are listed in the index.")
def reduce(run: Path, allow_partial: bool) -> None:
    """Join the parts of a run into .tar.xz archives, each with its index and tables.

    Copies compressed bytes; compresses nothing. Safe to run again at any point: complete archives are left alone, parts
    are removed only when their archive is complete and has been read back.
    """
    from pipeline.process import signal_handlers
    from pipeline.reduce.finished import archive_file
    from pipeline.reduce.run import reduce_run
    from pipeline.reduce.settle import wait_for_receipts
    from pipeline.rundir import RunDir
    from pipeline.units import render_size

    shown = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= 10 or done == total:
            shown = time.monotonic()
            click.echo(f"{name}: joined {render_size(done)} of {render_size(total)}", err=True)

    run_dir = RunDir.open(run)
    settle = run_dir.read_config().slurm.settle if is_slurm_job(run_dir, os.environ) else 0.0
    try:
        with signal_handlers({signal.SIGTERM: _stop, signal.SIGINT: _stop, signal.SIGUSR1: _go_on}):
            wait_for_receipts(run_dir, settle)
            outcomes = reduce_run(run_dir, allow_partial=allow_partial, on_progress=progress)
    except _Stopped as stopped:
        raise InterruptedRunError(
            f"reduce was stopped by {stopped}", hint="run it again: `medhaul reduce RUN`"
        ) from None
    for outcome in outcomes:
        if outcome.line is not None:
            line = outcome.line
            click.echo(
                f"{archive_file(run_dir, outcome.archive.name)}  {line.items - line.failed} items  {line.files} files  "
                f"{render_size(line.size)}  SHA-256 {line.sha256}"
            )


def is_slurm_job(run_dir: RunDir, environ: Mapping[str, str]) -> bool:
    """Whether this is the reduce job of an attempt that went to Slurm, on whatever node that put it."""
    number = environ.get("MEDHAUL_ATTEMPT", "")
    if not (number.isdecimal() and environ.get("SLURM_JOB_ID")):
        return False
    return int(number) in run_dir.attempts() and run_dir.read_plan(int(number)).scheduler == "slurm"


def _go_on(number: int, _: object) -> None:
    """The early warning of a time limit: a join that is nearly done may still end, one that is cut is begun anew."""
    said = f"{signal.Signals(number).name}: the time limit is near; going on as long as there is time\n"
    os.write(sys.stderr.fileno(), said.encode())  # at once: a buffered stream may be in the middle of a line


class _Stopped(BaseException):
    """Told to stop. No `Exception`: a handler runs between any two steps, also where logging lets no error out."""


def _stop(number: int, _: object) -> None:
    raise _Stopped(signal.Signals(number).name)
