"""`medhaul cancel`: stop the tasks of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import make_echo, open_collector, render_command, run_argument, verbosity_options
from pipeline.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from pipeline.report.status import Collector

GRACE_SECONDS = 15.0  # beyond kill_wait, for the controller's own steps on a busy machine


@click.command()
@run_argument
@verbosity_options
def cancel(run: Path, *, quiet: bool, verbose: bool) -> None:
    """Stop all tasks of a run. They get SIGTERM and time to note what is finished; `resume` goes on from there."""
    from pipeline.schedulers.attempt import Liveness, check_cluster

    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    resume = render_command("medhaul", "resume", str(collector.run.path))
    attempt = collector.attempt()
    if attempt is None or attempt.liveness is Liveness.ENDED:
        echo.say(f"{collector.run.path}: nothing is at work")
        return
    if not attempt.jobs:
        raise UsageError(
            f"{collector.run.path}: attempt {attempt.plan.attempt:03d} is just being submitted", hint="try again"
        )
    scheduler = collector.scheduler(attempt.plan.scheduler)
    check_cluster(collector.run, attempt.plan, scheduler.bounds().cluster)
    scheduler.cancel(attempt.jobs)
    patience = collector.run.read_config().local.kill_wait + GRACE_SECONDS
    if not _ends_within(collector, patience, scheduler.poll):
        if scheduler.name == "slurm":
            echo.say(f"{collector.run.path}: told to stop; Slurm kills what is left after its KillWait; then: {resume}")
            return
        echo.note(f"not stopped after {patience:.0f} s: killing what is left")
        scheduler.cancel(attempt.jobs, force=True)
        if not _ends_within(collector, GRACE_SECONDS, scheduler.poll):
            raise InterruptedRunError(
                f"{collector.run.path}: told to stop, but still at work",
                hint=f"look again: {render_command('medhaul', 'status', str(collector.run.path))}",
            )
    echo.say(f"{collector.run.path}: cancelled; go on with: {resume}")


def _ends_within(collector: Collector, seconds: float, poll: float) -> bool:
    """Whether the attempt ends in time; asked ever more seldom where a question is a burden to others."""
    from pipeline.schedulers.attempt import Liveness

    deadline = time.monotonic() + seconds
    wait = 0.1 if poll < 1 else 2.0
    while True:
        attempt = collector.attempt()
        if attempt is None or attempt.liveness is not Liveness.ALIVE:
            return attempt is None or attempt.liveness is Liveness.ENDED
        if time.monotonic() > deadline:
            return False
        time.sleep(wait)
        wait = wait if poll < 1 else 1.5 * wait
