"""`medhaul resume`: a new attempt with what is missing."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import assume_dead_option, make_echo, run_argument, scheduler_option, verbosity_options
from pipeline.cli.submit import submit_target
from pipeline.rundir import RunDir


@click.command()
@run_argument
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Say what would be submitted; submit nothing.")
@click.option("--wait", is_flag=True, help="Wait with progress; the exit code is the reduce job's.")
@assume_dead_option
@verbosity_options
def resume(
    run: Path, scheduler: str, *, dry_run: bool, wait: bool, assume_dead: bool, quiet: bool, verbose: bool
) -> None:
    """Submit the shards that have no good receipt, then the reduce job; only that when all have one.

    A receipt is good when it is complete and its part is there in full. Refused while an earlier attempt is at work.
    """
    submit_target(
        RunDir.open(run).path,
        make_echo(quiet=quiet, verbose=verbose),
        scheduler=scheduler,
        dry_run=dry_run,
        wait=wait,
        assume_dead=assume_dead,
    )
