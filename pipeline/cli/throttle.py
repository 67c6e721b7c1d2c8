"""`medhaul throttle`: how many tasks of a run may work at a time, from now on."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import make_echo, open_collector, run_argument, verbosity_options
from pipeline.errors import UsageError


@click.command()
@run_argument
@click.argument("tasks", type=click.IntRange(min=1))
@verbosity_options
def throttle(run: Path, tasks: int, *, quiet: bool, verbose: bool) -> None:
    """Let at most TASKS tasks of a run that is at work run at a time.

    Tasks that run are not ended. Those that start from now on share the run's connections (limits.connections) by the
    new number. The next attempt goes by the config again.
    """
    from pipeline.records import Throttle
    from pipeline.schedulers.attempt import Liveness, array_lanes, check_cluster
    from pipeline.schedulers.base import alive, split_tasks

    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    attempt = collector.attempt()
    if attempt is None or attempt.liveness is Liveness.ENDED:
        raise UsageError(f"{collector.run.path}: nothing is at work", hint="set limits.tasks in the config instead")
    limits = collector.run.read_config().limits
    if tasks > limits.connections:
        raise UsageError(
            f"{tasks} tasks at a time would need more connections than the run has: {limits.connections}",
            hint="limits.connections is the run's budget with the site",
        )
    living = {key[0] for key, status in attempt.states.items() if alive(status.state)}
    arrays = [job for job in attempt.jobs if job.kind == "array" and job.id in living]
    lane_of = dict(zip((array.offset for array in attempt.plan.arrays), array_lanes(attempt.plan.arrays), strict=True))
    lanes = sorted({lane_of[job.offset] for job in arrays})
    if tasks < len(lanes):
        raise UsageError(
            f"{len(lanes)} arrays of this run are at work side by side, each with one task at a time at least",
            hint=f"the least is {len(lanes)}; or `medhaul cancel` and resume with limits.tasks = {tasks}",
        )
    shares = dict(zip(lanes, split_tasks(tasks, len(lanes)), strict=True)) if lanes else {}
    number = attempt.plan.attempt
    scheduler = collector.scheduler(attempt.plan.scheduler)
    check_cluster(collector.run, attempt.plan, scheduler.bounds().cluster)
    collector.run.write_throttle(number, Throttle(tasks=tasks, connections=max(1, limits.connections // tasks)))
    for job in arrays:
        scheduler.throttle([job], shares[lane_of[job.offset]])
    echo.say(f"{collector.run.path}: at most {tasks} tasks at a time from now on")
