"""What went wrong in a run: failed items, and shards without a good receipt. `FailedReport` is the JSON of `failed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipeline.records import FORMAT, Receipt
from pipeline.report.explain import ShardState
from pipeline.report.logs import detail_path, log_path, match_records, read_detail, read_tail, render_record
from pipeline.report.status import OpenShard, StatusReport

TAIL_LINES = 20
RECORDS = 10


class FailedLine(msgspec.Struct, frozen=True):
    """An item that is not archived. `reason` is one of the stable words, `message` is for people."""

    id: str
    path: str
    reason: str
    message: str
    transient: bool
    number: int
    piece: int
    shard: int
    attempt: int
    job: str


class FailedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `medhaul failed --json` prints: failed items, and shards that have no good receipt and are not at work."""

    format: int
    run: str
    items: list[FailedLine]
    shards: list[OpenShard]


def make_failed(report: StatusReport, receipts: Mapping[int, Receipt]) -> FailedReport:
    """Choose what went wrong from a status report and the receipts. Pure."""
    items = [
        FailedLine(
            id=item.id,
            path=item.path,
            reason=item.reason,
            message=item.message,
            transient=item.transient,
            number=item.number,
            piece=item.piece,
            shard=receipt.shard,
            attempt=receipt.attempt,
            job=receipt.job,
        )
        for _, receipt in sorted(receipts.items())
        for item in receipt.failed
    ]
    wrong = {ShardState.DEAD.value, ShardState.UNKNOWN.value}
    return FailedReport(
        format=FORMAT, run=report.run, items=items, shards=[view for view in report.open if view.state in wrong]
    )


def render_failed(report: FailedReport) -> list[str]:
    """One line for each failed item and for each missing shard."""
    lines = []
    for item in report.items:
        again = ", may work later" if item.transient else ""
        lines.append(f"{item.id}  {item.path}  {item.reason}: {item.message} (shard {item.shard:06d}{again})")
    lines += [f"shard {view.shard:06d}  {view.state}: {view.reason}" for view in report.shards]
    return lines


def read_logs(logs: Path, job: str, words: Sequence[str]) -> list[str]:
    """The end of a task's readable log and the records of its detail log that name one of `words`, as lines."""
    path = log_path(logs, job)
    tail = read_tail(path, TAIL_LINES)
    lines = [f"--- {path}" + ("" if tail else ": no such log"), *tail]
    records = match_records(read_detail(detail_path(logs, job)), words, RECORDS)
    if records:
        lines += [f"--- {detail_path(logs, job)}", *map(render_record, records)]
    return lines
