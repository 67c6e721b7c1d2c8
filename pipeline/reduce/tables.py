"""What lies beside an archive: metadata, licences, citations, failures, checksums.

Of ISIC images, metadata.csv is the table of `medhaul metadata isic`, and attribution.txt says whom to name:
`pipeline.reduce.isic_tables`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.archive.index import FailedLine
from pipeline.atomic import atomic_file, write_atomic
from pipeline.manifest import Manifest, file_sha256
from pipeline.model import Item
from pipeline.records import ArchiveEntry
from pipeline.reduce.isic_tables import (
    Credits,
    credit_of,
    licence_files,
    make_row,
    render_attribution,
    render_metadata,
)
from pipeline.rundir import RunDir
from pipeline.sources.isic_cells import render_cell
from pipeline.sources.isic_meta import read_meta
from pipeline.sources.isic_rows import Value
from pipeline.sources.tcia_licence import name_text

ISIC = "isic"


class Tally:
    """Licences and DOIs of items, counted as their rows go by."""

    def __init__(self) -> None:
        self.licences: Counter[str] = Counter()
        self.dois: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._links: dict[str, tuple[set[str], set[str]]] = {}

    def add(self, item: Item, uri: object, dois: Iterable[str]) -> None:
        """Count an item; `uri` is where its licence stands."""
        named = list(dois)
        self.licences[item.licence] += 1
        self._bytes[item.licence] += max(0, item.bytes)
        self.dois.update(named)
        uris, cited = self._links.setdefault(item.licence, (set(), set()))
        uris.update([str(uri)] if uri else [])
        cited.update(named)

    def licence_rows(self, *, links: bool) -> Iterator[list[str | int]]:
        """Rows of licences.csv, the most items first; `links`: with URLs and DOIs."""
        yield ["licence", "items", "bytes", *(("uris", "dois") if links else ())]
        for name, count in self.licences.most_common():
            shown = ["; ".join(sorted(each)) for each in self._links[name]] if links else []
            yield [name, count, self._bytes[name], *shown]


class Beside:
    """Writes files beside an archive, each whole or not at all, and notes the `names` of those that are there."""

    def __init__(self, folder: Path, archive: str) -> None:
        self._folder, self._archive = folder, archive
        self.names: list[str] = []

    def _path(self, suffix: str) -> Path:
        self.names.append(f"{self._archive}.{suffix}")
        return self._folder / self.names[-1]

    def write_rows(self, suffix: str, rows: Iterable[Iterable[Any]]) -> None:
        """Write a table."""
        write_csv(self._path(suffix), rows)

    def write_lines(self, suffix: str, lines: Iterable[str]) -> None:
        """Write lines as they come."""
        with atomic_file(self._path(suffix)) as file:
            for line in lines:
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def write_text(self, suffix: str, text: str) -> None:
        """Write a text; "": there is no such file, nor one of an earlier, partial archive."""
        if text:
            write_atomic(self._path(suffix), text.encode("utf-8", "backslashreplace"))
        else:
            self.remove(suffix)

    def remove(self, suffix: str) -> None:
        """Take away what an earlier, partial archive may have left."""
        (self._folder / f"{self._archive}.{suffix}").unlink(missing_ok=True)


def archived_items(manifest: Manifest, archive: ArchiveEntry, failed_paths: set[str]) -> Iterator[Item]:
    """The items that an archive holds, in order, each once. Paths tell items apart; an index may give an id twice."""
    shards = range(archive.first_shard, archive.first_shard + archive.shards)
    for _, entry in manifest.all_entries(shards):
        if entry.piece == 0 and entry.item.path not in failed_paths:
            yield entry.item


def render_citations(dois: Mapping[str, int], citations: Mapping[str, str]) -> str:
    """citations.txt: each DOI with its number of items, and how to cite it. Pure."""
    return "".join(
        f"{doi} ({count} items)\n{citations.get(doi) or 'https://doi.org/' + doi}\n\n"
        for doi, count in sorted(dois.items())
    )


def write_tables(
    run: RunDir,
    manifest: Manifest,
    archive: ArchiveEntry,
    failed: list[FailedLine],
    citations: Mapping[str, str],
) -> list[str]:
    """Write metadata.csv, licences.csv, and whom to cite or name; where items failed, failed.csv; return their names.

    Of ISIC images: attribution.txt, a file for each licence, and citations.txt where collections have DOIs. Else
    citations.txt; where the source gave texts of licences, licence.txt holds those that the archive's items have; where
    its rows have URLs of licences, licences.csv lists them and the DOIs.
    """
    beside = Beside(run.archives, archive.name)
    items = archived_items(manifest, archive, {line.path for line in failed})
    columns = manifest.index.columns
    if manifest.index.source == ISIC:
        _write_images(beside, columns, items, run.read_licences(), citations)
    else:
        _write_series(beside, columns, items, run.read_licences(), citations)
    if failed:
        rows = ([line.id, line.path, line.reason, line.message] for line in failed)
        beside.write_rows("failed.csv", [["id", "path", "reason", "message"], *rows])
    else:
        beside.remove("failed.csv")
    return beside.names


def _write_series(
    beside: Beside,
    columns: Sequence[str],
    items: Iterable[Item],
    texts: Mapping[str, str],
    citations: Mapping[str, str],
) -> None:
    """The tables of items whose rows are those of the source's index."""
    doi_at, uri_at, collection_at = (
        columns.index(name) if name in columns else -1 for name in ("source_DOI", "LicenseURI", "collection")
    )
    tally = Tally()
    named: set[str] = set()

    def rows() -> Iterator[list[Any]]:
        yield [*columns, "archive_path"]
        for item in items:
            values: list[Any] = msgspec.json.decode(item.meta)
            doi, uri, collection = (values[at] if at >= 0 else None for at in (doi_at, uri_at, collection_at))
            tally.add(item, uri, [str(doi)] if doi else [])
            named.update([name_text(str(collection), item.licence)] if collection else [])
            yield [*("" if value is None else value for value in values), item.path]

    beside.write_rows("metadata.csv", rows())
    beside.write_rows("licences.csv", tally.licence_rows(links=uri_at >= 0))
    text = render_citations(tally.dois, citations)
    beside.write_text("citations.txt", text or "The source states no DOI for these items.\n")
    known = [f"{name}\n\n{texts[name]}\n" for name in sorted(named & texts.keys())]
    beside.write_text("licence.txt", f"\n{'-' * 80}\n\n".join(known))


def _write_images(
    beside: Beside,
    columns: Sequence[str],
    items: Iterable[Item],
    texts: Mapping[str, str],
    citations: Mapping[str, str],
) -> None:
    """The tables of ISIC images."""
    tally = Tally()
    credited: Credits = Counter()

    def rows() -> Iterator[list[Value]]:
        for item in items:
            image = read_meta(columns, item.meta)
            tally.add(item, image.licence_url, image.dois)
            credited[credit_of(image, item.licence)] += 1
            yield make_row(image, item)

    beside.write_lines("metadata.csv", render_metadata(rows()))
    beside.write_rows("licences.csv", ([render_cell(cell) for cell in row] for row in tally.licence_rows(links=True)))
    beside.write_text("attribution.txt", render_attribution(credited))
    beside.write_text("citations.txt", render_citations(tally.dois, citations))
    for suffix, text in licence_files(tally.licences, texts).items():
        beside.write_text(suffix, text)


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
