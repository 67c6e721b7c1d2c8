"""The series index of the NCI Imaging Data Commons: one Parquet file, read with DuckDB in little memory.

The file is published as the Python distribution idc-index-data, whose major version is the IDC data release. Meaning
of its columns: https://github.com/ImagingDataCommons/idc-index-data (assets, `idc_index.sql`).
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import ConfigError
from pipeline.settings import SelectIdc, SourceIdc
from pipeline.sources.duck import compose, connect, quote_name, quote_text, storing, stream
from pipeline.sources.idc_rows import TEXT_COLUMNS, Selection
from pipeline.sources.idc_select import (
    ID_KEYS,
    NAME_KEYS,
    choose_names,
    explain_missing,
    plan_conditions,
)
from pipeline.sources.where import check_where

if TYPE_CHECKING:
    import duckdb

REMOTE = ("http://", "https://")
# Seconds for which a downloaded index is used without asking the site whether there is a new one.
FRESH = 3600.0
_INTEGER = r"U?(?:TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)"
_NEEDED = dict.fromkeys(TEXT_COLUMNS, "VARCHAR") | {
    "instanceCount": _INTEGER,
    "series_size_MB": rf"DOUBLE|FLOAT|DECIMAL\(.*\)|{_INTEGER}",
}


class IdcIndex:
    """The IDC index, open for reading. `release` names its data release. Close it, or use it in a `with` block."""

    def __init__(
        self, path: Path, release: str, *, temp: Path | None, memory: str, threads: int, keep_order: bool
    ) -> None:
        self.path = path
        self.release = release
        with storing(f"IDC index {path}"):
            self.temp = Path(tempfile.mkdtemp(prefix="medhaul-index-", dir=temp)).resolve()
        self._drop_download: Callable[[], object] = bool
        self._clean = weakref.finalize(self, shutil.rmtree, self.temp, ignore_errors=True)
        # Links of fixed names: what the real paths hold (quotes, glob signs) never gets into SQL.
        files = []
        for name in ("idc_index", "prior_versions_index", "collections_index"):
            file = path if name == "idc_index" else path.with_name(f"{name}.parquet")
            if file.is_file():
                with storing(f"IDC index {path}"):
                    (self.temp / f"{name}.parquet").symlink_to(file.resolve())
                files.append(str(file.resolve()))
        self.table = f"read_parquet({quote_text(str(self.temp / 'idc_index.parquet'))}, file_row_number = true)"
        self.connection: duckdb.DuckDBPyConnection = connect(
            str(self.temp), memory=memory, threads=threads, files=files, keep_order=keep_order
        )
        described = self.fetch(compose("DESCRIBE SELECT * FROM {table}", table=self.table))
        self._types = {row[0]: row[1] for row in described if row[0] != "file_row_number"}
        wrong = [
            f"{name} (missing)" if name not in self._types else f"{name} (is {self._types[name]}, not {kind})"
            for name, kind in _NEEDED.items()
            if re.fullmatch(kind, self._types.get(name, "")) is None
        ]
        if wrong:
            raise ConfigError(
                f"{path}: not an IDC series index: columns {', '.join(wrong)}",
                hint="name the idc_index.parquet of idc-index-data 25 or later",
            )
        self.series: int = self.fetch(compose("SELECT count(*) FROM {table}", table=self.table))[0][0]

    @classmethod
    def open(
        cls,
        source: SourceIdc,
        *,
        temp: Path | None = None,
        memory: str = "150MB",
        threads: int = 2,
        keep_order: bool = False,
        refresh: bool = False,
        offline: bool = False,
    ) -> IdcIndex:
        """Open the index that a config names and check that it is what it must be.

        Parameters
        ----------
        temp
            Folder for temporary files: up to 0.5 GB for ordering the whole index. Default: the system's.
        memory
            Bound of DuckDB's buffers; the process needs about 100 MB more.
        keep_order
            Whether `Selection.scan` and `stream` give rows in the order of the file.
        refresh, offline
            Of an index that is a URL: ask the site even if the copy in the cache is fresh, or never ask it.

        Raises
        ------
        ConfigError
            No such index, another data release than the config pins, or columns missing or of unusable type.
        SiteUnavailableError
            An index that is a URL cannot be had.
        StorageError
            Temporary files cannot be written.
        """
        if not source.index.startswith(REMOTE):
            path, release = _find_index(source)
            return cls(path, release, temp=temp, memory=memory, threads=threads, keep_order=keep_order)
        from pipeline.sources.http_cache import download_parquet, show_url

        with storing(f"IDC index {show_url(source.index)}"):
            folder = Path(tempfile.mkdtemp(prefix="medhaul-index-", dir=temp))
        try:
            path = folder / "idc_index.parquet"
            download_parquet(source.index, path, expire=FRESH, refresh=refresh, offline=offline)
            path, release = _find_index(SourceIdc(index=str(path), release=source.release))
            index = cls(path, release, temp=temp, memory=memory, threads=threads, keep_order=keep_order)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        index._drop_download = weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)
        return index

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory and temporary files."""
        self.connection.close()
        self._clean()
        self._drop_download()

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a small result. Raises `ConfigError` or `StorageError`."""
        return [row for rows in self.stream(sql, parameters) for row in rows]

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of any result, a few thousand at a time."""
        hint = "if a where is to blame: TRY_CAST gives NULL where CAST fails; else the index file is damaged"
        return stream(self.connection, sql, list(parameters), what=f"IDC index {self.path}", hint=hint)

    def column_types(self) -> dict[str, str]:
        """SQL type by column name, in file order."""
        return dict(self._types)

    def descriptions(self) -> dict[str, str]:
        """What each column means, as published beside the index; empty when it is not there."""
        file = self.path.with_name("idc_index_schema.json")
        try:
            columns = json.loads(file.read_text(encoding="utf-8"))["columns"]
            return {str(column["name"]): str(column.get("description") or "") for column in columns}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}: not a schema of the index: {error}", hint="reinstall or remove it") from None

    def citations(self, dois: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Citation (plain text) and licence of each source DOI that is known, offline; keys as asked."""
        if not (self.temp / "collections_index.parquet").exists():
            return {}
        file = quote_text(str(self.temp / "collections_index.parquet"))
        sql = (
            "SELECT lower(source.source_doi), source.citation, source.license.license_short_name "
            "FROM (SELECT unnest(sources) AS source FROM read_parquet({file})) ORDER BY ALL"
        )
        rows = self.fetch(compose(sql, file=file))
        known = {doi: (plain_text(citation or ""), licence or "") for doi, citation, licence in rows if doi}
        return {doi: known[doi.lower()] for doi in dois if doi.lower() in known}

    def select(self, selection: SelectIdc) -> Selection:
        """Select the series for which every given key holds.

        Raises
        ------
        ConfigError
            A value that the index does not have at all, a `where` that cannot be, or nothing left.
        """
        where = check_where(selection.where, self._types, name="select.idc.where") if selection.where else None
        conditions = plan_conditions(selection, self._choose_names, where)
        for key, column in ID_KEYS.items():
            self._check_ids(key, column, getattr(selection, key))
        return Selection(self, conditions)

    def _choose_names(self, key: str, wanted: Sequence[str]) -> tuple[str, ...]:
        column = quote_name(NAME_KEYS[key])
        sql = "SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"
        rows = self.fetch(compose(sql, column=column, table=self.table))
        return choose_names(f"select.idc.{key}", wanted, (row[0] for row in rows))

    def _check_ids(self, key: str, column: str, wanted: tuple[str, ...]) -> None:
        if not wanted:
            return
        asked = list(dict.fromkeys(wanted))
        sql = "SELECT DISTINCT {column} FROM {table} WHERE {column} IN (SELECT unnest(?::VARCHAR[]))"
        found = {row[0] for row in self.fetch(compose(sql, column=column, table=self.table), [asked])}
        missing = [value for value in asked if value not in found]
        if not missing:
            return
        earlier = {}
        if (self.temp / "prior_versions_index.parquet").exists():
            file = quote_text(str(self.temp / "prior_versions_index.parquet"))
            sql = (
                "SELECT {column}, min(min_idc_version), max(max_idc_version) FROM read_parquet({file}) "
                "WHERE {column} IN (SELECT unnest(?::VARCHAR[])) GROUP BY {column}"
            )
            rows = self.fetch(compose(sql, column=column, file=file), [missing])
            earlier = {value: f"only in earlier releases, v{first} to v{last}" for value, first, last in rows}
        raise explain_missing(key, missing, len(asked), self.release, earlier)


def _find_index(source: SourceIdc) -> tuple[Path, str]:
    """Path and data release of the index that a config names."""
    if source.index == "packaged":
        return _find_packaged(source.release)
    path = Path(source.index)
    try:
        with path.open("rb") as file:
            release = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise ConfigError(
            f"sources.idc.index {source.index}: {error.strerror}", hint="name a Parquet file, or 'packaged'"
        ) from None
    if source.release:
        raise ConfigError(
            f"sources.idc.release = '{source.release}', but a file does not state its release: {path} is {release}",
            hint="leave release empty with an index file, or use index = 'packaged'",
        )
    return path, release


def _find_packaged(pinned: str) -> tuple[Path, str]:
    try:
        import idc_index_data
    except ModuleNotFoundError:
        raise ConfigError(
            "sources.idc.index = 'packaged', but the IDC index is not installed", hint="pip install 'medhaul[idc]'"
        ) from None
    except FileNotFoundError as error:
        raise ConfigError(
            f"the installed idc-index-data is incomplete: {error}",
            hint="pip install --force-reinstall idc-index-data",
        ) from None
    version = str(idc_index_data.__version__)
    if pinned and version.split(".")[: pinned.count(".") + 1] != pinned.split("."):
        wanted = f"idc-index-data=={pinned}" + ("" if pinned.count(".") == 2 else ".*")
        raise ConfigError(
            f"sources.idc.release = '{pinned}', but the installed IDC index is {version}",
            hint=f"pip install '{wanted}'",
        )
    return Path(str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)), version


def plain_text(marked: str) -> str:
    """A citation without HTML tags and entities, on one line."""
    return " ".join(html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", marked)).split())
