"""Series as TCIA describes them, gathered in a database that keeps to little memory and spills to a temporary folder.

Tables: `wanted` (uid) are SeriesInstanceUIDs that were asked for one by one, `series` the rows that were found (the
fields of `tcia_rows.Series`), `only_idc` those of them that NBIA does not have, `idc` what the IDC's index has of all.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.sources.duck import compose, connect, quote_name, quote_text, reading, storing, stream
from pipeline.sources.idc_index import IdcIndex
from pipeline.sources.idc_order import in_rank_order
from pipeline.sources.idc_rows import BYTES, FILES
from pipeline.sources.tcia_rows import Series, sql_columns

if TYPE_CHECKING:
    import duckdb

COLUMNS = sql_columns(Series)
WHAT = "rows of TCIA"
HINT = "if a where is to blame: TRY_CAST gives NULL where CAST fails"
MEMORY = "300MB"  # of the database's buffers
_WRITTEN = 20_000  # rows in a file on their way into the database
_MAX_ROW = 4 << 20  # bytes of a row as JSON; DuckDB's buffers are a multiple
# TCIA's names of the licences that the index has by their short names, so that one licence has one name.
_CC = "Creative Commons Attribution"
_LICENCES = (
    f"WHEN 'CC BY 3.0' THEN '{_CC} 3.0 Unported License' WHEN 'CC BY 4.0' THEN '{_CC} 4.0 International License' "
    f"WHEN 'CC BY-NC 3.0' THEN '{_CC}-NonCommercial 3.0 Unported License' "
    f"WHEN 'CC BY-NC 4.0' THEN '{_CC}-NonCommercial 4.0 International License'"
)
# What the IDC's index calls the fields of a series that only it has; in place of {name} the column, if it is there.
_FROM_IDC = {
    "PatientID": "{PatientID}",
    "StudyInstanceUID": "{StudyInstanceUID}",
    "Modality": "{Modality}",
    "BodyPartExamined": "{BodyPartExamined}",
    "SeriesNumber": "try_cast({SeriesNumber} AS BIGINT)",
    "SeriesDescription": "{SeriesDescription}",
    "SeriesDate": "{SeriesDate}",
    "StudyDescription": "{StudyDescription}",
    "StudyDate": "{StudyDate}",
    "Manufacturer": "{Manufacturer}",
    "ManufacturerModelName": "{ManufacturerModelName}",
    "ImageCount": f"nullif({FILES}, -1)",
    "FileSize": f"nullif({BYTES}, -1)",
    "LicenseName": f"CASE {{license_short_name}} {_LICENCES} ELSE {{license_short_name}} END",
    "DataDescriptionURI": "'https://doi.org/' || {source_DOI}",
    "PatientSex": "{PatientSex}",
    "PatientAge": "{PatientAge}",
}


class _Cursors:
    """Cursors that see the tables of the database on disk, which DuckDB can leave there, by their bare names."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._connection.cursor()
        with reading(WHAT):
            cursor.execute("USE tcia")
        return cursor


class SeriesTable:
    """The database. With an index it is the index's own, else one beside it; `close` it."""

    def __init__(self, index: IdcIndex | None) -> None:
        self._index = index
        self._own = index is None
        with storing(WHAT):
            folder = tempfile.mkdtemp(prefix="medhaul-tcia-", dir=None if index is None else index.temp)
        self._folder = Path(folder).resolve()
        self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._connection = connect(str(self._folder), memory=MEMORY) if index is None else index.connection
        file = quote_text(str(self._folder / "rows.duckdb"))
        with reading(WHAT):
            self._connection.execute(compose("ATTACH {file} AS tcia", file=file))
        self._cursors: Any = _Cursors(self._connection)
        self._writer = self._cursors.cursor()
        made = ", ".join(f"{quote_name(name)} {kind}" for name, kind in COLUMNS.items())
        self.run("CREATE TABLE wanted (uid VARCHAR)")
        for table in ("series", "only_idc"):
            self.run(compose("CREATE TABLE {table} ({made})", table=table, made=made))
        self.run("CREATE TABLE idc (uid VARCHAR, bucket VARCHAR, uuid VARCHAR, files BIGINT, bytes BIGINT)")

    def close(self) -> None:
        """Give back memory and temporary files."""
        self._writer.close()
        if self._own:
            self._connection.close()
        self._clean()

    # -- questions -------------------------------------------------------------------------------------------------

    def run(self, sql: str, parameters: Iterable[Any] = ()) -> None:
        """Change something. Raises `ConfigError` or `StorageError`, as the other methods do."""
        with reading(WHAT, HINT):
            self._writer.execute(sql, list(parameters))

    def stream(self, sql: str, parameters: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of any result."""
        for rows in stream(self._cursors, sql, list(parameters), what=WHAT, hint=HINT):
            yield from rows

    def fetch(self, sql: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a small result."""
        return list(self.stream(sql, parameters))

    def count(self, table: str, condition: str = "true", parameters: Iterable[Any] = ()) -> int:
        """Number of rows of a table, or of those that meet a condition."""
        sql = compose("SELECT count(*) FROM {table} WHERE {condition}", table=table, condition=condition)
        return int(self.fetch(sql, parameters)[0][0])

    def stream_ranked(self, order: str, values: str, source: str) -> Iterator[tuple[Any, ...]]:
        """Rows of `values` FROM `source`, whose first is the number `n` (from 1) of a row and whose last is a text.

        In the order that `order`, a query of the same numbers, gives them. Numbers are sorted by the database, rows are
        put in their places as they come: to sort whole rows takes it more memory than it may have.
        """
        ranks = array("q")
        for rank, (number,) in enumerate(self.stream(order)):
            if number >= len(ranks):
                ranks.extend([-1] * (number + 1 - len(ranks)))
            ranks[number] = rank
        total = sum(rank >= 0 for rank in ranks)
        sql = compose("SELECT {values} FROM {source}", values=values, source=source)
        chunks = (
            [(ranks[row[0]], row) for row in rows] for rows in stream(self._cursors, sql, [], what=WHAT, hint=HINT)
        )
        with storing(WHAT), tempfile.TemporaryFile(dir=self._folder) as spill:
            for rows in in_rank_order(chunks, total, spill):
                yield from rows

    # -- filling ---------------------------------------------------------------------------------------------------

    def load(self, table: str, columns: dict[str, str], records: Iterable[object]) -> None:
        """Put records, which become JSON objects of these columns, into a table of just these columns."""
        encode = msgspec.json.Encoder().encode
        rest = iter(records)
        file = self._folder / "rows.json"
        types = ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in columns.items())
        options = f"format = 'newline_delimited', columns = {{{types}}}, maximum_object_size = {_MAX_ROW}"
        source = f"read_json({quote_text(str(file))}, {options})"
        while part := list(islice(rest, _WRITTEN)):
            with storing(WHAT):
                file.write_bytes(b"".join([encode(record) + b"\n" for record in part]))
            self.run(compose("INSERT INTO {table} SELECT * FROM {source}", table=table, source=source))
        file.unlink(missing_ok=True)

    def add_series(self, rows: Iterable[Series]) -> None:
        """Take in rows of the site."""
        self.load("series", COLUMNS, rows)

    def add_names(self, table: str, names: Iterable[str]) -> int:
        """Make a table of one column, `uid`, of different names; return how many came more than once."""
        self.run(compose("CREATE OR REPLACE TABLE given (uid VARCHAR)"))
        self.load("given", {"uid": "VARCHAR"}, ({"uid": name} for name in names))
        repeated = self.fetch("SELECT count(*) - count(DISTINCT uid) FROM given")[0][0]
        self.run(compose("CREATE OR REPLACE TABLE {table} AS SELECT DISTINCT uid FROM given", table=table))
        self.run("DROP TABLE given")
        return int(repeated)

    def wanted(self, count: int) -> Iterator[list[str]]:
        """The names in `wanted`, in order, so many at a time."""
        names = (uid for (uid,) in self.stream("SELECT uid FROM wanted ORDER BY uid"))
        while part := list(islice(names, count)):
            yield part

    # -- the IDC's index -------------------------------------------------------------------------------------------

    def resolve_folders(self, table: str) -> list[str]:
        """Replace the crdc_series_uuid of a table by SeriesInstanceUIDs; return those that the index does not have."""
        assert self._index is not None, "the caller opened it for this"
        found = "(SELECT crdc_series_uuid AS uuid, SeriesInstanceUID AS uid FROM {index})"
        found = compose(found, index=self._index.table)
        sql = "SELECT uid FROM {table} WHERE uid NOT IN (SELECT uuid FROM {found} WHERE uuid IS NOT NULL) ORDER BY uid"
        missing = [uid for (uid,) in self.stream(compose(sql, table=table, found=found))]
        sql = "CREATE OR REPLACE TABLE {table} AS SELECT DISTINCT f.uid FROM {found} f JOIN {table} t ON f.uuid = t.uid"
        self.run(compose(sql, table=table, found=found))
        return missing

    def outside_nlst(self, uids: Sequence[str]) -> set[str]:
        """Those of some series that the index has in other collections than NLST."""
        assert self._index is not None, "the caller opened it for this"
        sql = "SELECT DISTINCT SeriesInstanceUID FROM {index} WHERE SeriesInstanceUID IN (SELECT unnest(?::VARCHAR[])) "
        sql += "AND lower(collection_id) <> 'nlst'"
        return {uid for (uid,) in self.fetch(compose(sql, index=self._index.table), [list(uids)])}

    def find_in_index(self) -> None:
        """Fill `idc`: one query for all series that were found or wanted. Of two revisions the fuller one counts."""
        assert self._index is not None, "the caller opened it for this"
        self.run(
            compose(
                "INSERT INTO idc SELECT SeriesInstanceUID, aws_bucket, crdc_series_uuid, {files}, {bytes} FROM {index} "
                "WHERE aws_bucket <> '' AND crdc_series_uuid <> '' AND SeriesInstanceUID IN "
                "(SELECT uid FROM wanted UNION ALL SELECT SeriesInstanceUID FROM series) "
                "QUALIFY row_number() OVER (PARTITION BY SeriesInstanceUID "
                "ORDER BY {files} DESC, {bytes} DESC, crdc_series_uuid) = 1",
                files=FILES,
                bytes=BYTES,
                index=self._index.table,
            )
        )

    def add_from_index(self) -> list[str]:
        """Add what is wanted but only the index has to `series`; return its names of their collections.

        As their `collection` stands what the index says; `rename_collection` puts TCIA's name there.
        """
        assert self._index is not None, "the caller opened it for this"
        only = "uid IN (SELECT uid FROM wanted) AND uid NOT IN (SELECT SeriesInstanceUID FROM series)"
        if not self.count("idc", only):
            return []
        types = self._index.column_types()
        names = re.findall(r"\{(\w+)\}", " ".join(_FROM_IDC.values()))
        fields = {name: f"{quote_name(name)}::VARCHAR" if name in types else "NULL" for name in names}
        values = {"SeriesInstanceUID": "uid", "collection": '"collection_id"'}
        values |= {name: compose(sql, **fields) for name, sql in _FROM_IDC.items()}
        chosen = ", ".join(f"{values.get(name, 'NULL')} AS {quote_name(name)}" for name in COLUMNS)
        self.run(
            compose(
                "INSERT INTO only_idc SELECT {chosen} FROM {index} source JOIN idc "
                "ON source.crdc_series_uuid = idc.uuid AND source.SeriesInstanceUID = idc.uid WHERE {only}",
                chosen=chosen,
                index=self._index.table,
                only=only,
            )
        )
        self.run("INSERT INTO series SELECT * FROM only_idc")
        return [name for (name,) in self.fetch("SELECT DISTINCT collection FROM only_idc ORDER BY ALL") if name]

    def rename_collection(self, found: str, name: str) -> None:
        """Give those series that only the index has TCIA's name of their collection."""
        self.run(
            "UPDATE series SET collection = ? WHERE collection = ? AND SeriesInstanceUID IN "
            "(SELECT SeriesInstanceUID FROM only_idc)",
            [name, found],
        )
