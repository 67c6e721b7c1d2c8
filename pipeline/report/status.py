"""Where a run stands: receipts decide, heartbeats and the scheduler explain. `StatusReport` is the JSON of `status`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from pipeline.records import FORMAT, Heartbeat, Job, ManifestIndex, Receipt, RunRecord
from pipeline.report.explain import (
    REMEDIES,
    PastTask,
    ShardState,
    ShardTask,
    WideQuestion,
    choose_waiting_remedy,
    classify_shard,
    explain_task,
    find_past,
    may_ask,
)
from pipeline.report.receipts import FoundArchive, ReceiptBook, find_archives, find_problems, read_part_sizes
from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Attempt, Liveness, read_attempt
from pipeline.schedulers.base import Scheduler, State, TaskKey, TaskStatus, ended
from pipeline.schedulers.choose import open_scheduler

SIZES_SECONDS = 60.0  # how long sizes of parts are taken to hold, when all that receipts name is there
NAMED_SHARDS = 20  # of those that wait for the same reason
STALE_SECONDS = 120.0  # a heartbeat older than this says nothing about speed


class RunningShard(msgspec.Struct, frozen=True):
    """A shard at work. Bytes are of the source; `rate` in bytes per second; `quiet` seconds since its last word."""

    shard: int
    job: str
    node: str
    phase: str
    bytes: int
    downloaded: int
    packed: int
    entries: int
    entries_done: int
    failed: int
    done_bytes: int
    rate: float
    eta: float | None
    quiet: float
    note: str = ""


class OpenShard(msgspec.Struct, frozen=True):
    """A shard that is neither done, nor at work, nor waiting: `state` is partial, dead, unknown or not submitted.

    `cause` is one of the words of `explain.Cause`, `reason` is for people, `remedy` says what to do about it. `job` is
    its task in the newest attempt that took it, which is `attempt`; 0: none did.
    """

    shard: int
    state: str
    reason: str
    job: str
    cause: str = ""
    remedy: str = ""
    attempt: int = 0


class WaitingShards(msgspec.Struct, frozen=True):
    """How many shards wait for the same reason, and the first few of them.

    `stuck`: until somebody does something; `remedy` says what.
    """

    reason: str
    count: int
    shards: list[int]
    stuck: bool
    remedy: str = ""


class ReduceReport(msgspec.Struct, frozen=True):
    """The reduce job of the newest attempt: its scheduler state and what that means.

    `stuck`: it waits for something that will not come by itself; `remedy` says what to do.
    """

    state: str
    exit_code: int | None
    reason: str
    job: str = ""
    stuck: bool = False
    remedy: str = ""


class ArchiveReport(msgspec.Struct, frozen=True):
    """An archive: `missing`, `partial` or `complete`; `path` and `bytes` are null while it is missing."""

    name: str
    state: str
    path: str | None
    bytes: int | None


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `medhaul status --json` prints.

    Attributes
    ----------
    time
        Unix time of this report.
    attempt
        Number of the newest attempt, 0 when there is none; `alive`: `alive`, `ended`, `unknown` or `none`.
    shards
        Number of shards by state: done, partial, running, waiting, dead, unknown, not submitted.
    items, archived, failed
        Items of the run; those in shards with a receipt that are archived; those that failed.
    bytes, done_bytes, packed_bytes
        Planned bytes of the run; of these, done as far as receipts and last words tell; bytes of the finished parts.
    rate, eta
        Bytes per second of all tasks at work; seconds left at that rate, null when it cannot be told.
    """

    format: int
    run: str
    name: str
    time: float
    attempt: int
    alive: str
    scheduler: str
    shards: dict[str, int]
    items: int
    archived: int
    failed: int
    bytes: int
    done_bytes: int
    packed_bytes: int
    rate: float
    eta: float | None
    reduce: ReduceReport | None
    archives: list[ArchiveReport]
    running: list[RunningShard]
    waiting: list[WaitingShards]
    open: list[OpenShard]


class Collector:
    """Reads a run's state as often as asked; complete receipts are read once."""

    def __init__(
        self,
        run: RunDir,
        *,
        clock: Callable[[], float] = time.time,
        open_scheduler: Callable[[str, RunDir], Scheduler] = open_scheduler,
    ) -> None:
        self.run = run
        self.record: RunRecord = run.read_run()
        self.index: ManifestIndex = run.read_manifest_index()
        self.book = ReceiptBook(run, self.index.manifest_sha256)
        self._clock = clock
        self._open_scheduler = open_scheduler
        self._schedulers: dict[str, Scheduler] = {}
        self._sizes: dict[str, int] = {}
        self._sizes_at = float("-inf")
        self._finished: list[str] = []
        self._past: dict[tuple[int, TaskKey], TaskStatus] = {}  # of tasks of earlier attempts, when they have ended

    def scheduler(self, name: str) -> Scheduler:
        """The scheduler of that name, opened once."""
        if name not in self._schedulers:
            self._schedulers[name] = self._open_scheduler(name, self.run)
        return self._schedulers[name]

    def attempt(self) -> Attempt | None:
        """The newest attempt as it stands; None when there is none."""
        numbers = self.run.attempts()
        if not numbers:
            return None
        return read_attempt(self.run, numbers[-1], self.scheduler(self.run.read_plan(numbers[-1]).scheduler))

    def collect(self) -> tuple[StatusReport, Attempt | None]:
        """Read everything once. Raises `ConfigError` when the run itself is damaged."""
        attempt, tasks = self._read_tasks()
        self.book.refresh()  # after the scheduler: what ended before that has left its receipt
        self._refresh_sizes()
        # After the sizes: reduce removes parts only when their archive is there.
        archives = find_archives(self.run, self.index)
        self._finished = [name for name, archive in archives.items() if archive.state == "complete"]
        problems = self._problems()
        receipts = {shard: receipt for shard, receipt in self.book.receipts.items() if shard not in problems}
        heartbeats = {
            shard: heartbeat
            for shard in choose_heartbeats(receipts, tasks)
            if (heartbeat := read_heartbeat(self.run, shard)) is not None
        }
        report = make_report(
            self.run.path, self.record, self.index, receipts, problems, attempt, tasks, heartbeats, archives,
            self._clock(),
        )  # fmt: skip
        return report, attempt

    def _read_tasks(self) -> tuple[Attempt | None, dict[int, ShardTask]]:
        """The newest attempt, and of each shard that is not done the task that explains it, by one question.

        One more for each other kind of scheduler that earlier attempts went to.
        """
        numbers = self.run.attempts()
        if not numbers:
            return None, {}
        newest = self.run.read_plan(numbers[-1])
        if len(numbers) > 1:
            self.book.refresh()
        done = {shard for shard, receipt in self.book.receipts.items() if receipt.state == "complete"}
        not_done = {entry.shard for entry in self.index.shards} - done
        past: dict[int, PastTask] = {}
        left: dict[str, list[Job]] = {}

        def widen(jobs: Sequence[Job]) -> list[Job]:
            taken = {newest.shards[job.offset + n] for job in jobs if job.kind == "array" for n in range(job.length)}
            past.update(find_past(self.run, numbers[:-1], not_done - taken))
            ids = {job.id for job in jobs}
            for plan, job, index in past.values():
                known = (plan.attempt, (job.id, index)) in self._past
                if not known and may_ask(plan, newest) and job.id not in ids:
                    ids.add(job.id)
                    left.setdefault(plan.scheduler, []).append(job)
            return left.pop(newest.scheduler, [])

        wide = WideQuestion(self.scheduler(newest.scheduler), widen)
        attempt = read_attempt(self.run, newest.attempt, cast("Scheduler", wide))
        if wide.more is None:  # nothing was taken of the newest
            wide.states([])
        found = dict(wide.more or {})
        for name, jobs in left.items():
            found |= self.scheduler(name).states(jobs)
        tasks = {shard: ShardTask(newest.attempt, *task) for shard, task in attempt.shard_tasks().items()}
        for shard, (plan, job, index) in past.items():
            key = (job.id, index)
            status = self._past.get((plan.attempt, key)) or (found.get(key) if may_ask(plan, newest) else None)
            if status is None:
                status = TaskStatus(State.UNKNOWN, note=f"submitted to cluster {plan.cluster}")
            if ended(status.state):
                self._past[plan.attempt, key] = status
            tasks[shard] = ShardTask(plan.attempt, f"{job.id}_{index}", status)
        return attempt, tasks

    def _problems(self) -> dict[int, str]:
        return find_problems(self.index, self.book.receipts, self.book.damaged, self._sizes, self._finished)

    def _refresh_sizes(self) -> None:
        """Read the sizes of parts when they are old, or when a receipt names what they do not have."""
        now = self._clock()
        if now - self._sizes_at > SIZES_SECONDS or len(self._problems()) > len(self.book.damaged):
            self._sizes = read_part_sizes(self.run)
            self._sizes_at = now


def choose_heartbeats(receipts: Mapping[int, Receipt], tasks: Mapping[int, ShardTask]) -> list[int]:
    """Choose the shards whose last words are worth a file open: they were started, and are not done. Pure."""
    return [
        shard
        for shard, (_, _, status) in tasks.items()
        if (status.state not in {State.PENDING, State.COMPLETED, State.CANCELLED} or status.restarts)
        and not (shard in receipts and receipts[shard].state == "complete")
    ]


def read_heartbeat(run: RunDir, shard: int) -> Heartbeat | None:
    """The last words about a shard; None when there are none, or they are torn."""
    try:
        return msgspec.json.decode(run.heartbeat(shard).read_bytes(), type=Heartbeat)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def make_report(
    path: Path,
    record: RunRecord,
    index: ManifestIndex,
    receipts: Mapping[int, Receipt],
    problems: Mapping[int, str],
    attempt: Attempt | None,
    tasks: Mapping[int, ShardTask],
    heartbeats: Mapping[int, Heartbeat],
    archives: Mapping[str, FoundArchive],
    now: float,
) -> StatusReport:
    """Put together what was read: `receipts` that prove something, and of other shards the `problems`. Pure."""
    counts: Counter[ShardState] = Counter()
    running: list[RunningShard] = []
    waiting: dict[tuple[str, bool], list[tuple[int, str]]] = {}
    left: list[OpenShard] = []
    done_bytes = reported_items = 0
    for entry in index.shards:
        shard = entry.shard
        number, job, status = tasks.get(shard, (0, "", None))
        receipt, heartbeat = receipts.get(shard), heartbeats.get(shard)
        verdict = classify_shard(receipt, problems.get(shard, ""), status, heartbeat, number)
        state = verdict.state
        counts[state] += 1
        if receipt is not None:
            reported_items += entry.items
        if state in {ShardState.DONE, ShardState.PARTIAL}:
            done_bytes += entry.bytes
        elif state is ShardState.RUNNING:
            own = heartbeat if heartbeat is not None and heartbeat.attempt == number else None
            view = view_running(shard, job, entry.bytes, own, now)
            running.append(msgspec.structs.replace(view, note=verdict.reason))
            done_bytes += view.done_bytes
        elif status is not None and state is ShardState.WAITING:
            waiting.setdefault((verdict.reason, status.stuck), []).append((shard, job))
        if state not in {ShardState.DONE, ShardState.RUNNING, ShardState.WAITING}:
            cause = verdict.cause
            remedy = REMEDIES[cause] if cause else ""
            left.append(OpenShard(shard, state.value, verdict.reason, job, cause or "", remedy, number))
    failed = {item.number for receipt in receipts.values() for item in receipt.failed}
    rate = sum(view.rate for view in running)
    left_bytes = sum(entry.bytes for entry in index.shards) - done_bytes
    reduce = attempt.reduce_status() if attempt else None
    return StatusReport(
        format=FORMAT,
        run=str(path),
        name=record.name,
        time=now,
        attempt=attempt.plan.attempt if attempt else 0,
        alive=attempt.liveness.value if attempt else "none",
        scheduler=attempt.plan.scheduler if attempt else "",
        shards={state.value: counts[state] for state in ShardState},
        items=record.items,
        archived=max(0, reported_items - len(failed)),
        failed=len(failed),
        bytes=record.bytes,
        done_bytes=done_bytes,
        packed_bytes=sum(receipt.packed_bytes for receipt in receipts.values()),
        rate=rate,
        eta=left_bytes / rate if rate > 0 and attempt and attempt.liveness is Liveness.ALIVE else None,
        reduce=None if attempt is None or reduce is None else view_reduce(attempt, reduce),
        archives=[view_archive(archive.name, archives.get(archive.name)) for archive in index.archives],
        running=running,
        waiting=[
            WaitingShards(
                reason,
                len(found),
                [shard for shard, _ in found[:NAMED_SHARDS]],
                stuck,
                choose_waiting_remedy(reason, [job for _, job in found]) if stuck else "",
            )
            for (reason, stuck), found in waiting.items()
        ],
        open=left,
    )


def view_reduce(attempt: Attempt, status: TaskStatus) -> ReduceReport:
    """Say how the reduce job stands. Pure."""
    job = attempt.reduce.id if attempt.reduce else ""
    remedy = choose_waiting_remedy(status.note, [job]) if status.stuck else ""
    return ReduceReport(status.state.value, status.exit_code, explain_task(status), job, status.stuck, remedy)


def view_archive(name: str, found: FoundArchive | None) -> ArchiveReport:
    """Say whether an archive is there. Pure."""
    if found is None:
        return ArchiveReport(name, "missing", None, None)
    return ArchiveReport(name, found.state, str(found.path), found.bytes)


def view_running(shard: int, job: str, planned: int, heartbeat: Heartbeat | None, now: float) -> RunningShard:
    """Say how far a shard at work is: by bytes downloaded in this life, or by frames kept from earlier ones. Pure."""
    if heartbeat is None:
        return RunningShard(shard, job, "", "starting", planned, 0, 0, 0, 0, 0, 0, 0.0, None, 0.0)
    by_frames = planned * heartbeat.frames_done // heartbeat.frames if heartbeat.frames > 0 else 0
    done = max(0, min(planned, max(heartbeat.bytes_downloaded, by_frames)))
    quiet = max(0.0, now - heartbeat.time)
    worked = heartbeat.time - heartbeat.started
    rate = heartbeat.bytes_downloaded / worked if worked > 0 and quiet < STALE_SECONDS else 0.0
    return RunningShard(
        shard=shard,
        job=job,
        node=heartbeat.node,
        phase=heartbeat.phase,
        bytes=planned,
        downloaded=heartbeat.bytes_downloaded,
        packed=heartbeat.bytes_packed,
        entries=heartbeat.entries,
        entries_done=heartbeat.entries_done,
        failed=heartbeat.failed,
        done_bytes=done,
        rate=rate,
        eta=(planned - done) / rate if rate > 0 else None,
        quiet=quiet,
    )
