"""What went wrong in a run: failed items, and shards without a good receipt. `FailedReport` is the JSON of `failed`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipeline.archive.index import ArchiveLine, read_lines
from pipeline.archive.index import FailedLine as IndexLine
from pipeline.records import FORMAT, Receipt
from pipeline.report.explain import Cause, ShardState
from pipeline.report.logs import detail_path, log_path, match_records, read_detail, read_tail, render_record
from pipeline.report.status import OpenShard, StatusReport

TAIL_LINES = 20
RECORDS = 10
NO_RECEIPT = re.compile(r"shard \d+ has no receipt")  # what reduce says of items whose shard is listed anyway


class FailedLine(msgspec.Struct, frozen=True):
    """An item that is not archived. `reason` is one of the stable words, `message` is for people.

    Found by reduce only (two items with the same path), it is known from the partial `archive` that lacks it: then
    `number` and `shard` are -1, `attempt` is 0 and `job` empty.
    """

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
    archive: str = ""


class FailedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `medhaul failed --json` prints: failed items, and shards that have no good receipt and are not at work.

    Of shards with a partial receipt those whose later task died as well.
    """

    format: int
    run: str
    items: list[FailedLine]
    shards: list[OpenShard]


def make_failed(
    report: StatusReport, receipts: Mapping[int, Receipt], recorded: Mapping[str, Sequence[IndexLine]] | None = None
) -> FailedReport:
    """Choose what went wrong from a status report, the receipts, and what partial archives record by name. Pure."""
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
    known = {item.path for item in items}
    items += [
        FailedLine(
            id=line.id, path=line.path, reason=line.reason, message=line.message, transient=False, number=-1, piece=0,
            shard=-1, attempt=0, job="", archive=name,
        )
        for name, lines in (recorded or {}).items()
        for line in lines
        if line.path not in known and not NO_RECEIPT.fullmatch(line.message)
    ]  # fmt: skip
    wrong = {ShardState.DEAD.value, ShardState.UNKNOWN.value}
    shards = [
        view
        for view in report.open
        if view.state in wrong or (view.state == ShardState.PARTIAL.value and view.cause != Cause.PARTIAL.value)
    ]
    return FailedReport(format=FORMAT, run=report.run, items=items, shards=shards)


def render_failed(report: FailedReport) -> list[str]:
    """One line for each failed item and for each missing shard."""
    lines = []
    for item in report.items:
        again = ", may work later" if item.transient else ""
        where = f"archive {item.archive}" if item.archive else f"shard {item.shard:06d}"
        lines.append(f"{item.id}  {item.path}  {item.reason}: {item.message} ({where}{again})")
    lines += [f"shard {view.shard:06d}  {view.state}: {view.reason}" for view in report.shards]
    return lines


def read_recorded(report: StatusReport) -> dict[str, list[IndexLine]]:
    """The failures at the head of each partial archive's index, by archive. One small read each."""
    found = {}
    for archive in report.archives:
        if archive.state == "partial" and archive.path is not None:
            path = Path(f"{archive.path}.index.jsonl.zst")
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue  # a reduce is replacing the archive just now
            with file:
                lines = read_lines(file, str(path))
                head = next(lines)
                count = head.failed if isinstance(head, ArchiveLine) else 0
                found[archive.name] = [line for line in itertools.islice(lines, count) if isinstance(line, IndexLine)]
    return found


def read_logs(logs: Path, job: str, words: Sequence[str]) -> list[str]:
    """The end of a task's readable log and the records of its detail log that name one of `words`, as lines."""
    path = log_path(logs, job)
    tail = read_tail(path, TAIL_LINES)
    lines = [f"--- {path}" + ("" if tail else ": no such log"), *tail]
    records = match_records(read_detail(detail_path(logs, job)), words, RECORDS)
    if records:
        lines += [f"--- {detail_path(logs, job)}", *map(render_record, records)]
    return lines
