"""The reduce job: judge from receipts, join what can be joined, say what is missing, remove parts that have served."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from typing import NamedTuple

from pipeline.archive.index import ArchiveLine
from pipeline.atomic import storage_errors
from pipeline.errors import ItemsFailedError
from pipeline.manifest import Manifest, check_whole
from pipeline.records import ArchiveEntry, Receipt
from pipeline.reduce.claim import sole_reducer
from pipeline.reduce.evidence import (
    DamagedPartError,
    ShardProof,
    find_duplicates,
    prove_shard,
    set_aside_receipt,
)
from pipeline.reduce.finished import archive_file, read_finished
from pipeline.reduce.join import ArchiveJoin
from pipeline.reduce.tables import write_checksums, write_tables
from pipeline.rundir import RunDir
from pipeline.settings import Config
from pipeline.units import render_size

logger = logging.getLogger("medhaul.reduce")
SHOWN = 20


class Outcome(NamedTuple):
    """What reduce did with one archive: its index line, or the problems that stand in the way."""

    archive: ArchiveEntry
    line: ArchiveLine | None
    problems: list[str]


def list_problems(proofs: list[ShardProof]) -> list[str]:
    """One line for each shard or item that keeps an archive from being complete. Pure."""
    problems = []
    for proof in proofs:
        if proof.receipt is None:
            problems.append(f"shard {proof.shard}: {proof.problem}")
        else:
            problems += [f"{item.id}: {item.reason}: {item.message}" for item in proof.receipt.failed]
    return problems


def reduce_run(run: RunDir, *, allow_partial: bool, on_progress: Callable[[str, int, int], None]) -> list[Outcome]:
    """Join every archive of a run that can be joined. Safe to run again at any point.

    Raises
    ------
    ItemsFailedError
        When an archive lacks shards or items and `allow_partial` is not given: with the list and the resume command;
        and when a partial archive was written.
    ConfigError
        When the run's own files are damaged.
    StorageError
        From the first archive for which there is no room; finished ones stay.
    """
    config = run.read_config()
    manifest = Manifest(run)
    check_whole(run)
    with sole_reducer(run):
        return _reduce_all(run, config, manifest, allow_partial=allow_partial, on_progress=on_progress)


def _reduce_all(
    run: RunDir,
    config: Config,
    manifest: Manifest,
    *,
    allow_partial: bool,
    on_progress: Callable[[str, int, int], None],
) -> list[Outcome]:
    remove_stale(run)
    citations = run.read_citations()
    outcomes = []
    sums: dict[str, str] = {}
    for archive in manifest.index.archives:
        try:
            outcome = _reduce_archive(
                run, manifest, archive, config, citations, allow_partial=allow_partial, on_progress=on_progress
            )
        except DamagedPartError as error:  # this archive's trouble, not the others'
            set_aside_receipt(run, error.shard)
            outcome = Outcome(archive, None, [f"shard {error.shard}: {error}; its receipt was set aside"])
        outcomes.append(outcome)
        if outcome.line is not None:
            sums[archive_file(run, archive.name).name] = outcome.line.sha256
    if sums:
        write_checksums(run, sums)
    for outcome in outcomes:
        finished = read_finished(run, outcome.archive.name, manifest.sha256)
        if finished is not None and finished.state == "complete":
            remove_parts(run, outcome.archive)
    _judge(run, outcomes)
    return outcomes


def _reduce_archive(
    run: RunDir,
    manifest: Manifest,
    archive: ArchiveEntry,
    config: Config,
    citations: dict[str, str],
    *,
    allow_partial: bool,
    on_progress: Callable[[str, int, int], None],
) -> Outcome:
    finished = read_finished(run, archive.name, manifest.sha256)
    if finished is not None and finished.state == "complete":
        logger.info("%s: complete already", archive.name)
        return Outcome(archive, finished, [])
    shards = range(archive.first_shard, archive.first_shard + archive.shards)
    proofs = [prove_shard(run, shard, manifest.sha256) for shard in shards]
    problems = list_problems(proofs)
    receipts: list[Receipt] = [proof.receipt for proof in proofs if proof.receipt is not None]
    duplicates = list(find_duplicates(run, manifest, receipts))
    problems += [f"{item.id}: {item.reason}: {item.message}" for item in duplicates]
    if problems and not allow_partial:
        return Outcome(archive, None, problems)
    total = sum(receipt.packed_bytes for receipt in receipts)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        on_progress(archive.name, done, total)

    missing = [proof.shard for proof in proofs if proof.receipt is None]
    with ArchiveJoin(run, config, manifest, archive, receipts, missing, duplicates, progress) as join:
        if len(join.failed) == archive.items:
            return Outcome(archive, None, problems)
        joined = join.write_archive()
        write_tables(run, manifest, archive, joined.failed, citations)
        join.write_index()
    logger.info(
        "%s: %s, %d items, %d files, %s, SHA-256 %s", archive_file(run, archive.name), joined.line.state,
        joined.line.items - joined.line.failed, joined.line.files, render_size(joined.line.size), joined.line.sha256,
    )  # fmt: skip
    return Outcome(archive, joined.line, problems)


def remove_parts(run: RunDir, archive: ArchiveEntry) -> None:
    """Remove the parts, journals and shard indexes of a complete, verified archive, and what killed tasks left."""
    for shard in range(archive.first_shard, archive.first_shard + archive.shards):
        for path in run.parts_folder(shard).glob(f"{shard:06d}.*"):
            path.unlink(missing_ok=True)
        for folder in (run.parts_folder(shard), run.receipt(shard).parent, run.heartbeat(shard).parent):
            for path in folder.glob(f".{shard:06d}.*.tmp"):
                path.unlink(missing_ok=True)


def remove_stale(run: RunDir) -> None:
    """Remove the temporary files of a reduce that was killed."""
    with storage_errors(run.archives):
        for path in run.archives.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _judge(run: RunDir, outcomes: list[Outcome]) -> None:
    problems = [(o.archive.name, problem) for o in outcomes for problem in o.problems]
    if not problems:
        return
    lines = [f"  {name}: {problem}" for name, problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more: medhaul failed {shlex.quote(str(run.path))}")
    refused = [o.archive.name for o in outcomes if o.line is None]
    partial = [o.archive.name for o in outcomes if o.line is not None and o.problems]
    said = []
    if refused:
        said.append(f"not joined, since incomplete: {', '.join(refused)}")
    if partial:
        said.append(f"joined without what failed: {', '.join(partial)}")
    raise ItemsFailedError(
        "; ".join(said) + "\n" + "\n".join(lines),
        hint=f"medhaul resume {shlex.quote(str(run.path))}"
        + ("" if partial else f"   (or: medhaul reduce --allow-partial {shlex.quote(str(run.path))})"),
    )
