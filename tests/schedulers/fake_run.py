"""Runs that need no network: a run directory with a manifest index, and a fake `medhaul` for their tasks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard

from pipeline.archive.index import ArchiveLine
from pipeline.config import parse_config
from pipeline.records import (
    FORMAT,
    ArchiveEntry,
    FailedItem,
    Heartbeat,
    ManifestIndex,
    PartUse,
    Receipt,
    RunRecord,
    ShardEntry,
)
from pipeline.rundir import RunDir, encode_record, freeze_config
from pipeline.schedulers.submission import SCRIPTS

SHA = "5" * 64
SHARD_BYTES = 1000


def receipt_of(shard: int, *, state: str = "complete", failed: int = 0, **changes: object) -> Receipt:
    """A receipt of a shard of `write_run`, with one part of 100 bytes."""
    receipt = Receipt(
        format=FORMAT,
        shard=shard,
        manifest_sha256=SHA,
        state=state,
        entries=2,
        archived=2 - failed,
        failed=[
            FailedItem(2 * shard + n, 0, f"1.2.{shard}.{n}", f"c/p/s/CT_1.2.{shard}.{n}", "checksum", "differs", False)
            for n in range(failed)
        ],
        files=4,
        bytes=SHARD_BYTES,
        tar_bytes=2048,
        packed_bytes=100,
        index=f"{shard:06d}.0.index.zst",
        index_sha256="0" * 64,
        parts=[PartUse(f"{shard:06d}.0.part", 100, "0" * 64)],
        attempt=1,
        job="7_0",
        node="n1",
        life=0,
        started=1.0,
        ended=2.0,
        downloaded_bytes=SHARD_BYTES,
        requests=4,
        retries=0,
        cpu_seconds=0.1,
        max_rss=1,
        medhaul="0",
        liblzma="5",
    )
    return msgspec.structs.replace(receipt, **changes)


def heartbeat_of(shard: int, **changes: object) -> Heartbeat:
    """The last words of a shard half done at 50 bytes per second."""
    heartbeat = Heartbeat(
        shard=shard, attempt=1, job="7_0", node="n1", pid=1, time=110.0, started=100.0, phase="working",
        entries=2, entries_done=1, failed=0, frames=2, frames_done=1, bytes=SHARD_BYTES, bytes_downloaded=500,
        bytes_packed=250,
    )  # fmt: skip
    return msgspec.structs.replace(heartbeat, **changes)


def make_index(shards: int, archives: int = 1) -> ManifestIndex:
    """An index of `shards` shards of two items each, spread over `archives`."""
    each = -(-shards // archives)
    return ManifestIndex(
        format=FORMAT,
        manifest_sha256=SHA,
        source="idc",
        release="25",
        columns=[],
        archives=[
            ArchiveEntry(
                name=f"a{number}", items=2 * each, files=4 * each, bytes=SHARD_BYTES * each, first_shard=number * each,
                shards=min(each, shards - number * each), first_frame=number * each, frames=each,
            )
            for number in range(archives)
        ],
        shards=[
            ShardEntry(
                shard=shard, archive=f"a{shard // each}", offset=0, length=1, sha256="0" * 64, entries=2, items=2,
                files=4, bytes=SHARD_BYTES, first_frame=shard, frames=1,
            )
            for shard in range(shards)
        ],
    )  # fmt: skip


def write_run(root: Path, shards: int, *, archives: int = 1, tables: dict[str, object] | None = None) -> RunDir:
    """A planned run of `shards` shards below `root`; `tables` are added to its config."""
    config = parse_config(
        {
            "run": {"name": "r1"},
            "storage": {"root": str(root), "logs": str(root / "logs")},
            "select": {"idc": {"content": "both"}},
            **(tables or {}),
        },
        "test",
    )
    index = make_index(shards, archives)
    run = RunDir(root / "r1")
    run.path.mkdir(parents=True)
    record = RunRecord(
        format=FORMAT, name="r1", created="", medhaul="0", liblzma="5", python="3", source="idc", release="25",
        manifest_sha256=SHA, items=2 * shards, files=4 * shards, bytes=SHARD_BYTES * shards, shards=shards,
        config=freeze_config(config),
    )  # fmt: skip
    run.run_json.write_bytes(encode_record(record))
    run.manifest_index.write_bytes(encode_record(index))
    (root / "indexes").mkdir()  # for the fake's reduce
    for archive in index.archives:
        (root / "indexes" / f"{archive.name}.tar.xz.index.jsonl.zst").write_bytes(encode_index(archive.name))
    return run


def encode_index(name: str, *, state: str = "complete", size: int = 7) -> bytes:
    """The index of an archive of `size` bytes, as far as its first line."""
    line = ArchiveLine(
        format=FORMAT, name=name, items=2, failed=0, files=4, bytes=1, frames=1, tar_bytes=1, path="", block_bytes=1,
        group_bytes=1, cut_bytes=1, portable=False, liblzma="5", state=state, size=size, manifest_sha256=SHA,
    )  # fmt: skip
    return zstandard.ZstdCompressor().compress(msgspec.json.encode(line) + b"\n")


def write_archive(run: RunDir, name: str, state: str = "complete") -> None:
    """An archive with its index."""
    run.archives.mkdir(exist_ok=True)
    (run.archives / f"{name}.tar.xz").write_bytes(b"archive")
    (run.archives / f"{name}.tar.xz.index.jsonl.zst").write_bytes(encode_index(name, state=state))


def write_part(run: RunDir, shard: int, length: int = 100) -> None:
    """The part file and the shard index that `receipt_of` relies on."""
    path = run.parts_folder(shard) / f"{shard:06d}.0.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * length)
    path.with_suffix(".index.zst").touch()


@dataclass
class Fake:
    """The fake command's folder, and the environment that makes the scripts find it."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """An environment with the documented setting, and variables of a surrounding Slurm job that must not leak."""
        return {
            **os.environ,
            "MEDHAUL_ENV": str(self.folder / "environment.sh"),
            "SLURM_JOB_ID": "666",
            "SLURM_RESTART_COUNT": "9",
            "SBATCH_TIMELIMIT": "1",
        }

    def behave(self, **words: list[str]) -> None:
        """Set what shards do, as `s3=["exit 1"]`, and the reduce job, as `reduce=[...]`."""
        named = {key.removeprefix("s"): value for key, value in words.items() if key != "reduce"}
        named["reduce"] = words.get("reduce", ["reduce"])
        (self.folder / "behaviour.json").write_text(json.dumps(named))

    def trace(self, who: object, life: int = 0) -> dict[str, object] | None:
        """What a life of a shard, or the reduce job, noted; None when it did not run."""
        path = self.folder / "trace" / f"{who}.{life}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def end_children(self) -> None:
        """Kill what tasks of a failed test, or of a killed controller, left behind."""
        for path in (self.folder / "trace").glob("[!.]*.json"):
            facts = json.loads(path.read_text())
            for key in ("pid", "child"):
                if key in facts:
                    end_process(int(facts[key]))

    def wait_trace(self, who: object, key: str = "pid", life: int = 0) -> dict[str, object]:
        """Wait for a life to note `key`."""
        wait_until(lambda: key in (self.trace(who, life) or {}))
        found = self.trace(who, life)
        assert found is not None
        return found


def make_fake(folder: Path) -> Fake:
    """Put a fake `medhaul` and the file that makes it available into `folder`."""
    (folder / "bin").mkdir(parents=True)
    script = Path(shutil.copy(Path(__file__).with_name("fake_medhaul.py"), folder))
    command = folder / "bin" / "medhaul"
    command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", "-E", str(script)])} "$@"\n')
    command.chmod(0o755)
    (folder / "environment.sh").write_text(f'export PATH={shlex.quote(str(folder / "bin"))}:"$PATH"\n')
    (folder / "receipt.json").write_bytes(msgspec.json.encode(receipt_of(0)))
    fake = Fake(folder)
    fake.behave()
    return fake


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def process_lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(b")") + 2 :][:1] not in {b"Z", b"X"}


def end_process(pid: int) -> None:
    """Kill one process of a test, if it is still there."""
    if process_lives(pid):
        os.kill(pid, signal.SIGKILL)


__all__ = [
    "SCRIPTS",
    "SHA",
    "Fake",
    "end_process",
    "heartbeat_of",
    "make_fake",
    "make_index",
    "process_lives",
    "receipt_of",
    "wait_until",
    "write_archive",
    "write_part",
    "write_run",
]
