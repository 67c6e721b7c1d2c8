"""The detail log: it never gets in the way of the work, and a torn tail costs only what was not flushed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.task import detail
from pipeline.task.detail import DetailLog


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a log, frame after frame."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
        return [json.loads(line) for line in reader.read().splitlines()]


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    """Kind, time and fields of each event stand in a line, over several lives of the log."""
    path = tmp_path / "a" / "x.zst"
    for life in range(3):
        log = DetailLog(path)
        for number in range(1500):
            log.event("response", life=life, number=number)
        log.record({"event": "retry", "delay": 0.5})
        log.close()
        assert (log.counts["response"], log.counts["retry"]) == (1500, 1)
    lines = read(path)
    assert [(line["life"], line["number"]) for line in lines if line["event"] == "response"] == [
        (life, number) for life in range(3) for number in range(1500)
    ]
    assert all(line["t"] > 0 for line in lines)


class Strange:
    """A value that JSON does not know."""


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=5))
def test_no_value_makes_an_event_raise(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    """Lone surrogates of a file name, huge numbers, odd objects: noted somehow, one line each."""
    path = tmp_path_factory.mktemp("d") / "x.zst"
    log = DetailLog(path)
    for record in records:
        log.record({"event": "any", **record})
    log.event("odd", path=Path("/x"), error=OSError(5, "x"), strange=Strange(), key={1: 2}, name="\udcff", number=2**70)
    log.close()
    lines = read(path)
    assert len(lines) == len(records) + 1
    assert lines[-1]["event"] == "odd"


def test_a_disk_that_is_full_does_not_stop_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are lost, counted as such, and nothing is raised."""
    log = DetailLog(tmp_path / "x.zst")

    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log, "_file", Full())
    for number in range(3000):
        log.event("x", number=number)
    log.close()
    assert log.counts["x"] == 3000
    assert log.counts["log-failed:No space left on device"] >= 3


def test_an_event_after_the_end_is_not_raised(tmp_path: Path) -> None:
    """A thread that speaks too late is not heard, and does not fall over."""
    log = DetailLog(tmp_path / "x.zst")
    log.close()
    for number in range(1200):
        log.event("late", number=number)
    log.close()
    assert log.counts["late"] == 1200


def test_lines_are_on_disk_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a slow task is flushed by time, so that a kill costs seconds of it."""
    log = DetailLog(tmp_path / "x.zst")
    log.event("one")
    now = detail.time.monotonic()
    monkeypatch.setattr(detail.time, "monotonic", lambda: now + 11)
    log.event("two")
    assert [line["event"] for line in read(tmp_path / "x.zst")] == ["one", "two"]
    data = (tmp_path / "x.zst").read_bytes()
    (tmp_path / "x.zst").write_bytes(data + b"\x28\xb5\x2f\xfd")  # a torn frame behind it
    assert [line["event"] for line in read(tmp_path / "x.zst")] == ["one", "two"]


def test_a_log_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A wrong logs folder is told before the work begins."""
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError):
        DetailLog(tmp_path / "f" / "x.zst")
