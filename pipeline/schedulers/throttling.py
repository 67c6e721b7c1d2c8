"""Changing how many tasks of an attempt run at a time, without ever promising more connections than there are."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.atomic import fsync_folder, storage_errors
from pipeline.errors import UsageError
from pipeline.records import Job, Throttle, render_life
from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Attempt, Liveness, array_lanes, check_cluster
from pipeline.schedulers.base import Scheduler, SchedulerError, State, alive, any_unknown, split_tasks

Read = Callable[[], Attempt | None]
"""Reads how the newest attempt of the run stands, anew each time."""


def change_throttle(run: RunDir, read: Read, open_scheduler: Callable[[str], Scheduler], tasks: int) -> None:
    """Let at most `tasks` tasks of the newest attempt run at a time.

    Those that run go on, with the connections that they have; those that start share what is left.

    Raises
    ------
    UsageError
        When nothing is at work, or the number cannot be with these arrays or within `limits.connections`.
    SchedulerError
        When the scheduler refuses, or does not say what runs; then nothing was changed, or the message says what was.
    """
    budget = run.read_config().limits.connections
    scene = look(run, read)
    attempt = scene.attempt
    if tasks > budget:
        raise UsageError(
            f"{tasks} tasks at a time would need more connections than the run has: {budget}",
            hint="limits.connections is the run's budget with the site",
        )
    if tasks < len(scene.lanes):
        raise UsageError(
            f"{len(scene.lanes)} arrays of this run are at work side by side, each with one task at a time at least",
            hint=f"the least is {len(scene.lanes)}; or `medhaul cancel` and resume with limits.tasks = {tasks}",
        )
    scheduler = open_scheduler(attempt.plan.scheduler)
    check_cluster(run, attempt.plan, scheduler.bounds().cluster)
    kept = run.read_throttle(attempt.plan.attempt)
    before = kept or Throttle(tasks=attempt.plan.tasks, connections=attempt.plan.connections)
    if tasks < before.tasks:
        lower(run, read, scheduler, scene, before, tasks, budget)
    else:
        increase(run, read, scheduler, scene, before, kept, tasks, budget)


class Scene(NamedTuple):
    """An attempt at work: its living arrays, and the lanes that are, or will be, at work side by side."""

    attempt: Attempt
    arrays: list[Job]
    lanes: list[int]
    lane_of: dict[int, int]

    def lane(self, job: Job) -> int:
        """Where the lane of an array stands among `lanes`."""
        return self.lanes.index(self.lane_of[job.offset])

    def held(self, before: Throttle) -> dict[str, int]:
        """The connections of each task that runs, by the name of its life; those that `before` gave it."""
        ids = {job.id for job in self.arrays}
        names = [
            render_life(job, index, status.restarts)
            for (job, index), status in self.attempt.states.items()
            if job in ids and status.state is State.RUNNING
        ]
        return {name: before.held.get(name, before.connections) for name in sorted(names)}

    def by_lane(self, held: Mapping[str, int]) -> list[list[int]]:
        """The connections of the tasks that run, lane by lane."""
        lane = {job.id: self.lane(job) for job in self.arrays}
        found: list[list[int]] = [[] for _ in self.lanes]
        for name, connections in held.items():
            found[lane[name.partition("_")[0]]].append(connections)
        return found


def look(run: RunDir, read: Read) -> Scene:
    """Read how the newest attempt stands.

    Raises
    ------
    UsageError
        When nothing of it is at work that could be throttled.
    SchedulerError
        When what runs is not known: the connections it holds cannot be counted.
    """
    attempt = read()
    path = run.path
    if attempt is None or attempt.liveness is Liveness.ENDED:
        raise UsageError(f"{path}: nothing is at work", hint="set limits.tasks in the config instead")
    if attempt.liveness is Liveness.UNKNOWN or any_unknown(attempt.states) or not attempt.complete:
        notes = sorted({status.note for status in attempt.states.values() if status.note})
        because = f" ({'; '.join(notes[:3])})" if notes else ""
        raise SchedulerError(
            f"{path}: nothing was changed, since it is not known which tasks run{because}",
            hint="repeat it when the scheduler answers",
        )
    living = {key[0] for key, status in attempt.states.items() if alive(status.state)}
    arrays = [job for job in (*attempt.jobs, *attempt.twins) if job.kind == "array" and job.id in living]
    if not arrays:
        raise UsageError(f"{path}: no task is at work or waits", hint="`medhaul status` shows what is")
    lane_of = dict(zip((array.offset for array in attempt.plan.arrays), array_lanes(attempt.plan.arrays), strict=True))
    taken = {job.offset for job in attempt.jobs if job.kind == "array"}
    to_come = lane_of.keys() - taken  # `submit --continue` may submit them beside the others
    lanes = sorted({lane_of[job.offset] for job in arrays} | {lane_of[offset] for offset in to_come})
    return Scene(attempt, arrays, lanes, lane_of)


def largest_load(allowed: Sequence[int], held: Sequence[Sequence[int]], share: int) -> int:
    """The most connections at a time, whichever tasks end first. Pure.

    Parameters
    ----------
    allowed
        How many tasks at a time each lane may have.
    held
        The connections of the tasks that run in each lane, which they keep to their end.
    share
        The connections of each task that starts.
    """
    load = 0
    for most, mine in zip(allowed, held, strict=True):
        sums = itertools.accumulate(sorted(mine, reverse=True), initial=0)
        load += max(kept + max(0, most - count) * share for count, kept in enumerate(sums))
    return load


def choose_share(budget: int, allowed: Sequence[int], held: Sequence[Sequence[int]]) -> int:
    """Choose the most connections that each task which starts can have within the budget; 0: not even one. Pure.

    With `r` of `n` tasks running that hold `h` each this is `(budget - r * h) // (n - r)`, but never more than
    `budget // n`, for when they have ended. Parameters as of `largest_load`.
    """
    shares = range(budget // sum(allowed), 0, -1)
    return next((share for share in shares if largest_load(allowed, held, share) <= budget), 0)


def lower(
    run: RunDir, read: Read, scheduler: Scheduler, scene: Scene, before: Throttle, tasks: int, budget: int
) -> None:
    """Lower the number: first with the scheduler, and only then let tasks that start have more connections."""
    number = scene.attempt.plan.attempt
    allowed = split_tasks(tasks, len(scene.lanes))
    for job in scene.arrays:
        scheduler.throttle([job], allowed[scene.lane(job)])
    run.write_throttle(number, Throttle(tasks=tasks, connections=before.connections, held=before.held))
    with contextlib.suppress(SchedulerError, UsageError):  # not known, or all at an end: they go on with what they had
        scene = look(run, read)
        held = scene.held(before)
        allowed = split_tasks(tasks, len(scene.lanes))
        share = choose_share(budget, allowed, scene.by_lane(held)) or before.connections
        run.write_throttle(number, Throttle(tasks=tasks, connections=share, held=held))


def increase(
    run: RunDir,
    read: Read,
    scheduler: Scheduler,
    scene: Scene,
    before: Throttle,
    kept: Throttle | None,
    tasks: int,
    budget: int,
) -> None:
    """Raise the number: first the smaller shares, and only then the scheduler; what fails is taken back.

    Raises
    ------
    UsageError
        When less than one connection is left for each task that would start.
    SchedulerError
        When the scheduler refuses, or no longer says what runs.
    """
    number = scene.attempt.plan.attempt
    share = before.connections
    wanted = find_share(scene, before, tasks, budget)
    try:
        while True:  # tasks may have started since they were counted: until none did that has more than is left
            share = min(share, wanted)
            run.write_throttle(number, Throttle(tasks=before.tasks, connections=share, held=scene.held(before)))
            scene = look(run, read)
            wanted = find_share(scene, before, tasks, budget)
            if wanted >= share:
                break
    except (SchedulerError, UsageError):
        restore(run, number, kept)
        raise
    changed = Throttle(tasks=tasks, connections=wanted, held=scene.held(before))
    run.write_throttle(number, changed)
    shares, asked = split_tasks(tasks, len(scene.lanes)), []
    try:
        for job in scene.arrays:
            asked.append(job)
            scheduler.throttle([job], shares[scene.lane(job)])
    except SchedulerError as error:
        shares = split_tasks(before.tasks, len(scene.lanes))
        planned = {array.offset: array.throttle for array in scene.attempt.plan.arrays}
        try:
            for job in asked:  # the last one too: a call that was not answered may have been taken
                scheduler.throttle([job], shares[scene.lane(job)] if kept else planned[job.offset])
        except SchedulerError:
            small = min(before.connections, wanted)
            run.write_throttle(number, Throttle(tasks=before.tasks, connections=small, held=changed.held))
            hint = f"tasks that start have {small} connections, since it may have taken the number; repeat the command"
            raise SchedulerError(str(error), hint=hint) from error
        restore(run, number, kept)
        raise


def find_share(scene: Scene, before: Throttle, tasks: int, budget: int) -> int:
    """The connections of each task that would start. Raises `UsageError` when there would be none."""
    held = scene.held(before)
    mine = scene.by_lane(held)
    if share := choose_share(budget, split_tasks(tasks, len(scene.lanes)), mine):
        return share
    most = next(
        (
            count
            for count in range(tasks - 1, len(scene.lanes) - 1, -1)
            if choose_share(budget, split_tasks(count, len(scene.lanes)), mine)
        ),
        before.tasks,
    )
    raise UsageError(
        f"{len(held)} tasks that run hold {sum(held.values())} of the run's {budget} connections, which leaves less "
        f"than one for each of {tasks} tasks at a time",
        hint=f"{max(most, before.tasks)} tasks at a time are possible now; more when some have ended; or "
        f"`medhaul cancel` and resume with limits.tasks = {tasks}",
    )


def restore(run: RunDir, number: int, kept: Throttle | None) -> None:
    """Make an attempt's `throttle.json` what it was."""
    if kept is not None:
        run.write_throttle(number, kept)
        return
    folder = run.attempt_folder(number)
    with storage_errors(folder):
        (folder / "throttle.json").unlink(missing_ok=True)
        fsync_folder(folder)
