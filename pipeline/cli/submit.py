"""`medhaul submit`: plan if need be, submit what is missing, and say how to go on."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import make_echo, verbosity_options
from pipeline.cli.plan import route_option
from pipeline.cli.submitting import Wishes, submit_options, submit_target
from pipeline.settings import Route


@click.command()
@click.argument("target", metavar="CONFIG|RUN", type=click.Path(path_type=Path))
@submit_options
@route_option
@click.option("--dry-run", is_flag=True, help="Print exactly what would be planned and submitted; submit nothing.")
@click.option("--continue", "go_on", is_flag=True, help="Submit the rest of an attempt that the cluster took in part.")
@click.option("--wait", is_flag=True, help="Wait with progress; the exit code is the reduce job's.")
@verbosity_options
def submit(
    target: Path,
    scheduler: str,
    *,
    extra: tuple[str, ...],
    assume_dead: bool,
    route: Route | None,
    dry_run: bool,
    go_on: bool,
    wait: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Plan the run of a config file, or take a run directory, and submit its tasks and the reduce job.

    Only shards without a good receipt are submitted. Refused while an earlier attempt is at work. Planning again takes
    over what changed in [slurm], [task] and [limits] of the config.
    """
    wishes = Wishes(
        scheduler=scheduler, dry_run=dry_run, wait=wait, assume_dead=assume_dead, extra=extra, go_on=go_on, route=route
    )
    submit_target(target, make_echo(quiet=quiet, verbose=verbose), wishes)
