"""`medhaul run`: plan, submit and wait."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import make_echo, verbosity_options
from pipeline.cli.plan import route_option
from pipeline.cli.submitting import Wishes, submit_options, submit_target
from pipeline.settings import Route


@click.command()
@click.argument("config", metavar="CONFIG", type=click.Path(path_type=Path))
@submit_options
@route_option
@verbosity_options
def run(
    config: Path,
    scheduler: str,
    *,
    extra: tuple[str, ...],
    assume_dead: bool,
    route: Route | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Plan the run of a config file, submit it, and wait with progress until its archives are built.

    Ctrl-C stops the tasks and keeps what is finished. The exit code is the reduce job's: 0 all items done, 3 some
    failed, 75 interrupted.
    """
    wishes = Wishes(scheduler=scheduler, wait=True, assume_dead=assume_dead, extra=extra, route=route)
    submit_target(config, make_echo(quiet=quiet, verbose=verbose), wishes)
