"""`medhaul resume`: a new attempt with what is missing."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import make_echo, run_argument, verbosity_options
from pipeline.cli.submitting import Wishes, parse_states, submit_options, submit_target
from pipeline.rundir import RunDir


@click.command()
@run_argument
@submit_options
@click.option(
    "--states",
    metavar="CAUSE,...",
    callback=parse_states,
    help="Only shards that `status` shows with such a cause: partial, timeout, memory, node, failed, cancelled, ...",
)
@click.option("--dry-run", is_flag=True, help="Print exactly what would be submitted; submit nothing.")
@click.option("--wait", is_flag=True, help="Wait with progress; the exit code is the reduce job's.")
@verbosity_options
def resume(
    run: Path,
    scheduler: str,
    *,
    extra: tuple[str, ...],
    assume_dead: bool,
    states: tuple[str, ...],
    dry_run: bool,
    wait: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Submit the shards that have no good receipt, then the reduce job; only that when all have one.

    A receipt is good when it is complete and its part is there in full. Refused while an earlier attempt is at work.
    """
    wishes = Wishes(
        scheduler=scheduler, dry_run=dry_run, wait=wait, assume_dead=assume_dead, extra=extra, states=states
    )
    submit_target(RunDir.open(run).path, make_echo(quiet=quiet, verbose=verbose), wishes)
