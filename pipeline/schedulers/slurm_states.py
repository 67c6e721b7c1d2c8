"""What Slurm says of tasks: the output of squeue and sacct, and what their words mean to us. Pure.

Words and fields as of squeue(1) and sacct(1). A word we do not know stays UNKNOWN: never success, never gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import msgspec

from pipeline.schedulers.base import State, TaskKey, TaskStatus

FIELDS = {
    "ArrayJobID": 20, "ArrayTaskID": 20, "JobID": 20, "State": 24, "exit_code": 16, "RestartCnt": 10, "StartTime": 24,
    "NodeList": 80, "Name": 200, "Reason": 120,
}  # fmt: skip
SQUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
SACCT_FIELDS = ("JobID", "State", "ExitCode", "NodeList", "JobName")

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
RUNNING = {
    "RUNNING": "", "COMPLETING": "ending", "CONFIGURING": "its node is being made ready", "SUSPENDED": "suspended",
    "SIGNALING": "", "STAGE_OUT": "ending", "RESIZING": "", "STOPPED": "stopped by a signal",
}  # fmt: skip
ENDED = {
    "COMPLETED": State.COMPLETED, "FAILED": State.FAILED, "TIMEOUT": State.TIMEOUT, "DEADLINE": State.TIMEOUT,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY, "PREEMPTED": State.PREEMPTED, "REVOKED": State.PREEMPTED,
    "CANCELLED": State.CANCELLED, "NODE_FAIL": State.LOST, "BOOT_FAIL": State.LOST, "LAUNCH_FAILED": State.LOST,
}  # fmt: skip
LOSSES = {
    "NODE_FAIL": "its node failed", "BOOT_FAIL": "its node did not start", "LAUNCH_FAILED": "its node did not start it",
    "DEADLINE": "deadline", "REVOKED": "revoked",
}  # fmt: skip
# Why a job waits; those of the second kind never start by themselves.
PATIENCE = {
    "None": "", "Priority": "behind other jobs", "Resources": "for free nodes",
    "JobArrayTaskLimit": "for its turn among the run's tasks", "BeginTime": "to start again",
    "Dependency": "for the tasks",
    "Licenses": "for licences", "ReqNodeNotAvail": "for nodes that are not available now", "NodeDown": "for its node",
    "PartitionDown": "the partition is down", "PartitionInactive": "the partition is inactive",
    "Reservation": "for its reservation", "Cleaning": "its last life is being cleaned up",
}  # fmt: skip
STUCK = {
    "DependencyNeverSatisfied": "its dependency can never be satisfied", "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by Slurm or an administrator", "BadConstraints": "no node fits its constraints",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "PartitionNodeLimit": "asks for more nodes than the partition gives",
    "AccountNotAllowed": "its account may not use the partition", "QOSNotAllowed": "its QOS may not use the partition",
    "InvalidAccount": "its account is not valid", "InvalidQOS": "its QOS is not valid",
    "AssocMaxCpuPerJobLimit": "asks for more cores than its account may",
    "AssocMaxWallDurationPerJobLimit": "asks for more time than its account may",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than its QOS allows",
    "QOSMaxMemoryPerJob": "asks for more memory than its QOS allows",
    "QOSMaxCpuPerJobLimit": "asks for more cores than its QOS allows",
}  # fmt: skip


NEVER = {"", "N/A", "Unknown"}
NUMBER = re.compile("[0-9]{1,20}")
LAUNCH_FAILURE = 53  # as a signal in sacct's words: the low bits of slurmd's error number (4021, cannot open its log)


class Row(msgspec.Struct, frozen=True):
    """One task or job as squeue or sacct shows it; `index` is None for a plain job."""

    job: str
    index: int | None
    word: str
    code: str
    node: str = ""
    name: str = ""
    reason: str = ""
    start: str = ""
    restarts: int = 0

    @property
    def key(self) -> TaskKey:
        return self.job, self.index or 0

    @property
    def refused(self) -> bool:
        """Whether this is only what is left of a submission that was refused: slurmctld keeps a record of some."""
        return self.word == "FAILED" and self.reason in STUCK


def parse_squeue(text: str) -> list[Row]:
    """Read `squeue --noheader --array --Format=SQUEUE_FORMAT`; lines that have not that form are left out."""
    rows = []
    for line in text.splitlines():
        values, at = [], 0
        for width in FIELDS.values():
            values.append(line[at : at + width].strip())
            at += width
        job, index, raw, word, code, restarts, start, node, name, reason = values
        plain = NUMBER.fullmatch(index) is None
        if not NUMBER.fullmatch(raw if plain else job) or not word:
            continue
        rows.append(
            Row(
                job=raw if plain else job, index=None if plain else int(index), word=word, code=code, node=node,
                name=name, reason=reason.strip("()"), start=start,
                restarts=int(restarts) if NUMBER.fullmatch(restarts) else 0,
            )
        )  # fmt: skip
    return rows


def parse_sacct(text: str) -> list[Row]:
    """Read `sacct --noheader --parsable2 --allocations --format=SACCT_FIELDS`, one line for each life of each task.

    Pending tasks of an array, which sacct shows as one line with a range, are squeue's to know, and left out.
    """
    rows = []
    for line in text.splitlines():
        values = line.split("|", len(SACCT_FIELDS) - 1)
        match = re.fullmatch(r"([0-9]{1,20})(?:_([0-9]{1,20}))?", values[0].strip())
        if match is None or len(values) < len(SACCT_FIELDS) or not values[1].strip():
            continue
        _, state, code, node, name = values
        index = int(match[2]) if match[2] else None
        rows.append(Row(job=match[1], index=index, word=state, code=code, node=node, name=name))
    return rows


def parse_exit(code: str) -> tuple[int | None, int | None]:
    """Read an exit code as (code, signal), at most one of them set: `7:0`, `0:9`, or a raw wait status like 1792."""
    if match := re.fullmatch(r"([0-9]{1,20}):([0-9]{1,20})", code):
        number, by = int(match[1]), int(match[2])
        if by == LAUNCH_FAILURE:
            return None, None
    elif NUMBER.fullmatch(code):
        status = int(code) & 0xFFFF
        if status & 0x7F and status >> 8:  # no wait status, but an error number of Slurm's own
            return None, None
        number, by = (os.WEXITSTATUS(status), 0) if status & 0x7F == 0 else (0, os.WTERMSIG(status))
    else:
        return None, None
    return (None, by & 0x7F) if by & 0x7F else (number, None)


def classify_row(row: Row) -> TaskStatus:
    """Say what a row means."""
    word = row.word.split()[0].rstrip("+") if row.word.split() else ""  # "CANCELLED by 1000"
    node = "" if row.node in {"None assigned", "(null)", "N/A"} else row.node
    if word in WAITING:
        return _classify_waiting(word, row)
    if word in RUNNING:
        return TaskStatus(State.RUNNING, restarts=row.restarts, node=node, note=RUNNING[word])
    if word not in ENDED:
        return TaskStatus(State.UNKNOWN, node=node, note=f"Slurm says {row.word}")
    code, by = parse_exit(row.code)
    state, note = ENDED[word], LOSSES.get(word, "")
    if state is State.CANCELLED and (match := re.fullmatch(r"CANCELLED by ([0-9]+)", row.word)):
        note = f"by user {match[1]}"
    if state is State.FAILED and (code, by) == (None, None):
        note = "its node could not start it; is its log folder on shared storage?"
    elif state is State.FAILED and row.reason not in {"", "None", "NonZeroExitCode", "JobLaunchFailure"}:
        note = row.reason
    known = state in {State.FAILED, State.COMPLETED, State.TIMEOUT}
    return TaskStatus(
        state,
        exit_code=code if known else None,
        signal=by if known else None,
        restarts=row.restarts,
        node=node,
        note=note,
    )


def _classify_waiting(word: str, row: Row) -> TaskStatus:
    reason, _, _ = row.reason.partition(",")  # "ReqNodeNotAvail, UnavailableNodes:n1"
    stuck = word in {"REQUEUE_HOLD", "SPECIAL_EXIT"} or reason in STUCK
    note = STUCK.get(reason) or PATIENCE.get(reason, reason)
    if word in {"REQUEUE_HOLD", "SPECIAL_EXIT"} or "requeued held" in reason:
        note, stuck = f"held after a requeue ({row.reason or word})", True
    elif reason == "BeginTime" and row.start not in NEVER:
        note = f"to start again, not before {row.start}"
    if row.restarts:
        note = f"requeued {row.restarts} time{'s' if row.restarts > 1 else ''}" + (f"; waits {note}" if note else "")
    return TaskStatus(State.PENDING, restarts=row.restarts, stuck=stuck, note=note)


def last_deaths(rows: Iterable[Row]) -> dict[TaskKey, str]:
    """Say of tasks with several lives how the last one before the present ended, from all lives in order."""
    lives: dict[TaskKey, list[TaskStatus]] = {}
    for row in rows:
        lives.setdefault(row.key, []).append(classify_row(row))
    words = {
        State.LOST: "node failure", State.PREEMPTED: "preemption", State.TIMEOUT: "the time limit",
        State.OUT_OF_MEMORY: "want of memory", State.CANCELLED: "being cancelled",
    }  # fmt: skip
    found = {}
    for key, all_lives in lives.items():
        dead = [life for life in all_lives[:-1] if life.state in words]
        if dead:
            where = f" on {dead[-1].node}" if dead[-1].node else ""
            found[key] = f"after {words[dead[-1].state]}{where}"
    return found
