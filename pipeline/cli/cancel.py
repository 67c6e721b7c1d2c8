"""`medhaul cancel`: stop the tasks of a run."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import Echo, make_echo, open_collector, render_command, run_argument, verbosity_options
from pipeline.errors import InterruptedRunError

if TYPE_CHECKING:
    from pipeline.report.status import Collector
    from pipeline.schedulers.attempt import Attempt

GRACE_SECONDS = 15.0  # beyond the scheduler's time to SIGKILL, for the controller's own steps on a busy machine
LOOK_SECONDS = 2.0  # before the second look at a cluster; then ever longer, since a question is a burden to others


@click.command()
@run_argument
@verbosity_options
def cancel(run: Path, *, quiet: bool, verbose: bool) -> None:
    """Stop all tasks of a run. They get SIGTERM and time to note what is finished; `resume` goes on from there.

    All attempts that are not known to have ended are stopped, also one that is just being submitted.
    """
    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    path = collector.run.path
    targets, patience = find_targets(collector, echo)
    if not targets:
        echo.say(f"{path}: nothing is at work")
        return
    for attempt in targets:  # before anything else: what is asked to end must not begin again
        collector.run.write_cancelled(attempt.plan.attempt)
        if attempt.submitter_alive:
            echo.note(f"attempt {attempt.plan.attempt:03d} is just being submitted: waiting until that has stopped")
    targets = _stop(collector, targets, patience)
    left = _unended(targets, collector)
    if left and all(attempt.plan.scheduler == "local" for attempt in left):
        echo.note(f"not stopped after {patience:.0f} s: killing what is left")
        for attempt in left:
            collector.scheduler("local").cancel(attempt.jobs, force=True)
        targets = _stop(collector, left, GRACE_SECONDS, ask=False)
        left = _unended(targets, collector)
    if left:
        raise InterruptedRunError(
            f"{path}: told to stop, but {'; '.join(_render_left(attempt) for attempt in left)}",
            hint=f"look again: {render_command('medhaul', 'status', str(path))}; or cancel again",
        )
    for attempt in _doubtful(targets):
        echo.note(f"attempt {attempt.plan.attempt:03d} was told to stop too; whether it has cannot be known")
    echo.say(f"{path}: cancelled; go on with: {render_command('medhaul', 'resume', str(path))}")


def find_targets(collector: Collector, echo: Echo) -> tuple[list[Attempt], float]:
    """The attempts to stop, which are all that are not known to have ended, and the seconds that their end may take.

    Earlier ones than the newest are among them when somebody went on with --assume-dead. What may live where it cannot
    be reached from here is told, when it is an earlier attempt.

    Raises
    ------
    UsageError
        When the newest attempt went to another cluster than this.
    SchedulerError
        When the scheduler does not answer.
    """
    from pipeline.schedulers.attempt import Liveness, check_cluster

    run = collector.run
    numbers = run.attempts()
    if not numbers:
        return [], 0.0
    (newest,) = _read(collector, numbers[-1:], search=True)
    found = [*_read(collector, numbers[:-1]), newest]
    targets, patience = [], 0.0
    for attempt in found:
        plan = attempt.plan
        unknown = attempt.liveness is Liveness.UNKNOWN
        if attempt.liveness is Liveness.ENDED:
            continue
        reachable = plan.scheduler == newest.plan.scheduler and plan.scheduler != "local"
        if attempt is newest or not unknown or reachable:
            bounds = collector.scheduler(plan.scheduler).bounds()
            if attempt is newest:
                check_cluster(run, plan, bounds.cluster)
            if attempt is newest or not unknown or plan.cluster == bounds.cluster:
                wait = run.read_config().local.kill_wait if bounds.kill_wait is None else bounds.kill_wait
                patience = max(patience, wait + GRACE_SECONDS)
                targets.append(attempt)
                continue
        where = plan.cluster or f"the {plan.scheduler} scheduler"
        echo.note(f"attempt {plan.attempt:03d} went to {where}; whether it lives there cannot be known here")
    return targets, patience


def _read(collector: Collector, numbers: Sequence[int], *, search: bool = False) -> list[Attempt]:
    """Read attempts; each scheduler is asked once for all of its own."""
    from pipeline.schedulers.attempt import read_attempts

    groups: dict[str, list[int]] = {}
    for number in numbers:
        groups.setdefault(collector.run.read_plan(number).scheduler, []).append(number)
    found = [
        attempt
        for name, mine in groups.items()
        for attempt in read_attempts(collector.run, mine, collector.scheduler(name), search=search)
    ]
    return sorted(found, key=lambda attempt: attempt.plan.attempt)


def _stop(collector: Collector, targets: list[Attempt], seconds: float, *, ask: bool = True) -> list[Attempt]:
    """Ask for the end of attempts until it has come, for so many seconds at most; return how they stand then.

    A cluster is asked again for what lives at each look: a task may just have put itself back into the queue, or a job
    been submitted. A local controller that was told stays told.
    """
    deadline = time.monotonic() + seconds
    local = all(attempt.plan.scheduler == "local" for attempt in targets)
    wait, first = 0.1 if local else LOOK_SECONDS, True
    while True:
        for attempt in targets:
            jobs = attempt.at_work()
            if jobs and ask and (first or attempt.plan.scheduler != "local"):
                collector.scheduler(attempt.plan.scheduler).cancel(jobs)
        if not first:
            if not any(_may_change(attempt) for attempt in targets) or time.monotonic() > deadline:
                return targets
            time.sleep(wait)
            wait = wait if local else 1.5 * wait
        first = False
        targets = _read(collector, [attempt.plan.attempt for attempt in targets], search=True)


def _may_change(attempt: Attempt) -> bool:
    """Whether looking again may show another picture of an attempt. Pure."""
    from pipeline.schedulers.attempt import Liveness
    from pipeline.schedulers.base import any_unknown

    if attempt.liveness is Liveness.UNKNOWN:
        return attempt.plan.scheduler != "local" and (any_unknown(attempt.states) or not attempt.complete)
    return attempt.liveness is Liveness.ALIVE


def _unended(attempts: Collection[Attempt], collector: Collector) -> list[Attempt]:
    """The attempts that are at work; the newest of the run also when it may be."""
    from pipeline.schedulers.attempt import Liveness

    newest = collector.run.attempts()[-1]
    return [
        attempt
        for attempt in attempts
        if attempt.liveness is Liveness.ALIVE
        or (attempt.liveness is Liveness.UNKNOWN and attempt.plan.attempt == newest)
    ]


def _doubtful(attempts: Collection[Attempt]) -> list[Attempt]:
    from pipeline.schedulers.attempt import Liveness

    return [attempt for attempt in attempts if attempt.liveness is Liveness.UNKNOWN]


def _render_left(attempt: Attempt) -> str:
    """Say what is left of an attempt that was told to stop. Pure."""
    from pipeline.schedulers.base import alive

    name = f"attempt {attempt.plan.attempt:03d}"
    living = sum(alive(status.state) for status in attempt.states.values())
    if living:
        return f"{living} tasks of {name} are still at work"
    if attempt.submitter_alive:
        return f"{name} is still being submitted"
    if attempt.submitter_alive is None:
        return f"{name} was submitted from another host, and may still be"
    return f"the scheduler does not say whether {name} has ended"
