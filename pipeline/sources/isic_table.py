"""Images as the ISIC Archive lists them, gathered in a database that keeps to little memory and spills to a folder.

Tables: `images` (`n`, from 1 in the order of listing, the registry's columns, and `other`: what else an image has, as
JSON) has each image once; `members` (`isic_id`, `place`) the selected collections that it was listed in, by position.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from pipeline.sources.duck import compose, connect, quote_name, quote_text, reading, storing, stream
from pipeline.sources.idc_order import in_rank_order
from pipeline.sources.isic_fields import FIELDS
from pipeline.sources.isic_pages import Ids
from pipeline.sources.isic_rows import Image, Value, flatten_image, sql_columns

COLUMNS = sql_columns()
# As `where` knows them: by path, and by the name that the site's search uses.
NAMES = COLUMNS | {field.name: COLUMNS[field.column] for field in FIELDS.values()}
WHAT = "images of ISIC"
HINT = "if a where is to blame: TRY_CAST gives NULL where CAST fails"
MEMORY = "150MB"  # of the database's buffers
MAX_OTHER = 200  # columns that are not in the registry; of more, all stand in one
_WRITTEN = 10_000  # rows in a file on their way into the database
_MAX_ROW = 4 << 20  # bytes of a row as JSON
_IMAGES = {"n": "BIGINT", **COLUMNS, "other": "VARCHAR"}
_MEMBERS = {"isic_id": "VARCHAR", "place": "INTEGER"}
_QUERY = re.compile(r"(?i)(https?://[^\s?#]*)[?#]\S*\Z")
# A query wherever it stands, as far as a URL goes in texts and in JSON, whose quotation marks may be escaped.
_ANY_QUERY = re.compile(r"""[?#](?:[^\s"'<>\\]|\\(?!["\\]))+""")
_SIGNED = re.compile(r"(?i)(?:signature|expires|key-pair-id|awsaccesskeyid|x-amz-[a-z-]+)=")


def plain_text(name: str, value: Value) -> Value:
    """A value that may stand in records: without what signs URLs. Pure.

    Of a file's URL (`name` begins with `files.`) the query goes, whatever it is; of other texts the queries in which a
    signature stands, wherever they are.
    """
    if not isinstance(value, str):
        return value
    if name.startswith("files.") and (found := _QUERY.match(value)):
        return found[1]
    return _ANY_QUERY.sub(_drop_signature, value)


def _drop_signature(query: re.Match[str]) -> str:
    text = query[0]
    return text[len(text.rstrip(".,;:!)]}")) :] if _SIGNED.search(unquote(text)) else text


def image_row(image: Image) -> tuple[dict[str, Value], dict[str, Value]]:
    """An image as values of the registry's columns, and what else it has; no URL in it is signed. Pure."""
    row = {name: plain_text(name, value) for name, value in flatten_image(image).items()}
    return {name: row.pop(name) for name in COLUMNS}, {name: value for name, value in row.items() if value is not None}


class ImageTable:
    """The database. `close` it.

    Attributes
    ----------
    other
        Names of what images have beside the registry's columns.
    images
        Number of different images.
    """

    def __init__(self) -> None:
        with storing(WHAT):
            folder = tempfile.mkdtemp(prefix="medhaul-isic-")
        self._folder = Path(folder).resolve()
        self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._connection = connect(str(self._folder), memory=MEMORY)
        self.run(compose("ATTACH {file} AS isic", file=quote_text(str(self._folder / "rows.duckdb"))))
        self.run("USE isic")
        self._seen = Ids()
        self._waiting: dict[str, list[dict[str, Any]]] = {"images": [], "members": []}
        self.other: set[str] = set()
        self.images = 0
        for table, columns in (("images", _IMAGES), ("members", _MEMBERS)):
            made = ", ".join(f"{quote_name(name)} {kind}" for name, kind in columns.items())
            self.run(compose("CREATE TABLE {table} ({made})", table=table, made=made))

    def close(self) -> None:
        """Give back memory and temporary files."""
        self._connection.close()
        self._clean()

    # -- questions -------------------------------------------------------------------------------------------------

    def run(self, sql: str, parameters: Iterable[Any] = ()) -> None:
        """Change something. Raises `ConfigError` or `StorageError`, as the other methods do."""
        with reading(WHAT, HINT):
            self._connection.execute(sql, list(parameters))

    def stream(self, sql: str, parameters: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of any result."""
        for rows in self._lists(sql, parameters):
            yield from rows

    def _lists(self, sql: str, parameters: Iterable[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        return stream(_Cursors(self._connection), sql, list(parameters), what=WHAT, hint=HINT)  # type: ignore[arg-type]

    def count(self, source: str, condition: str = "true") -> int:
        """Number of rows, or of those that meet a condition."""
        sql = compose("SELECT count(*) FROM {source} WHERE {condition}", source=source, condition=condition)
        return int(next(self.stream(sql))[0])

    def stream_ranked(self, order: str, values: str, source: str) -> Iterator[tuple[Any, ...]]:
        """Rows of `values` FROM `source`, whose first is the number `n` of a row and whose last is a text.

        In the order that `order`, a query of the same numbers, gives them: see `pipeline.sources.idc_order`.
        """
        ranks = array("q")
        total = 0
        for rank, (number,) in enumerate(self.stream(order)):
            if number >= len(ranks):
                ranks.extend([-1] * (number + 1 - len(ranks)))
            ranks[number] = rank
            total += 1
        sql = compose("SELECT {values} FROM {source}", values=values, source=source)
        chunks = ([(ranks[row[0]], row) for row in rows] for rows in self._lists(sql))
        with storing(WHAT), tempfile.TemporaryFile(dir=self._folder) as spill:
            for rows in in_rank_order(chunks, total, spill):
                yield from rows

    # -- filling ---------------------------------------------------------------------------------------------------

    def add(self, image: Image, place: int) -> bool:
        """Take an image in, as listed in the collection at `place` (-1: in none); say whether it is new."""
        if place >= 0:
            self._put("members", {"isic_id": image.isic_id, "place": place})
        if not self._seen.add(image.isic_id):
            return False
        row, other = image_row(image)
        self.other |= other.keys()
        self.images += 1
        self._put("images", {"n": self.images, **row, "other": msgspec.json.encode(other).decode() if other else None})
        return True

    def add_member(self, isic_id: str, place: int) -> None:
        """Note that an image is in one more collection."""
        self._put("members", {"isic_id": isic_id, "place": place})

    def flush(self) -> None:
        """Bring what waits into the database: before any question."""
        for table in self._waiting:
            self._write(table)

    def load(self, table: str, columns: Mapping[str, str], records: Iterable[dict[str, Any]]) -> None:
        """Make a table of these columns, and put records into it."""
        made = ", ".join(f"{quote_name(name)} {kind}" for name, kind in columns.items())
        self.run(compose("CREATE OR REPLACE TABLE {table} ({made})", table=table, made=made))
        part: list[dict[str, Any]] = []
        for record in records:
            part.append(record)
            if len(part) == _WRITTEN:
                self._insert(table, columns, part)
                part.clear()
        if part:
            self._insert(table, columns, part)

    def _put(self, table: str, record: dict[str, Any]) -> None:
        waiting = self._waiting[table]
        waiting.append(record)
        if len(waiting) >= _WRITTEN:
            self._write(table)

    def _write(self, table: str) -> None:
        if waiting := self._waiting[table]:
            self._insert(table, _IMAGES if table == "images" else _MEMBERS, waiting)
            waiting.clear()

    def _insert(self, table: str, columns: Mapping[str, str], records: list[dict[str, Any]]) -> None:
        file = self._folder / f"{table}.json"
        encode = msgspec.json.Encoder().encode
        types = ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in columns.items())
        options = f"format = 'newline_delimited', columns = {{{types}}}, maximum_object_size = {_MAX_ROW}"
        with storing(WHAT):
            file.write_bytes(b"".join([encode(record) + b"\n" for record in records]))
        source = f"read_json({quote_text(str(file))}, {options})"
        self.run(compose("INSERT INTO {table} SELECT * FROM {source}", table=table, source=source))
        file.unlink(missing_ok=True)


class _Cursors:
    """Cursors that see the tables on disk by their bare names."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def cursor(self) -> Any:
        cursor = self._connection.cursor()
        with reading(WHAT):
            cursor.execute("USE isic")
        return cursor


def named_images(*, members: bool = False) -> str:
    """SQL of the images with all `NAMES` as columns; `members`: of their place in the selected collections, too. Pure.

    `place` is the first collection's position, `places` those of all, in order, with blanks between; NULL for none.
    """
    short = [field for field in FIELDS.values() if field.name != field.column]
    names = ", ".join(f"i.{quote_name(field.column)} AS {quote_name(field.name)}" for field in short)
    if not members:
        return compose("(SELECT i.*, {names} FROM images i)", names=names)
    return compose(
        "(SELECT i.*, {names}, m.place, m.places FROM images i LEFT JOIN "
        "(SELECT isic_id AS member, min(place) AS place, string_agg(DISTINCT place, ' ' ORDER BY place) AS places "
        "FROM members GROUP BY isic_id) m ON m.member = i.isic_id)",
        names=names,
    )
