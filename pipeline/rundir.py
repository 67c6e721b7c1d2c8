"""A run on shared storage: the one class that knows every path of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pipeline.atomic import storage_errors, write_atomic
from pipeline.config import parse_config
from pipeline.errors import ConfigError, UsageError
from pipeline.records import FORMAT, AttemptPlan, Heartbeat, Job, ManifestIndex, Receipt, RunRecord, Throttle
from pipeline.settings import Config

FAN_OUT = 1000
T = TypeVar("T")


def encode_record(record: object) -> bytes:
    """A record as JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def read_record(path: Path, kind: type[T]) -> T:
    """Read one JSON record.

    Raises
    ------
    ConfigError
        When it is missing, cut short, of another format, or not what it should be; the message names the file.
    """
    data = _read_bytes(path)
    if data is None:
        raise ConfigError(f"{path}: missing", hint="is this the right run directory?")
    return decode_record(data, kind, path)


def _read_bytes(path: Path) -> bytes | None:
    """A file's bytes; None when it is missing. Raises `ConfigError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check the folder's rights and mount") from None


def decode_record(data: bytes, kind: type[T], path: Path) -> T:
    """Decode one JSON record that came from `path`. Raises `ConfigError`."""
    try:
        record = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "the file was cut short or is not medhaul's; see docs/format.md"
        raise ConfigError(f"{path}: {error}", hint=hint) from None
    if getattr(record, "format", FORMAT) != FORMAT:
        raise ConfigError(f"{path}: format {record.format}, but this medhaul reads {FORMAT}", hint="use that version")  # type: ignore[attr-defined]
    return record


class RunDir:
    """Paths, and whole-file reads and writes, of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run. Raises `UsageError` when `path` is none."""
        run = cls(path.resolve())
        if not run.run_json.is_file():
            raise UsageError(f"{path}: not a run directory (no run.json)", hint="`medhaul plan CONFIG` makes one")
        return run

    # -- paths ---------------------------------------------------------------------------------------------------

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl.zst"

    @property
    def manifest_index(self) -> Path:
        return self.path / "manifest.index.json"

    @property
    def archives(self) -> Path:
        return self.path / "archives"

    @property
    def reduce_claim(self) -> Path:
        return self.path / "reduce.claim"

    def attempt_folder(self, attempt: int) -> Path:
        return self.path / "attempts" / f"{attempt:03d}"

    def parts_folder(self, shard: int) -> Path:
        return self.path / "parts" / f"{shard // FAN_OUT:02d}"

    def part_name(self, shard: int, life: int) -> str:
        return f"{shard:06d}.{life}.part"

    def journal(self, shard: int, life: int) -> Path:
        return self.parts_folder(shard) / f"{shard:06d}.{life}.journal"

    def shard_index_name(self, shard: int, life: int) -> str:
        return f"{shard:06d}.{life}.index.zst"

    def receipt(self, shard: int) -> Path:
        return self.path / "receipts" / f"{shard // FAN_OUT:02d}" / f"{shard:06d}.json"

    def heartbeat(self, shard: int) -> Path:
        return self.path / "heartbeats" / f"{shard // FAN_OUT:02d}" / f"{shard:06d}.json"

    def logs(self, attempt: int) -> Path:
        return Path(self.read_config().storage.logs) / self.path.name / f"{attempt:03d}"

    # -- run.json, manifest index ----------------------------------------------------------------------------------

    def read_run(self) -> RunRecord:
        return read_record(self.run_json, RunRecord)

    def read_config(self) -> Config:
        """The frozen config of the run. Raises `ConfigError`."""
        return parse_config(self.read_run().config, str(self.run_json))

    def read_manifest_index(self) -> ManifestIndex:
        """The way into the manifest. Raises `ConfigError` when it belongs to another manifest than run.json says."""
        index = read_record(self.manifest_index, ManifestIndex)
        expected = self.read_run().manifest_sha256
        if index.manifest_sha256 != expected:
            raise ConfigError(
                f"{self.manifest_index}: of manifest {index.manifest_sha256[:12]}, but run.json names {expected[:12]}",
                hint="files of two runs were mixed; plan anew under another run.name",
            )
        return index

    def read_citations(self) -> dict[str, str]:
        """DOI -> citation text, as the planner found them; empty when the source has none."""
        path = self.path / "citations.json"
        return read_record(path, dict[str, str]) if path.is_file() else {}

    def read_licences(self) -> dict[str, str]:
        """Text by `COLLECTION / LICENCE`, collection or (ISIC) licence, as the planner got it; empty: it got none."""
        path = self.path / "licences.json"
        return read_record(path, dict[str, str]) if path.is_file() else {}

    # -- attempts --------------------------------------------------------------------------------------------------

    def attempts(self) -> list[int]:
        """Numbers of all attempts that have a plan, ascending."""
        folder = self.path / "attempts"
        if not folder.is_dir():
            return []
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "plan.json").is_file())

    def write_plan(self, plan: AttemptPlan) -> None:
        write_atomic(self.attempt_folder(plan.attempt) / "plan.json", encode_record(plan))

    def read_plan(self, attempt: int) -> AttemptPlan:
        return read_record(self.attempt_folder(attempt) / "plan.json", AttemptPlan)

    def write_jobs(self, attempt: int, jobs: list[Job]) -> None:
        write_atomic(self.attempt_folder(attempt) / "jobs.json", encode_record(jobs))

    def read_jobs(self, attempt: int) -> list[Job]:
        path = self.attempt_folder(attempt) / "jobs.json"
        return read_record(path, list[Job]) if path.is_file() else []

    def write_throttle(self, attempt: int, throttle: Throttle) -> None:
        write_atomic(self.attempt_folder(attempt) / "throttle.json", encode_record(throttle))

    def read_throttle(self, attempt: int) -> Throttle | None:
        """How many tasks may run at a time, where that was changed while they were at work."""
        path = self.attempt_folder(attempt) / "throttle.json"
        return read_record(path, Throttle) if path.is_file() else None

    def write_cancelled(self, attempt: int) -> None:
        """Note that an attempt was cancelled: none of its tasks puts itself back into a queue from now on."""
        write_atomic(self.attempt_folder(attempt) / "cancelled", b"")

    def is_cancelled(self, attempt: int) -> bool:
        return (self.attempt_folder(attempt) / "cancelled").is_file()

    # -- receipts, heartbeats --------------------------------------------------------------------------------------

    def write_receipt(self, receipt: Receipt) -> None:
        write_atomic(self.receipt(receipt.shard), encode_record(receipt))

    def read_receipt(self, shard: int, manifest_sha256: str) -> Receipt | None:
        """A shard's receipt; None when there is none.

        Raises
        ------
        ConfigError
            When there is a file, but it is damaged or of another shard or manifest: it then proves nothing.
        """
        path = self.receipt(shard)
        data = _read_bytes(path)
        if data is None:
            return None
        receipt = decode_record(data, Receipt, path)
        if receipt.shard != shard or receipt.manifest_sha256 != manifest_sha256:
            raise ConfigError(f"{path}: of another shard or run", hint="`resume` does the shard again")
        return receipt

    def receipt_shards(self) -> set[int]:
        """The shards that have a receipt file, by listing only: no file is opened."""
        return set(self._numbered("receipts", r"(\d{6,})\.json"))

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        write_atomic(self.heartbeat(heartbeat.shard), msgspec.json.encode(heartbeat), durable=False)

    def read_heartbeats(self) -> dict[int, Heartbeat]:
        """The last words of all tasks that left any; a torn one is left out, since it proves nothing anyway."""
        found = {}
        for shard in self._numbered("heartbeats", r"(\d{6,})\.json"):
            try:
                found[shard] = msgspec.json.decode(self.heartbeat(shard).read_bytes(), type=Heartbeat)
            except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
        return found

    def lives(self, shard: int) -> list[int]:
        """Numbers of the lives of a shard's task that opened a journal, ascending."""
        folder = self.parts_folder(shard)
        if not folder.is_dir():
            return []
        found = (re.fullmatch(rf"{shard:06d}\.(\d+)\.journal", p.name) for p in folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _numbered(self, folder: str, pattern: str) -> Iterator[int]:
        root = self.path / folder
        if not root.is_dir():
            return
        for group in sorted(root.iterdir()):
            if not group.is_dir():
                continue
            with storage_errors(group):
                for entry in group.iterdir():
                    match = re.fullmatch(pattern, entry.name)
                    if match:
                        yield int(match[1])


def freeze_config(config: Config) -> dict[str, Any]:
    """The config as plain JSON data, for run.json."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config, enc_hook=_plain))
    return plain


def _plain(value: object) -> object:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise NotImplementedError(type(value))
