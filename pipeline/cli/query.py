"""`medhaul query`: what an archive site holds, from its index, without downloading."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import msgspec

from pipeline.cli.query_isic import isic
from pipeline.cli.query_table import (
    choose_form,
    form_options,
    item_border,
    print_lines,
    print_records,
    render_csv,
    render_table,
)
from pipeline.cli.query_tcia import tcia
from pipeline.settings import Content

if TYPE_CHECKING:
    from pipeline.sources.idc_client import IdcClient

__all__ = ["idc", "query", "render_csv", "render_table"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def query() -> None:
    """Explore what an archive site holds.

    \b
    medhaul query idc collections                          # the NCI Imaging Data Commons, from its index
    medhaul query tcia series --collection "RIDER Pilot"   # The Cancer Imaging Archive, from its API
    medhaul query isic images --collection HAM10000        # the ISIC Archive of skin images, from its API
    """


query.add_command(tcia)
query.add_command(isic)


@query.group()
def idc() -> None:
    """Explore the NCI Imaging Data Commons in its index, offline.

    All options given must hold; an option given more than once means any of its values.
    """


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
    with _open(index) as client, item_border(series_uid, "see `medhaul query idc series`"):
        print_lines(iter(client.file_urls(series_uid, provider)))


@idc.command()
@click.argument("series_uid", metavar="SERIES_UID")
@click.argument("folder", metavar="DEST", type=click.Path(path_type=Path, file_okay=False))
@index_option
def download(series_uid: str, folder: Path, index: str) -> None:
    """Download one series to DEST/SERIES_UID, every file verified; whole or not at all."""
    with _open(index) as client, item_border(series_uid, "see `medhaul query idc series`"):
        paths = client.download_series(series_uid, folder)
    print_lines(map(str, paths))


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
