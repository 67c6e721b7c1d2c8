"""Selected rows of the IDC index, streamed as they come or in the order of paths."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pipeline.sources.duck import compose, quote_name, quote_text, storing
from pipeline.sources.idc_order import in_rank_order
from pipeline.sources.idc_select import Condition, explain_nothing

TEXT_COLUMNS = (
    "collection_id",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "aws_bucket",
    "crdc_series_uuid",
    "license_short_name",
    "source_DOI",
    "analysis_result_id",
)
FILES = 'CASE WHEN "instanceCount" BETWEEN 1 AND 9007199254740991 THEN "instanceCount"::BIGINT ELSE -1 END'
# The index states exact bytes as MB of 1e6 without rounding. A NaN fails both comparisons, as NULL does.
BYTES = (
    'CASE WHEN "series_size_MB" > 0 AND "series_size_MB" < 9e9 '
    'THEN round("series_size_MB"::DOUBLE * 1e6)::BIGINT ELSE -1 END'
)


class SeriesRow(msgspec.Struct, frozen=True, gc=False):
    """A series of the index. Text is empty, numbers are -1, where the index has NULL or what cannot be.

    Attributes
    ----------
    path
        The sort key that the caller gave.
    size_bytes
        Exact bytes of all its files.
    meta
        The whole row as JSON array in the order of `IdcIndex.column_types`.
    """

    path: str
    collection_id: str
    PatientID: str
    StudyInstanceUID: str
    SeriesInstanceUID: str
    Modality: str
    instanceCount: int  # noqa: N815 - the index's own name
    aws_bucket: str
    crdc_series_uuid: str
    license_short_name: str
    source_DOI: str  # noqa: N815 - the index's own name
    analysis_result_id: str
    size_bytes: int
    meta: str


class Table(Protocol):
    """What a selection needs of the index: see `pipeline.sources.idc_index.IdcIndex`."""

    table: str
    temp: Path
    series: int

    def column_types(self) -> dict[str, str]:
        """SQL type by column name, in file order."""
        ...

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of a result, a few thousand at a time."""
        ...


class Selection:
    """Selected series of the index.

    Attributes
    ----------
    series, files, bytes
        How much is selected, as far as the index states it.
    keeps_order
        Whether an index opened with `keep_order` gives the rows in the order of the file.
    """

    def __init__(self, index: Table, conditions: Sequence[Condition]) -> None:
        self._index = index
        self.keeps_order = not any(condition.joins for condition in conditions)
        self._narrow(conditions)
        [[row]] = self.stream(f"count(*), sum(greatest({FILES}, 0)), sum(greatest({BYTES}, 0))")
        self.series, self.files, self.bytes = (int(value or 0) for value in row)
        if self.series == 0:
            counts = [index.series]
            for end in range(1, len(conditions) + 1):
                self._narrow(conditions[:end])
                [[row]] = self.stream("count(*)")
                counts.append(row[0])
            raise explain_nothing(conditions, counts)

    def _narrow(self, conditions: Sequence[Condition]) -> None:
        self._filter = " AND ".join(condition.sql for condition in conditions) or "true"
        self._parameters = [value for condition in conditions for value in condition.parameters]

    def stream(self, columns: str, rest: str = "") -> Iterator[list[tuple[Any, ...]]]:
        """Rows of `SELECT columns FROM the selected series`, with `rest` (GROUP BY and such) after it."""
        sql = "SELECT {columns} FROM {table} AS source WHERE {filter} {rest}"
        sql = compose(sql, columns=columns, table=self._index.table, filter=self._filter, rest=rest)
        return self._index.stream(sql, self._parameters)

    def scan(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield (row number in the file, *columns) of each selected series in no particular order; NULL is None."""
        for rows in self.stream(", ".join(["file_row_number", *map(quote_name, columns)])):
            yield from rows

    def ordered(self, paths: Iterable[tuple[int, str]]) -> Iterator[SeriesRow]:
        """Yield the series in bytewise order of path, then SeriesInstanceUID; `paths` as for `ordered_values`."""
        texts = [f"coalesce({name}, '')" for name in TEXT_COLUMNS]
        values = [*texts[:5], FILES, *texts[5:], BYTES, f"{self.meta_sql()}::VARCHAR"]  # in the order of SeriesRow
        batches = ([SeriesRow(*row) for row in rows] for rows in self.ordered_values(paths, ", ".join(values)))
        yield from _ties_by_uid(batches)

    def meta_sql(self) -> str:
        """SQL of the whole row as a JSON array in the order of `IdcIndex.column_types`."""
        return f"json_array({', '.join(_json_value(name, kind) for name, kind in self._index.column_types().items())})"

    def ordered_values(self, paths: Iterable[tuple[int, str]], values: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yield (path, *values) in bytewise order of path, in lists.

        Parameters
        ----------
        paths
            (row number in the file, path) of each series to yield, in any order; read only once and not kept. Paths
            are ASCII without tab, quotes or newline.
        values
            SQL of what to yield; the last value must be a text.

        Raises
        ------
        ValueError
            For paths as they must not be, and rows twice or not of this selection.
        """
        with storing("ordering the IDC index"):
            file = Path(tempfile.mkdtemp(dir=self._index.temp)) / "paths.tsv"
            count = _write_paths(paths, file)
            ranks, sorted_file = self._rank(file, count)
            selected = self.stream(f"file_row_number, {values}")
            ranked = ([(ranks[row[0]], row) for row in rows if ranks[row[0]] >= 0] for rows in selected)
            with sorted_file.open(encoding="ascii") as lines, tempfile.TemporaryFile(dir=file.parent) as spill:
                for rows in in_rank_order(ranked, count, spill):
                    yield [(next(lines)[:-1], *row[1:]) for row in rows]
            sorted_file.unlink()

    def _rank(self, file: Path, count: int) -> tuple[array[int], Path]:
        """Sort the written paths: the rank of each row number (-1 for none), and the paths in that order."""
        ranks = array("i", [-1]) * self._index.series
        source = (
            f"read_csv({quote_text(str(file))}, delim = '\t', header = false, auto_detect = false, quote = '', "
            "escape = '', buffer_size = 4000000, max_line_size = 1000000, "
            "columns = {'row_number': 'BIGINT', 'path': 'VARCHAR'})"
        )
        sorted_file = file.with_name("sorted.txt")
        rank = 0
        with sorted_file.open("w", encoding="ascii", newline="\n") as out:
            sql = compose("SELECT row_number, path FROM {source} ORDER BY path, row_number", source=source)
            for rows in self._index.stream(sql):
                for number, _ in rows:
                    if not 0 <= number < len(ranks) or ranks[number] >= 0:
                        raise ValueError(f"row {number} is given twice or not in the index")
                    ranks[number] = rank
                    rank += 1
                out.write("".join([path + "\n" for _, path in rows]))
        if rank != count:
            raise ValueError(f"{count:,} paths given, {rank:,} sorted")
        file.unlink()
        return ranks, sorted_file


def _json_value(name: str, kind: str) -> str:
    """SQL of a column's value for JSON, which knows neither NaN nor infinity."""
    column = quote_name(name)
    return f"CASE WHEN isfinite({column}) THEN {column} END" if kind in {"DOUBLE", "FLOAT"} else column


def _write_paths(paths: Iterable[tuple[int, str]], file: Path) -> int:
    count = 0
    with file.open("w", encoding="ascii", newline="\n") as out:
        chunk: list[str] = []

        def flush() -> None:
            text = "".join(chunk)
            tidy = text.count("\t") == text.count("\n") == len(chunk)
            tidy = tidy and not any(sign in text for sign in ('"', "'", "\r", "\t\n"))
            if not (tidy and text.isascii()):
                raise ValueError("a path is empty or not ASCII, or has a tab, quote or newline")
            out.write(text)
            chunk.clear()

        for number, path in paths:
            chunk.append(f"{number}\t{path}\n")
            count += 1
            if len(chunk) == 4096:
                flush()
        flush()
    return count


def _ties_by_uid(batches: Iterable[list[SeriesRow]]) -> Iterator[SeriesRow]:
    """Sort runs of equal path by SeriesInstanceUID."""
    held: list[SeriesRow] = []  # the last run, which may go on in the next batch
    for batch in batches:
        held += batch
        begin = len(held) - 1
        while begin and held[begin - 1].path == held[-1].path:
            begin -= 1
        done, held = held[:begin], held[begin:]
        if len({row.path for row in done}) < len(done):
            done.sort(key=attrgetter("path", "SeriesInstanceUID"))
        yield from done
    held.sort(key=attrgetter("SeriesInstanceUID"))
    yield from held
