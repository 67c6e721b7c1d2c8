"""What lies beside an archive: metadata, licences, citations, failures, checksums."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.archive.index import FailedLine
from pipeline.atomic import atomic_file, write_atomic
from pipeline.manifest import Manifest, file_sha256
from pipeline.model import Item
from pipeline.records import ArchiveEntry
from pipeline.rundir import RunDir


def archived_items(manifest: Manifest, archive: ArchiveEntry, failed_paths: set[str]) -> Iterator[Item]:
    """The items that an archive holds, in order, each once. Paths tell items apart; an index may give an id twice."""
    shards = range(archive.first_shard, archive.first_shard + archive.shards)
    for _, entry in manifest.all_entries(shards):
        if entry.piece == 0 and entry.item.path not in failed_paths:
            yield entry.item


def write_tables(
    run: RunDir,
    manifest: Manifest,
    archive: ArchiveEntry,
    failed: list[FailedLine],
    citations: Mapping[str, str],
) -> list[str]:
    """Write metadata.csv, licences.csv, citations.txt and, where items failed, failed.csv; return their names.

    Where the source gave licence texts of collections, licence.txt holds those of the archive's; where its rows have
    URLs of licences, licences.csv lists them and the DOIs.
    """
    columns = manifest.index.columns
    doi_column, uri_column, collection_column = (
        columns.index(name) if name in columns else -1 for name in ("source_DOI", "LicenseURI", "collection")
    )
    collections: set[str] = set()
    licence_uris: dict[str, dict[str, set[str]]] = {}
    licences: Counter[str] = Counter()
    licence_bytes: Counter[str] = Counter()
    dois: Counter[str] = Counter()

    def rows() -> Iterator[list[Any]]:
        yield [*columns, "archive_path"]
        for item in archived_items(manifest, archive, {line.path for line in failed}):
            values: list[Any] = msgspec.json.decode(item.meta)
            licences[item.licence] += 1
            licence_bytes[item.licence] += max(0, item.bytes)
            if doi_column >= 0 and values[doi_column]:
                dois[str(values[doi_column])] += 1
            if uri_column >= 0:
                named = licence_uris.setdefault(item.licence, {"uri": set(), "doi": set()})
                for kind, column in (("uri", uri_column), ("doi", doi_column)):
                    if column >= 0 and values[column]:
                        named[kind].add(str(values[column]))
            if collection_column >= 0 and values[collection_column]:
                collections.add(str(values[collection_column]))
            yield [*("" if value is None else value for value in values), item.path]

    names = [f"{archive.name}.metadata.csv", f"{archive.name}.licences.csv", f"{archive.name}.citations.txt"]
    write_csv(run.archives / names[0], rows())
    write_csv(
        run.archives / names[1],
        [
            ["licence", "items", "bytes", *(("uris", "dois") if licence_uris else ())],
            *(
                [
                    name,
                    n,
                    licence_bytes[name],
                    *("; ".join(sorted(each)) for each in licence_uris.get(name, {}).values()),
                ]
                for name, n in licences.most_common()
            ),
        ],
    )
    text = "".join(
        f"{doi} ({count} items)\n{citations.get(doi) or 'https://doi.org/' + doi}\n\n"
        for doi, count in sorted(dois.items())
    )
    write_atomic(run.archives / names[2], (text or "The source states no DOI for these items.\n").encode())
    texts = run.read_licences()
    licence = run.archives / f"{archive.name}.licence.txt"
    if known := [f"{name}\n\n{texts[name]}\n" for name in sorted(collections & texts.keys())]:
        write_atomic(licence, f"\n{'-' * 80}\n\n".join(known).encode("utf-8", "backslashreplace"))
        names.append(licence.name)
    else:
        licence.unlink(missing_ok=True)
    failures = run.archives / f"{archive.name}.failed.csv"
    if failed:
        write_csv(
            failures,
            [
                ["id", "path", "reason", "message"],
                *([line.id, line.path, line.reason, line.message] for line in failed),
            ],
        )
        names.append(failures.name)
    else:
        failures.unlink(missing_ok=True)  # of an earlier, partial archive
    return names


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as RFC 4180 CSV, UTF-8, one line end, atomically."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        # Before Python 3.13 the writer leaves a carriage return without quotes, and readers end the row there.
        quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            values = list(row)
            returns = any(isinstance(value, str) and "\r" in value for value in values)
            (quoting if returns else writer).writerow(values)
        text.detach()


def write_checksums(run: RunDir, known: Mapping[str, str]) -> None:
    """Write SHA256SUMS over all files beside it; `known` spares reading the archives again."""
    names = sorted(
        path.name
        for path in run.archives.iterdir()
        if path.is_file() and path.name != "SHA256SUMS" and path.name[0] != "."
    )
    lines = [f"{known.get(name) or file_sha256(run.archives / name)}  {name}\n" for name in names]
    write_atomic(run.archives / "SHA256SUMS", "".join(lines).encode())
