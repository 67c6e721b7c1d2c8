"""`medhaul ls`: what an archive holds, from its index alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from pipeline.cli.progress import printable
from pipeline.errors import UsageError
from pipeline.units import render_size

if TYPE_CHECKING:
    from pipeline.archive.index import FailedLine, FileLine, FrameLine, ItemLine, Line
    from pipeline.archive.reader import ArchiveReader

Kind = Literal["items", "files", "frames"]


class ItemRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of `ls --items --json`; a failed item has `reason` and `message`, and no files."""

    id: str
    path: str
    state: Literal["archived", "failed"]
    files: int
    bytes: int
    licence: str = ""
    frame: int | None = None
    piece: int = 0
    pieces: int = 1
    reason: str = ""
    message: str = ""


class FileRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of `ls --files --json`; `offset` is where the content begins in the archive's tar bytes."""

    path: str
    item: str
    size: int
    sha256: str
    frame: int
    offset: int
    key: str = ""
    evidence: list[str] = []
    route: str = ""
    etag: str = ""


class FrameRow(msgspec.Struct, frozen=True):
    """A line of `ls --frames --json`; `blocks` counts them."""

    frame: int
    offset: int
    length: int
    sha256: str
    tar_offset: int
    tar_bytes: int
    blocks: int


@click.command()
@click.argument("archive")
@click.option("--items", "kind", flag_value="items", default=True, help="Items, a table (the default).")
@click.option("--files", "kind", flag_value="files", help="Files, one path a line.")
@click.option("--frames", "kind", flag_value="frames", help="Frames, a table.")
@click.option("--long", "-l", "is_long", is_flag=True, help="Sizes, licences and hashes too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line, for programs.")
@click.option("--index", type=click.Path(path_type=Path), help="Read this index, not the archive's own.")
def ls(archive: str, kind: Kind, *, is_long: bool, as_json: bool, index: Path | None) -> None:
    """List what ARCHIVE holds: a .tar.xz file, or an http(s) URL of one.

    Reads the index beside the archive, or the one inside it; nothing is decompressed. Items that failed are listed
    last.
    """
    from pipeline.archive.reader import ArchiveReader

    if Path(archive).is_dir():
        raise explain_folder(Path(archive))
    with ArchiveReader(archive, index) as reader:
        if as_json:
            encode = msgspec.json.Encoder().encode
            for row in list_rows(reader, kind):
                click.echo(encode(row))
            return
        if is_long:
            head = reader.header()
            click.echo(
                f"# {head.name}: {head.items - head.failed} items, {head.failed} failed, {head.files} files, "
                f"{render_size(head.bytes)} in {render_size(reader.source.size)}"
            )
        if kind == "files" and not is_long:
            for row in list_rows(reader, kind):
                click.echo(printable(row.path) if isinstance(row, FileRow) else "")
            return
        for line in render_table(lambda: list_rows(reader, kind), COLUMNS[kind, is_long], is_long=is_long):
            click.echo(line)


def explain_folder(folder: Path, command: str = "ls") -> UsageError:
    """What to name to `command` in place of a folder: the archives of the run that it is, or that lie in it."""
    run = (folder / "run.json").is_file()
    found = sorted((folder / "archives" if run else folder).glob("*.tar.xz"))
    what = "the folder of a run" if run else "a folder"
    if found:
        shown = ", ".join(printable(path.name) for path in found[:10])
        more = f" and {len(found) - 10:,} more" if len(found) > 10 else ""
        hint = f"it has {shown}{more}: medhaul {command} {shlex.quote(str(found[0]))}"
    elif run:
        hint = f"it has no archive yet: see medhaul status {shlex.quote(str(folder))}"
    else:
        hint = "name a .tar.xz file or an http(s) URL of one"
    return UsageError(f"{printable(str(folder))}: {what}, not an archive", hint=hint)


def list_rows(reader: ArchiveReader, kind: Kind) -> Iterator[ItemRow | FileRow | FrameRow]:
    """Yield the rows of one kind, in archive order. Raises `ConfigError` when the index is damaged."""
    if kind == "frames":
        yield from _frame_rows(reader.lines())
    elif kind == "files":
        for frame, item, files in reader.items():
            for file in files:
                yield file_row(frame, item, file)
    else:
        for frame, item, _ in reader.items():
            yield item_row(frame, item)
        for failed in reader.failed():
            yield failed_row(failed)


def _frame_rows(lines: Iterator[Line]) -> Iterator[FrameRow]:
    from pipeline.archive.index import FrameLine

    for line in lines:
        if isinstance(line, FrameLine):
            yield FrameRow(
                line.frame, line.offset, line.length, line.sha256, line.tar_offset, line.tar_bytes, len(line.blocks)
            )


def item_row(frame: FrameLine, item: ItemLine) -> ItemRow:
    """An archived item, or piece of one."""
    return ItemRow(
        item.id, item.path, "archived", item.files, item.bytes, item.licence, frame.frame, item.piece, item.pieces
    )


def failed_row(line: FailedLine) -> ItemRow:
    """An item that is not in the archive."""
    return ItemRow(line.id, line.path, "failed", 0, 0, reason=line.reason, message=line.message)


def file_row(frame: FrameLine, item: ItemLine, file: FileLine) -> FileRow:
    """A file."""
    from pipeline.archive.lines import member_path

    path = member_path(item, file)
    return FileRow(
        path, item.id, file.size, file.sha256, frame.frame, file.offset,
        file.key, file.evidence, file.route, file.etag,
    )  # fmt: skip


# Names of the columns; those that begin with ">" are right-aligned. The last one is as long as it likes.
COLUMNS: dict[tuple[Kind, bool], tuple[str, ...]] = {
    ("items", False): (">files", ">size", "item", "path"),
    ("items", True): (">files", ">size", ">frame", "licence", "item", "path"),
    ("files", True): ("sha256", ">bytes", "path"),
    ("frames", False): (">frame", ">blocks", ">size", ">tar"),
    ("frames", True): (">frame", ">blocks", ">size", ">tar", ">offset", "sha256"),
}


def render_table(
    rows: Callable[[], Iterable[ItemRow | FileRow | FrameRow]], columns: tuple[str, ...], *, is_long: bool
) -> Iterator[str]:
    """Yield a head and the rows as aligned columns. The rows are asked for twice: an archive may have millions."""
    names = tuple(column.lstrip(">") for column in columns)
    widths = [len(name) for name in names]
    for row in rows():
        widths = [max(width, len(cell)) for width, cell in zip(widths, render_cells(row, is_long=is_long), strict=True)]
    if columns[-1][0] != ">":
        widths[-1] = 0
    yield _align(names, columns, widths)
    for row in rows():
        yield _align(render_cells(row, is_long=is_long), columns, widths)


def _align(cells: tuple[str, ...], columns: tuple[str, ...], widths: list[int]) -> str:
    aligned = (
        cell.rjust(width) if column[0] == ">" else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )
    return "  ".join(aligned).rstrip()


def render_cells(row: ItemRow | FileRow | FrameRow, *, is_long: bool) -> tuple[str, ...]:
    """A row's cells for people, in the order of `COLUMNS`. Pure."""
    if isinstance(row, FrameRow):
        sizes = (str(row.frame), str(row.blocks), render_size(row.length), render_size(row.tar_bytes))
        return (*sizes, str(row.offset), row.sha256) if is_long else sizes
    if isinstance(row, FileRow):
        return (row.sha256, str(row.size), printable(row.path))
    if row.state == "failed":
        said = f"{row.path}  {row.reason}: {row.message}".rstrip(": ")
        more = ("-", "-") if is_long else ()
        return ("FAILED", "-", *more, printable(row.id), printable(said))
    piece = f" (piece {row.piece + 1} of {row.pieces})" if row.pieces > 1 else ""
    more = (str(row.frame), printable(row.licence) or "-") if is_long else ()
    return (str(row.files), render_size(row.bytes), *more, printable(row.id), printable(row.path + piece))
