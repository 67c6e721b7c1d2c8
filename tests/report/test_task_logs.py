"""Logs of tasks: the readable tail, and detail records as far as a torn file has them."""

from __future__ import annotations

import json

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.failed import make_failed, read_logs, render_failed
from pipeline.report.logs import detail_path, log_path, match_records, read_detail, read_tail
from pipeline.report.status import Collector
from tests.schedulers.fake_run import receipt_of, write_run


def frame(*records):
    """One zstd frame of JSON lines, as a task appends it."""
    return zstandard.ZstdCompressor().compress(b"".join(json.dumps(record).encode() + b"\n" for record in records))


RECORDS = [{"t": number, "event": "request", "item": f"1.2.{number % 3}", "n": [1]} for number in range(30)]
DATA = b"".join(frame(*RECORDS[first : first + 10]) for first in range(0, 30, 10))


def test_detail_log_is_read_whole(tmp_path):
    """All records of all frames come back in order; lines that are no JSON object are left out."""
    path = tmp_path / "x.detail.jsonl.zst"
    path.write_bytes(DATA + zstandard.ZstdCompressor().compress(b'[1]\n\xff\n{"event":"end"}\n'))
    assert list(read_detail(path)) == [*RECORDS, {"event": "end"}]
    assert list(read_detail(tmp_path / "missing")) == []


@given(cut=st.integers(0, len(DATA)), junk=st.binary(max_size=40))
def test_torn_detail_log_gives_its_head(tmp_path_factory, cut, junk):
    """Cut anywhere and followed by junk, a log gives a head of its records: every whole frame, and nothing made up."""
    path = tmp_path_factory.mktemp("logs") / "x.zst"
    path.write_bytes(DATA[:cut])
    found = list(read_detail(path))
    assert found == RECORDS[: len(found)]
    first = len(frame(*RECORDS[:10]))
    assert len(found) >= 10 * (cut >= first)
    path.write_bytes(DATA[:cut] + junk)
    list(read_detail(path))


LIVES = [RECORDS[first : first + 3] for first in range(0, 30, 3)]
FRAMES = [frame(*records) for records in LIVES]


@given(
    torn=st.integers(0, len(LIVES) - 2),
    keep=st.floats(0, 1, exclude_max=True),
    junk=st.binary(max_size=40) | st.sampled_from([b"\x28\xb5\x2f\xfd", FRAMES[0][:9], b"\x28\xb5", bytes(200_000)]),
)
def test_what_later_lives_append_is_read(tmp_path_factory, torn, keep, junk):
    """A frame torn by a kill, and junk after it, cost that frame: all other frames come back whole, once, in order."""
    path = tmp_path_factory.mktemp("logs") / "x.zst"
    head = FRAMES[torn][: int(len(FRAMES[torn]) * keep)]
    path.write_bytes(b"".join(FRAMES[:torn]) + head + junk + b"".join(FRAMES[torn + 1 :]))
    others = [record for number, records in enumerate(LIVES) if number != torn for record in records]
    assert [record for record in read_detail(path) if record in others] == others


TINY = [[{"t": number, "event": f"\u00e4{number}"}, {"t": number, "n": 2}] for number in range(4)]
TINY_FRAMES = [frame(*records) for records in TINY]


@given(lengths=st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_torn_frame_swallows_nothing(tmp_path_factory, lengths):
    """Tiny frames are stored as they are: torn, they end in the next one's bytes, whose records still come once."""
    path = tmp_path_factory.mktemp("logs") / "x.zst"
    kept = [data[:length] for data, length in zip(TINY_FRAMES, lengths, strict=False)]
    path.write_bytes(b"".join(kept) + TINY_FRAMES[3])
    found = list(read_detail(path))
    whole = [
        record
        for records, data, part in zip(TINY, TINY_FRAMES, kept, strict=False)
        if part == data
        for record in records
    ]
    assert [record for record in found if record in whole] == whole
    assert found[-2:] == TINY[3]


def test_matching_records():
    """Records that name an item are found, the last ones kept; without names the last of all."""
    assert [record["t"] for record in match_records(iter(RECORDS), ["1.2.0"], 2)] == [24, 27]
    assert [record["t"] for record in match_records(iter(RECORDS), [], 2)] == [28, 29]


def test_tail(tmp_path):
    """The last lines of a long log are read without the rest, whatever bytes are in it."""
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff\xfe" * 100_000 + b"\n" + b"".join(b"line %d\n" % number for number in range(50)))
    assert read_tail(path, 3) == ["line 47", "line 48", "line 49"]
    assert read_tail(tmp_path / "none", 3) == []


def test_failed_report(tmp_path):
    """Failed items are listed with reason and shard, dead shards with why; the logs of their tasks are shown."""
    run = write_run(tmp_path, 3)
    run.write_receipt(receipt_of(0, state="partial", failed=2, job="7_0"))
    run.write_receipt(receipt_of(1))
    collector = Collector(run)
    status, _ = collector.collect()
    report = make_failed(status, collector.book.receipts)
    assert [(item.id, item.reason, item.shard) for item in report.items] == [
        ("1.2.0.0", "checksum", 0),
        ("1.2.0.1", "checksum", 0),
    ]
    assert "checksum: differs" in render_failed(report)[0]
    logs = run.logs(1)
    logs.mkdir(parents=True)
    log_path(logs, "7_0").write_text("the end\n")
    detail_path(logs, "7_0").write_bytes(frame({"t": 1, "event": "check", "item": "1.2.0.1"}, {"t": 2, "item": "x"}))
    lines = read_logs(logs, "7_0", [item.id for item in report.items])
    assert "the end" in lines
    assert sum('"event":"check"' in line for line in lines) == 1
    assert not any('"x"' in line for line in lines)
    assert "no such log" in read_logs(logs, "8_0", [])[0]
