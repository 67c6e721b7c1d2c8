"""Hauls for tests: a config, real `medhaul` processes, and what came of them."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.archive.index import ArchiveLine, FailedLine, FileLine, ItemLine, read_lines
from pipeline.demo.data import DemoData
from pipeline.records import FrameRecord, Receipt
from pipeline.rundir import RunDir
from pipeline.task.part import iter_journal

SOURCE = Path(__file__).parents[2]
SABOTEUR = Path(__file__).with_name("saboteur.py")
MEASURED = Path(__file__).with_name("measured.py")
# Small frames, cuts and blocks, so that little data has many of each; no waits that only politeness needs.
ARCHIVE = {"group_bytes": "500 kB", "cut_bytes": "1 MB", "block_bytes": "256 KiB"}
TASK = {
    "cores": 2,
    "memory": "512 MiB",
    "allow_shared_scratch": True,
    "start_jitter": 0,
    "retry_base": 0.01,
    "second_round_wait": 0.05,
    "attempts": 4,
    "stall": 1,
}
SECONDS = 120
PARALLEL = 2


class Ended(NamedTuple):
    """A process that has ended; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str


class Sabotage(NamedTuple):
    """What `saboteur.py` does to a process: `signal` (a name, or `FLIP`) at the `count`-th passing of `point`."""

    point: str
    count: int
    signal: str


class Member(NamedTuple):
    """A file of an archive."""

    path: str
    size: int
    sha256: str


class Haul:
    """One run of one config, below a folder of its own."""

    def __init__(
        self,
        folder: Path,
        index: Path | str,
        endpoint: str,
        *,
        mirror: str = "",
        select: Mapping[str, Any] | None = None,
        archive: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        shards: int = 1,
        connections: int = 8,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "config.toml"
        self.scratch = folder / "scratch"
        self.run = RunDir(folder / "runs" / "haul")
        self.settings: dict[str, Any] = {
            "run": {"name": "haul"},
            "storage": {"root": str(folder / "runs")},
            "select.idc": {"content": "both", **(select or {})},
            "sources.idc": {"index": str(index), "s3_endpoint": endpoint, "mirror_endpoint": mirror},
            "archive": {**ARCHIVE, **(archive or {})},
            "shards": {"count": shards},
            "limits": {"connections": connections, "tasks": PARALLEL},
            "task": {**TASK, "scratch": str(self.scratch), **(task or {})},
        }

    # -- commands ------------------------------------------------------------------------------------------------

    def plan(self) -> Ended:
        """Write the config and plan; planning again takes over what changed in `settings`."""
        self.config.write_text(render_toml(self.settings))
        ended = run_medhaul("plan", self.config)
        assert ended.code == 0, ended.err
        return ended

    @property
    def shards(self) -> range:
        """The shards of the planned run."""
        return range(len(json.loads(self.run.manifest_index.read_bytes())["shards"]))

    def task(self, shard: int = 0, sabotage: Sabotage | None = None, **options: Any) -> Ended:
        """Do one shard in a process of its own."""
        return run_medhaul("task", self.run.path, "--shard", shard, sabotage=sabotage, **options)

    def tasks(self) -> list[Ended]:
        """Do all shards, two at a time."""
        with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(self.task, self.shards))

    def reduce(self, *options: str, sabotage: Sabotage | None = None) -> Ended:
        """Join the parts."""
        return run_medhaul("reduce", self.run.path, *options, sabotage=sabotage)

    def finish(self) -> dict[str, str]:
        """Do all shards and reduce; all must end well. Returns the archives' SHA-256 by name."""
        for ended in self.tasks():
            assert ended.code == 0, ended.err
        ended = self.reduce()
        assert ended.code == 0, ended.err
        return self.sums()

    def all(self) -> dict[str, str]:
        """Plan, do all shards, reduce; all must end well. Returns the archives' SHA-256 by name."""
        self.plan()
        return self.finish()

    # -- results -------------------------------------------------------------------------------------------------

    def archives(self) -> list[Path]:
        """The archives, by name."""
        return sorted(self.run.archives.glob("*.tar.xz"))

    def sums(self) -> dict[str, str]:
        """SHA-256 of each archive, read from the disk; SHA256SUMS must say the same of all files beside it."""
        stated = dict(
            reversed(line.split("  ", 1)) for line in (self.run.archives / "SHA256SUMS").read_text().splitlines()
        )
        found = {path.name: file_sha256(path) for path in self.run.archives.iterdir() if path.name != "SHA256SUMS"}
        assert stated == found
        return {name: sha256 for name, sha256 in found.items() if name.endswith(".tar.xz")}

    def members(self) -> Iterator[Member]:
        """Every file of every archive, read by Python's tarfile; without the catalogues."""
        for path in self.archives():
            with tarfile.open(path, "r:xz") as archive:
                for info in archive:
                    assert info.isreg()
                    if not info.name.startswith(".medhaul/"):
                        data = archive.extractfile(info)
                        assert data is not None
                        yield Member(info.name, info.size, hashlib.file_digest(data, "sha256").hexdigest())

    def check_members(self, data: DemoData, *, without: Sequence[str] = ()) -> None:
        """Compare what the archives hold with the demo data, less the series `without`: each file once, no other."""
        expected = Counter(
            (series.uid, file.sop_instance_uid, file.size, file.sha256)
            for series in data.series
            if series.uid not in without
            for file in series.files
        )
        found = Counter(
            (Path(path).parent.name.partition("_")[2], Path(path).stem, size, sha256)
            for path, size, sha256 in self.members()
        )
        assert found == expected

    def lines(self) -> Iterator[ArchiveLine | ItemLine | FileLine | FailedLine]:
        """The lines of all indexes, without those of frames."""
        for path in self.archives():
            with path.with_name(path.name + ".index.jsonl.zst").open("rb") as file:
                for line in read_lines(file, path.name):
                    if isinstance(line, ArchiveLine | ItemLine | FileLine | FailedLine):
                        yield line

    def receipts(self) -> list[Receipt]:
        """All receipts, in the order of shards."""
        sha256 = self.run.read_run().manifest_sha256
        found = (self.run.read_receipt(shard, sha256) for shard in self.shards)
        return [receipt for receipt in found if receipt is not None]

    def failures(self) -> dict[str, str]:
        """Reason of every failed item, by id, as the receipts say."""
        return {item.id: item.reason for receipt in self.receipts() for item in receipt.failed}

    def journaled_keys(self, shard: int = 0) -> set[str]:
        """Keys of the objects in frames that a journal of the shard lists as finished."""
        return {
            file.key
            for life in self.run.lives(shard)
            for _, _, record in iter_journal(io.BytesIO(self.run.journal(shard, life).read_bytes()))
            if isinstance(record, FrameRecord)
            for piece in record.pieces
            for file in piece.files
        }

    def leftovers(self) -> list[Path]:
        """Temporary files, parts and raw files that should be gone after a complete reduce."""
        return [
            path
            for root in (self.run.path, self.scratch)
            for path in root.rglob("*")
            if path.is_file() and (path.suffix == ".tmp" or root == self.scratch or "parts" in path.parts)
        ]


def run_medhaul(
    *arguments: object,
    **options: Any,
) -> Ended:
    """Run one command to its end; `options` are those of `start_medhaul` and of `subprocess.Popen`."""
    process = start_medhaul(*arguments, **options)
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{arguments} did not end within {SECONDS} s:\n{err}") from None
    return Ended(process.returncode, out, err)


def start_medhaul(
    *arguments: object,
    through: Path | None = None,
    sabotage: Sabotage | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start one command, perhaps through a script that runs it in its own process."""
    command = [sys.executable, *([str(through)] if through else ["-m", "pipeline.cli.main"])]
    if sabotage is not None:
        command = [sys.executable, str(SABOTEUR), sabotage.point, str(sabotage.count), sabotage.signal]
    # Neither a scheduler around the tests nor the settings of who runs them may show in a task.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MEDHAUL"))}
    clean = {name: value for name, value in clean.items() if not name.lower().endswith("_proxy")}
    path = os.pathsep.join(filter(None, (str(SOURCE), clean.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**clean, "PYTHONPATH": path, **(environ or {})},
        **options,
    )


def render_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML, of which JSON's strings, numbers, booleans and lists are a part."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line_error(ended: Ended) -> str:
    """The message of a command that failed: one line and a hint, and no traceback."""
    assert "Traceback" not in ended.err
    said = [line for line in ended.err.splitlines() if line.startswith("medhaul: ")]
    assert len(said) == 1, ended.err
    assert "a fault in medhaul" not in said[0]
    return said[0]
