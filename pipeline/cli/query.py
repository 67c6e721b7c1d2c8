"""`medhaul query`: what an archive site holds, from its index, without downloading."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, get_args

import click
import msgspec

from pipeline.errors import ItemError, ItemsFailedError
from pipeline.settings import Content
from pipeline.units import render_size

if TYPE_CHECKING:
    from pipeline.sources.idc_client import IdcClient

F = TypeVar("F", bound=Callable[..., Any])

_SAMPLE = 1000  # rows that decide a table's column widths
_NUMBERS = frozenset({"patients", "studies", "series", "files", "bytes"})


class Form(msgspec.Struct, frozen=True):
    """How rows are printed: `table`, `csv` or `json`. `width` 0: as wide as it gets."""

    kind: str
    width: int = 0


@click.group()
def query() -> None:
    """Explore what an archive site holds."""


@query.group()
def idc() -> None:
    """Explore the NCI Imaging Data Commons in its index, offline.

    All options given must hold; an option given more than once means any of its values.
    """


def form_options(command: F) -> F:
    """Add `--csv` and `--json` to a command."""
    command = click.option("--json", "form", flag_value="json", help="Print a JSON array, one record per line.")(
        command
    )
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV; sizes in bytes.")(command)
    return click.option("--table", "form", flag_value="table", default="table", hidden=True)(command)


def index_option(command: F) -> F:
    """Add `--index` to a command."""
    return click.option(
        "--index",
        envvar="MEDHAUL_IDC_INDEX",
        default="packaged",
        show_default=True,
        help="The index: a Parquet file, an http(s) URL of one, or 'packaged': the installed idc-index-data.",
    )(command)


def select_options(command: F) -> F:
    """Add the options that select series to a command."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Print at most so many rows."),
        click.option(
            "--content",
            type=click.Choice(get_args(Content)),
            default="both",
            show_default=True,
            help="Original images, analysis results derived from them, or both.",
        ),
        click.option("--where", default="", help='SQL condition over the columns, e.g. "instanceCount > 100".'),
        click.option("--modality", multiple=True, help="DICOM modality."),
        click.option("--series", "series_uid", multiple=True, help="SeriesInstanceUID."),
        click.option("--study", multiple=True, help="StudyInstanceUID."),
        click.option("--patient", multiple=True, help="PatientID."),
        click.option("--collection", multiple=True, help="Collection; case, space, '-' and '_' do not matter."),
    ):
        command = option(command)
    return command


def _make_list_command(name: str, record: str, summary: str) -> None:
    @idc.command(name, help=summary)
    @select_options
    @index_option
    @form_options
    def command(index: str, form: str, **options: Any) -> None:
        from pipeline.sources import idc_client

        kind: type[msgspec.Struct] = getattr(idc_client, record)
        with _open(index) as client:
            print_records(client.iterate(kind, **_rename(options)), kind, choose_form(form, sys.stdout))


_make_list_command("collections", "Collection", "List collections with their counts, bytes, modalities and licences.")
_make_list_command("patients", "Patient", "List patients.")
_make_list_command("studies", "Study", "List studies.")
_make_list_command("series", "Series", "List series.")


@idc.command()
@select_options
@index_option
@form_options
def size(index: str, form: str, **options: Any) -> None:
    """Say how much is selected: series, files and bytes."""
    from pipeline.sources.idc_client import Collection

    class Size(msgspec.Struct, frozen=True):
        collections: int
        series: int
        files: int
        bytes: int

    with _open(index) as client:
        found = list(client.iterate(Collection, **_rename(options)))
    total = Size(
        len(found), sum(one.series for one in found), sum(one.files for one in found), sum(one.bytes for one in found)
    )
    print_records(iter([total]), Size, choose_form(form, sys.stdout))


@idc.command()
@index_option
@form_options
def columns(index: str, form: str) -> None:
    """List the columns that --where may use, with type and meaning."""
    from pipeline.sources.idc_client import Column

    with _open(index) as client:
        print_records(iter(client.columns()), Column, choose_form(form, sys.stdout))


@idc.command()
@select_options
@index_option
@click.option("--provider", type=click.Choice(["aws", "gcs"]), default="aws", show_default=True, help="Which cloud.")
def urls(index: str, provider: Any, **options: Any) -> None:
    """Print where the selected series lie, one s3:// or gs:// URL with a * per line, as s5cmd and gcloud read them."""
    from pipeline.sources.idc_client import Series

    with _open(index) as client:
        print_lines(found.prefix(provider) for found in client.iterate(Series, **_rename(options)))


@idc.command()
@click.argument("series_uid", metavar="SERIES_UID")
@index_option
@click.option("--provider", type=click.Choice(["aws", "gcs"]), default="aws", show_default=True, help="Which cloud.")
def files(series_uid: str, index: str, provider: Any) -> None:
    """Print the HTTPS URLs of a series' files. Asks the site."""
    with _open(index) as client, item_border(series_uid):
        print_lines(iter(client.file_urls(series_uid, provider)))


@idc.command()
@click.argument("series_uid", metavar="SERIES_UID")
@click.argument("folder", metavar="DEST", type=click.Path(path_type=Path, file_okay=False))
@index_option
def download(series_uid: str, folder: Path, index: str) -> None:
    """Download one series to DEST/SERIES_UID, every file verified; whole or not at all."""
    with _open(index) as client, item_border(series_uid):
        paths = client.download_series(series_uid, folder)
    print_lines(map(str, paths))


@contextmanager
def item_border(series_uid: str) -> Iterator[None]:
    """Turn an item's failure into the command's."""
    try:
        yield
    except ItemError as error:
        raise ItemsFailedError(
            f"{series_uid}: {error.reason}: {error}",
            hint="try again" if error.transient else "see `medhaul query idc series`",
        ) from None


def _open(index: str) -> IdcClient:
    from pipeline.settings import SourceIdc
    from pipeline.sources.idc_client import IdcClient

    endpoints = {
        key: os.environ[name]
        for name, key in (
            ("MEDHAUL_IDC_S3_ENDPOINT", "s3_endpoint"),
            ("MEDHAUL_IDC_MIRROR_ENDPOINT", "mirror_endpoint"),
        )
        if name in os.environ
    }
    return IdcClient(None if index == "packaged" else index, endpoints=SourceIdc(**endpoints))


def _rename(options: dict[str, Any]) -> dict[str, Any]:
    return {"series" if name == "series_uid" else name: value for name, value in options.items()}


def choose_form(kind: str, out: TextIO) -> Form:
    """Choose how to print: a table is cut to the width of a terminal, and of a terminal only."""
    return Form(kind, shutil.get_terminal_size().columns if kind == "table" and out.isatty() else 0)


def print_records(records: Iterator[Any], kind: type[msgspec.Struct], form: Form) -> None:
    """Print records of one kind as they come."""
    header = [field.name for field in msgspec.structs.fields(kind)]
    if form.kind == "json":
        print_lines(render_json(records))
    elif form.kind == "csv":
        print_lines(render_csv(header, (msgspec.structs.astuple(record) for record in records)))
    else:
        print_lines(render_table(header, (msgspec.structs.astuple(record) for record in records), form.width))


def render_json(records: Iterable[Any]) -> Iterator[str]:
    """Lines of a JSON array with a record per line."""
    before = "["
    for record in records:
        yield before + msgspec.json.encode(record).decode()
        before = ","
    yield "]" if before == "," else "[]"


def render_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of CSV (RFC 4180, but newlines as of the system); lists are joined by `; `."""
    text = io.StringIO()
    writer = csv.writer(text)  # its \r\n makes it quote either sign in a value, and is not printed
    for row in chain([header], rows):
        writer.writerow(["; ".join(value) if isinstance(value, list) else value for value in row])
        yield text.getvalue()[:-2]
        text.seek(0)
        text.truncate()


def render_table(header: Sequence[str], rows: Iterable[Sequence[Any]], width: int) -> Iterator[str]:
    """Aligned lines; a line is cut at `width`, unless that is 0. The first rows decide the columns' widths."""
    cells = ([_cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows)
    sample = list(islice(cells, _SAMPLE))
    widths = [max(map(len, column)) for column in zip(header, *sample, strict=True)]
    for line in chain([list(header)], sample, cells):
        padded = [
            text.rjust(wide) if name in _NUMBERS else text.ljust(wide)
            for name, text, wide in zip(header, line, widths, strict=True)
        ]
        whole = "  ".join(padded).rstrip()
        yield whole if not width or len(whole) <= width else whole[: width - 1] + "…"


def _cell(name: str, value: Any) -> str:
    """A value for a terminal: on one line and without control characters, whatever the index holds."""
    if name == "bytes":
        return render_size(value) if value >= 0 else "?"
    if isinstance(value, int):
        return str(value) if value >= 0 else "?"
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines; end quietly when the reader (`| head`) has gone."""
    out = sys.stdout
    try:
        for line in lines:
            out.write(line + "\n")
        out.flush()
    except BrokenPipeError:
        # Nothing may be left to flush at exit, which would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
