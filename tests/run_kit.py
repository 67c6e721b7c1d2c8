"""Runs in miniature for tests: a source of made-up items, a fetcher that hands out made-up DICOM, a whole shard."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from pipeline.config import parse_config
from pipeline.errors import InterruptedRunError, ItemError
from pipeline.model import Entry, IdcLocation, Item, RemoteFile
from pipeline.plan.planner import Plan, plan_run
from pipeline.plan.source import Selected
from pipeline.records import Receipt
from pipeline.rundir import RunDir
from pipeline.settings import Config
from pipeline.sources.base import Body, Received, cut_files
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.resources import Workers
from pipeline.task.shard import Life, ShardTask, Stop

SC_IMAGE = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
BUCKET = "idc-open-data"


# -- DICOM ------------------------------------------------------------------------------------------------------------


def _element(tag: int, vr: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr == "OW":
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def make_dicom(series: str, instance: str, pixels: int = 600, seed: int = 0) -> bytes:
    """A whole 16-bit image of `pixels` pixels in one row."""
    meta = _element(0x00020002, "UI", SC_IMAGE.encode()) + _element(0x00020003, "UI", instance.encode())
    meta += _element(0x00020010, "UI", EXPLICIT_LE.encode())
    meta = _element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    data = _element(0x00080016, "UI", SC_IMAGE.encode()) + _element(0x00080018, "UI", instance.encode())
    data += _element(0x00080060, "CS", b"OT") + _element(0x00100020, "LO", b"P1")
    data += _element(0x0020000D, "UI", b"1.2.3") + _element(0x0020000E, "UI", series.encode())
    data += _element(0x00280002, "US", struct.pack("<H", 1)) + _element(0x00280004, "CS", b"MONOCHROME2")
    data += _element(0x00280010, "US", struct.pack("<H", 1)) + _element(0x00280011, "US", struct.pack("<H", pixels))
    data += _element(0x00280100, "US", struct.pack("<H", 16))
    data += _element(0x7FE00010, "OW", hashlib.shake_128(f"{instance} {seed}".encode()).digest(2 * pixels))
    return bytes(128) + b"DICM" + meta + data


def make_series(number: int, files: int, pixels: int = 600) -> tuple[Item, list[bytes]]:
    """A series of `files` images, and its item as a planner would see it."""
    uid = f"1.2.826.0.1.{number + 1}"
    bodies = [make_dicom(uid, f"{uid}.{n + 1}", pixels) for n in range(files)]
    item = make_item(number, files, sum(map(len, bodies)), uid=uid)
    return item, bodies


def make_item(number: int, files: int = 1, size: int = 1000, **changes: Any) -> Item:
    """An item whose path sorts by its number."""
    uid = changes.pop("uid", f"1.2.826.0.1.{number + 1}")
    item = Item(
        id=uid,
        path=f"c/p{number:05d}/s/OT_{uid}",
        files=files,
        bytes=size,
        location=IdcLocation(BUCKET, f"uuid-{number:05d}"),
        licence="CC BY 4.0",
        meta=msgspec.Raw(msgspec.json.encode([uid, "10.1/x", None])),
    )
    return msgspec.structs.replace(item, **changes)


# -- planning ---------------------------------------------------------------------------------------------------------


class FakeSource:
    """A source that yields what it was given."""

    name = "idc"
    release = "25"

    def __init__(
        self, selected: Iterable[Selected | Item], columns: tuple[str, ...] = ("id", "source_DOI", "x")
    ) -> None:
        self._selected = [each if isinstance(each, Selected) else Selected("c", each) for each in selected]
        self.columns = list(columns)

    def select(self) -> Iterator[Selected]:
        yield from self._selected

    def citations(self) -> dict[str, str]:
        return {"10.1/x": "A paper, 2020."}


def make_config(root: Path, **tables: dict[str, Any]) -> Config:
    """A config with small frames; `tables` are added, by table name."""
    archive = {"group_bytes": 5000, "cut_bytes": 65536, "block_bytes": 65536}
    data: dict[str, Any] = {
        "run": {"name": "r"},
        "storage": {"root": str(root / "runs"), "logs": str(root / "logs")},
        "select": {"idc": {"content": "both"}},
        "task": {"item_deadline": 60, "start_jitter": 0, "allow_shared_scratch": True},
        "archive": archive,
    }
    for name, table in tables.items():
        data[name] = {**data.get(name, {}), **table}
    return parse_config(data, "test")


def make_plan(root: Path, items: Iterable[Selected | Item], *, dry_run: bool = False, **tables: dict[str, Any]) -> Plan:
    """Plan a run of these items."""
    return plan_run(make_config(root, **tables), FakeSource(items), dry_run=dry_run, on_progress=lambda _: None)


# -- fetching ---------------------------------------------------------------------------------------------------------


class FakeFetcher:
    """Hands out bodies from memory. `faults` by item id: called instead of handing out each body; may raise."""

    def __init__(self, bodies: dict[str, list[bytes]]) -> None:
        self.bodies = bodies
        self.list_faults: dict[str, Callable[[], None]] = {}
        self.faults: dict[str, Callable[[bytes], bytes]] = {}
        self.fetched: list[str] = []
        self._lock = threading.Lock()

    def list_bodies(self, entry: Entry, deadline: float) -> list[Body]:
        item = entry.item
        if item.id in self.list_faults:
            self.list_faults[item.id]()
        bodies = self.bodies[item.id]
        counts = cut_files([len(body) for body in bodies], entry.pieces)
        begin = sum(counts[: entry.piece])
        return [
            Body(
                entry,
                RemoteFile(f"{item.location.uuid}/{n:05d}.dcm", len(bodies[n]), ""),
                f"{item.location.uuid}/{n}",
            )
            for n in range(begin, begin + counts[entry.piece])
        ]

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        data = self.bodies[body.entry.item.id][int(body.file.key.rpartition("/")[2].partition(".")[0])]
        with self._lock:
            self.fetched.append(body.file.key)
        fault = self.faults.get(body.entry.item.id)
        if fault is not None:
            data = fault(data)
        path.write_bytes(data)
        md5, sha256 = hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest()
        return Received(path, len(data), md5, sha256, ("md5", "size"), "idc:test")


def refuse(reason: str, *, transient: bool = False) -> Callable[..., Any]:
    """A fault that fails an item with this reason."""

    def fault(*_: object) -> bytes:
        raise ItemError(reason, f"made up: {reason}", transient=transient)

    return fault


def interrupt(*_: object) -> bytes:
    """A fault as of a task that is told to stop."""
    raise InterruptedRunError("stopped")


# -- whole shards -----------------------------------------------------------------------------------------------------


def do_shard(
    run: RunDir, shard: int, fetcher: FakeFetcher, scratch: Path, *, cores: int = 1, blocks: int = 4, attempt: int = 1
) -> Receipt:
    """Do a shard as its task would."""
    log = DetailLog(scratch / "log" / f"{shard}.zst")
    task = ShardTask(
        run,
        run.read_config(),
        shard,
        life=Life(attempt, "7_0", "n1", 1.0),
        stop=Stop(),
        log=log,
        workers=Workers(cores, blocks, 2),
        second_round_wait=0.0,
    )
    adopted = task.adopt()
    cache = ScratchCache(scratch, f"shard-{shard}") if task.to_do() else None
    try:
        return task.run(fetcher, cache, adopted)
    finally:
        if cache is not None:
            cache.close(keep=False)
        log.close()


class MadeRun:
    """A planned run with its bodies, ready for its shards to be done."""

    def __init__(self, root: Path, counts: Iterable[int], *, pixels: int = 600, **tables: dict[str, Any]) -> None:
        self.root = root
        made = [make_series(number, files, pixels) for number, files in enumerate(counts)]
        self.items = [item for item, _ in made]
        self.fetcher = FakeFetcher({item.id: bodies for item, bodies in made})
        plan = make_plan(root, self.items, **tables)
        assert plan.run is not None
        self.run: RunDir = plan.run
        self.shards = plan.shards

    def do(self, *shards: int, **options: Any) -> list[Receipt]:
        """Do the given shards, or all."""
        return [
            do_shard(self.run, shard, self.fetcher, self.root / "scratch", **options)
            for shard in (shards or range(self.shards))
        ]


# -- kills ------------------------------------------------------------------------------------------------------------

KILLED, DONE, FAULT = 99, 0, 98


def run_and_kill(action: Callable[[], object], at: int) -> tuple[int, int]:
    """Run `action` in a child process that ends without a word at the `at`-th line of our code (0: never).

    Returns (`KILLED`, `DONE` or `FAULT`, lines that ran).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ran = 0

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
            nonlocal ran
            if "/pipeline/" not in frame.f_code.co_filename:
                return None
            if event == "line":
                ran += 1
                if ran == at:
                    os._exit(KILLED)
            return trace

        code = FAULT
        try:
            sys.settrace(trace)
            action()
            code = DONE
        except BaseException:  # noqa: BLE001 - the border of the child process
            traceback.print_exc()
        finally:
            sys.settrace(None)
            os.write(writer, b"%d" % ran)
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as file:
        ran = int(file.read() or b"0")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), ran
