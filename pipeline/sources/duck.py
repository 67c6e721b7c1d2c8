"""DuckDB as this project uses it: in memory, bounded, and cut off from network, extensions and files not its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, StorageError

if TYPE_CHECKING:
    import duckdb

CHUNK = 4096


def connect(
    temp: str, *, memory: str = "150MB", threads: int = 2, files: Sequence[str] = (), keep_order: bool = False
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database that can touch no file but `files` and those in `temp`, where it also spills.

    `memory` bounds DuckDB's buffers; the process needs about 100 MB more. The settings are locked: no SQL can loosen
    them. Rows come in no particular order unless `keep_order`.
    """
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": str(threads),
            "memory_limit": memory,
            "temp_directory": temp,
            "preserve_insertion_order": str(keep_order).lower(),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        },
    )
    connection.execute(f"SET allowed_directories = [{quote_text(temp)}]")
    connection.execute(f"SET allowed_paths = [{', '.join(map(quote_text, files))}]")
    connection.execute("SET enable_external_access = false")
    if connection.execute("SELECT 1 FROM duckdb_settings() WHERE name = 'TimeZone'").fetchone():
        connection.execute("SET TimeZone = 'UTC'")  # the same instants whatever the machine's time zone
    connection.execute("SET lock_configuration = true")
    return connection


def quote_name(name: str) -> str:
    """Write a column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Write text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def compose(template: str, **parts: str) -> str:
    """Fill SQL into a template: names and texts from `quote_name` and `quote_text`, checked conditions, own SQL."""
    return template.format_map(parts)


def reason(error: Exception) -> str:
    """DuckDB's reason as one line, without its error class, source excerpt and advice."""
    text = re.split(r"\n\s*\n|\nLINE \d+:|\n\s*\^|\n\s*Candidate", str(error))[0]
    text = re.sub(r"^[A-Z][A-Za-z ]*Error: ", "", " ".join(text.split()))
    return text if len(text) <= 300 else text[:300] + "…"


@contextmanager
def reading(what: str, hint: str = "") -> Iterator[None]:
    """Turn what DuckDB raises into this project's errors, naming `what` was read.

    Raises
    ------
    StorageError
        When memory or the temporary folder is exhausted, or a disk fails.
    ConfigError
        For everything that the data or the SQL is to blame for.
    """
    import duckdb

    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise StorageError(f"{what}: {reason(error)}", hint="see that the temporary folder has room (TMPDIR)") from None
    except duckdb.Error as error:
        raise ConfigError(f"{what}: {reason(error)}", hint=hint) from None


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn failures of temporary files into `StorageError`, naming `what` they were for."""
    try:
        yield
    except OSError as error:
        hint = "free or change the temporary folder (TMPDIR)"
        raise StorageError(f"{what}: temporary files: {error.strerror or error}", hint=hint) from None


def stream(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any], *, what: str, hint: str = ""
) -> Iterator[list[tuple[Any, ...]]]:
    """Run a query on a cursor of its own and yield its rows in lists of a few thousand, without keeping them."""
    cursor = connection.cursor()
    try:
        with reading(what, hint):
            cursor.execute(sql, parameters)
        while True:
            with reading(what, hint):
                rows = cursor.fetchmany(CHUNK)
            if not rows:
                return
            yield rows
    finally:
        cursor.close()
