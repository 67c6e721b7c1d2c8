"""`medhaul throttle`: how many tasks of a run may work at a time, from now on."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import make_echo, open_collector, run_argument, verbosity_options


@click.command()
@run_argument
@click.argument("tasks", type=click.IntRange(min=1))
@verbosity_options
def throttle(run: Path, tasks: int, *, quiet: bool, verbose: bool) -> None:
    """Let at most TASKS tasks of a run that is at work run at a time.

    Tasks that run are not ended, and keep their connections. Those that start from now on share what is left of the
    run's (limits.connections). The next attempt goes by the config again.
    """
    from pipeline.schedulers.throttling import change_throttle

    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    change_throttle(collector.run, collector.attempt, collector.scheduler, tasks)
    echo.say(f"{collector.run.path}: at most {tasks} tasks at a time from now on")
