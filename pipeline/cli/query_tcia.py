"""`medhaul query tcia`: what The Cancer Imaging Archive holds, asked of its API; only `image` downloads an image."""

from __future__ import annotations

import datetime as dt
import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline.cli.query_table import Output, choose_form, form_options, item_border, print_lines, print_records
from pipeline.cli.query_tcia_options import (
    RECOUNTED,
    all_option,
    asks_site,
    combine,
    filter_options,
    gather,
    give_series,
    list_options,
    make_filter,
    row_options,
    since_option,
    strip_markup,
    where_option,
)
from pipeline.cli.query_tcia_search import counts, doi, search
from pipeline.errors import ConfigError, ItemsFailedError, SiteUnavailableError, UsageError
from pipeline.sources.tcia_lines import explain_no_uid
from pipeline.sources.tcia_rows import Description, Patient, Series, SeriesMetadata, Study, Tag, sql_columns

if TYPE_CHECKING:
    from pipeline.sources.tcia_client import TciaClient

Chosen = tuple[str, ...]
_PLACE_FILTERS = ("collection", "patient", "study", "series")
_SERIES_FILTERS = (*_PLACE_FILTERS, "modality", "body_part", "manufacturer", "model")


class Column(msgspec.Struct, frozen=True):
    """A column that `--where` may use."""

    name: str
    type: str


class Size(msgspec.Struct, frozen=True):
    """How much is selected; `unstated`: series whose size the site does not tell."""

    collections: int
    patients: int
    studies: int
    series: int
    files: int
    bytes: int
    unstated: int


@click.group()
def tcia() -> None:
    """Explore The Cancer Imaging Archive (TCIA, NBIA) through its API.

    \b
    medhaul query tcia collections
    medhaul query tcia counts modality --collection "RIDER Pilot"
    medhaul query tcia series --collection "RIDER Pilot" --where "Modality = 'CT' AND ImageCount >= 100"
    medhaul query tcia series --patient LIDC-IDRI-0001 --columns SeriesInstanceUID,StudyDate,SeriesDescription
    medhaul query tcia size --collection LIDC-IDRI --modality CT
    medhaul query tcia series --collection LIDC-IDRI --modality CT --manifest lidc-ct.tcia
    medhaul query tcia updated --since 2026-10-01 --csv > new.csv

    All options given must hold; one given more than once means any of its values. Tables show the main columns,
    --csv and --json all of them. Answers are kept in the user's cache folder for --expire;
    --refresh asks anew.

    Public collections need no account. For others, MEDHAUL_TCIA_CREDENTIALS names a TOML file of mode 0600 with
    username and password, or MEDHAUL_TCIA_USERNAME and MEDHAUL_TCIA_PASSWORD hold them.
    """


def _make_values_command(name: str, method: str, column: str, filters: tuple[str, ...], summary: str) -> None:
    @tcia.command(name, help=summary)
    @filter_options(*filters)
    @row_options
    @asks_site
    def command(client: TciaClient, output: Output, **chosen: Chosen) -> None:
        found = {value for each in combine(chosen) for value in getattr(client, method)(**each)}
        output.rows([column], ([value] for value in sorted(found)))


_make_values_command("collections", "collections", "collection", (), "List the collections.")
_make_values_command("modalities", "modalities", "Modality", ("collection", "body_part"), "List the modalities.")
_make_values_command(
    "bodyparts", "body_parts", "BodyPartExamined", ("collection", "modality"), "List the parts of the body."
)
_make_values_command(
    *("manufacturers", "manufacturers", "Manufacturer", ("collection", "modality", "body_part")),
    "List the manufacturers of scanners.",
)


@tcia.command()
@filter_options("collection", "patient", "modality")
@row_options
@asks_site
def patients(client: TciaClient, output: Output, modality: Chosen, **chosen: Chosen) -> None:
    """List patients. --modality needs --collection.

    A patient in two collections comes twice.
    """
    if modality and not chosen["collection"]:
        raise UsageError("--modality needs --collection here", hint="see `medhaul query tcia search --modality`")
    found = gather(client.patients, chosen)
    if modality:
        pairs = [(name, kind) for name in dict.fromkeys(chosen["collection"]) for kind in dict.fromkeys(modality)]
        having = {(name.casefold(), one) for name, kind in pairs for one in client.patients_by_modality(name, kind)}
        found = [one for one in found if ((one.collection or "").casefold(), one.PatientID) in having]
    output.records(found, Patient)


@tcia.command()
@filter_options("collection", "patient", "study")
@row_options
@asks_site
def studies(client: TciaClient, output: Output, **chosen: Chosen) -> None:
    """List studies."""
    output.records(gather(client.studies, chosen), Study)


@tcia.command()
@filter_options(*_SERIES_FILTERS)
@all_option
@list_options
@asks_site
def series(
    client: TciaClient,
    output: Output,
    everything: bool,
    where: str,
    uids: bool,
    manifest: Path | None,
    **chosen: Chosen,
) -> None:
    """List series, or write a manifest of them.

    A manifest is for [select.tcia] of a config, and for TCIA's own tools.

    \b
    medhaul query tcia series --collection "RIDER Pilot" --modality CT --modality MR
    medhaul query tcia series --collection LIDC-IDRI --where "ImageCount > 200 AND Manufacturer ILIKE 'ge %'"
    medhaul query tcia series --patient LIDC-IDRI-0001 --columns SeriesInstanceUID,StudyDate --csv
    medhaul query tcia series --collection LIDC-IDRI --modality CT --uids > list.txt
    medhaul query tcia series --collection LIDC-IDRI --modality CT --manifest lidc-ct.tcia
    """
    rows = _find_series(client, chosen, where, everything=everything)
    give_series(client, output, rows, Series, uids=uids, manifest=manifest)


@tcia.command()
@filter_options(*_SERIES_FILTERS)
@all_option
@where_option
@click.option("--recount", is_flag=True, help=f"Have the site count anew: slow; for {RECOUNTED} series at most.")
@asks_site
def size(client: TciaClient, output: Output, everything: bool, where: str, recount: bool, **chosen: Chosen) -> None:
    """Say how much is selected: series, files and bytes.

    Bytes are those of the unpacked files, as the list of series has them.
    """
    found = _find_series(client, chosen, where, everything=everything)
    counted = [(one.ImageCount, one.FileSize) for one in found]
    if recount:
        if len(found) > RECOUNTED:
            raise UsageError(f"--recount is for {RECOUNTED} series at most, not {len(found):,}", hint="select less")
        sizes = [client.series_size(one.SeriesInstanceUID) for one in found]
        counted = [(one.ImageCount, one.FileSize) for one in sizes]
    total = Size(
        collections=len({one.collection for one in found}),
        patients=len({(one.collection, one.PatientID) for one in found}),
        studies=len({one.StudyInstanceUID for one in found}),
        series=len(found),
        files=sum(files or 0 for files, _ in counted),
        bytes=sum(size or 0 for _, size in counted),
        unstated=sum(None in pair for pair in counted),
    )
    output.records([total], Size)


def _find_series(client: TciaClient, chosen: dict[str, Chosen], where: str, *, everything: bool) -> list[Series]:
    keep = make_filter(where, Series)
    if not any(chosen.values()) and not everything:
        options = ", ".join(f"--{name}" for name in _PLACE_FILTERS)
        raise UsageError("nothing says which series", hint=f"give {options} or another filter; --all for all there are")
    return keep(gather(client.series, chosen))


@tcia.command()
@click.argument("series_uid", metavar="SERIES_UID")
@click.option("--md5", is_flag=True, help="With the site's MD5 of each: one more request an instance.")
@row_options
@asks_site
def sops(client: TciaClient, output: Output, series_uid: str, md5: bool) -> None:
    """List the SOPInstanceUIDs of a series."""
    found = client.instances(series_uid)
    if md5:
        output.rows(["SOPInstanceUID", "MD5"], ([uid, client.image_md5(uid)] for uid in found))
    else:
        output.rows(["SOPInstanceUID"], ([uid] for uid in found))


@tcia.command()
@click.argument("name")
@list_options
@asks_site
def cart(client: TciaClient, output: Output, name: str, where: str, uids: bool, manifest: Path | None) -> None:
    """List the series of a shared cart, by its name."""
    keep = make_filter(where, Series)
    give_series(client, output, keep(client.cart(name)), Series, uids=uids, manifest=manifest)


@tcia.command()
@click.argument("series_uids", metavar="SERIES_UID...", nargs=-1, required=True)
@list_options
@asks_site
def metadata(
    client: TciaClient, output: Output, series_uids: Chosen, where: str, uids: bool, manifest: Path | None
) -> None:
    """Tell all that the site says about series.

    `-` reads their UIDs from standard input, one a line.

    \b
    medhaul query tcia metadata 1.3.6.1.4.1.14519.5.2.1.1 --json
    medhaul query tcia series --collection LIDC-IDRI --uids | medhaul query tcia metadata - --csv > lidc.csv
    """
    keep = make_filter(where, SeriesMetadata)
    given = sys.stdin.read().split() if series_uids == ("-",) else series_uids
    asked = list(dict.fromkeys(given))
    for uid in asked:
        if why := explain_no_uid(uid):
            raise UsageError(f"{uid[:80]!r} is no DICOM UID ({why})", hint="digits and dots, 64 at most")
    found = client.look_up().ask(asked)
    if found.unanswered and not found.rows:
        raise SiteUnavailableError("; ".join(list(found.unanswered.values())[:1]), hint="try again later")
    give_series(client, output, keep(found.rows), SeriesMetadata, uids=uids, manifest=manifest)
    told = []
    if found.unknown:
        said = next(filter(None, found.unknown.values()), "")
        told.append(f"TCIA does not know {_some(found.unknown, asked)}" + (f"; it said: {said}" if said else ""))
    if found.unanswered:
        why = next(iter(found.unanswered.values()))
        told.append(f"nobody could tell of {_some(found.unanswered, asked)}: {why}")
    if told:
        hint = "try again later" if found.unanswered else "they may be withdrawn or restricted"
        raise ItemsFailedError("; ".join(told), hint=hint)


def _some(missing: Iterable[str], asked: Sequence[str]) -> str:
    """How many of the asked series are missing, and the first of them."""
    names = sorted(missing)
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"{len(names):,} of {len(asked):,} series: {', '.join(names[:5])}{more}"


@tcia.command()
@filter_options("collection")
@row_options
@asks_site
def descriptions(client: TciaClient, output: Output, **chosen: Chosen) -> None:
    """Tell what collections are about, with their DOIs.

    A table leaves out the markup; CSV and JSON have it.
    """
    found = gather(client.descriptions, chosen)
    if output.kind == "table":
        found = [msgspec.structs.replace(one, description=strip_markup(one.description or "")) for one in found]
    output.records(found, Description)


@tcia.command()
@click.argument("series_uid", metavar="SERIES_UID")
@row_options
@asks_site
def tags(client: TciaClient, output: Output, series_uid: str) -> None:
    """List the DICOM elements of a series' first image."""
    output.records(client.dicom_tags(series_uid), Tag)


for _command in (counts, search, doi):
    tcia.add_command(_command)


@tcia.command("new-patients")
@filter_options("collection")
@since_option
@row_options
@asks_site
def new_patients(client: TciaClient, output: Output, collection: Chosen, since: dt.datetime) -> None:
    """List patients added since a day.

    Perhaps some of the day before.
    """
    names = _need_collection(collection)
    output.records([one for name in names for one in client.new_patients(name, since.date())], Patient)


@tcia.command("new-studies")
@filter_options("collection", "patient")
@since_option
@row_options
@asks_site
def new_studies(client: TciaClient, output: Output, collection: Chosen, patient: Chosen, since: dt.datetime) -> None:
    """List studies added since a day.

    Perhaps some of the day before.
    """
    chosen = {"collection": _need_collection(collection), "patient": patient}
    output.records(gather(functools.partial(client.new_studies, since=since.date()), chosen), Study)


def _need_collection(collection: Chosen) -> Chosen:
    if not collection:
        raise UsageError("which collection?", hint="give --collection; `updated --since` asks for all")
    return tuple(dict.fromkeys(collection))


@tcia.command()
@since_option
@list_options
@asks_site
def updated(
    client: TciaClient, output: Output, since: dt.datetime, where: str, uids: bool, manifest: Path | None
) -> None:
    """List series that are new or changed since a day.

    Perhaps some of the day before. NLST, which has a host of its own, is not among them.
    """
    keep = make_filter(where, Series)
    give_series(client, output, keep(client.updated_series(since.date())), Series, uids=uids, manifest=manifest)


@tcia.command()
@click.option("--metadata", "of_metadata", is_flag=True, help="Those of `metadata`, which has more.")
@form_options
def columns(form: str, of_metadata: bool) -> None:
    """List the columns for --where and --columns, with types.

    `where` of [select.tcia] in a config may use the same, without --metadata.
    """
    types = sql_columns(SeriesMetadata if of_metadata else Series)
    print_records((Column(name, kind) for name, kind in types.items()), Column, choose_form(form))


@tcia.command()
@click.argument("series_uid", metavar="SERIES_UID")
@click.argument("instance", metavar="SOP_UID")
@click.argument("path", metavar="FILE.dcm", type=click.Path(path_type=Path, dir_okay=False))
@asks_site
def image(client: TciaClient, output: Output, series_uid: str, instance: str, path: Path) -> None:  # noqa: ARG001 - one image is no table
    """Download one image, verified.

    Its UIDs must be those asked for, its pixel data all there, and its MD5 the one that the site states, if any.
    """
    hint = f"see `medhaul query tcia sops {series_uid}`"
    with item_border(instance, hint):
        try:
            done = client.single_image(series_uid, instance, path)
        except SiteUnavailableError:  # what NBIA also says for an instance that it does not have
            known = client.instances(series_uid)
            if not known or instance in known:
                raise
            raise ConfigError(f"{instance} is none of the {len(known):,} images of {series_uid}", hint=hint) from None
    print_lines([str(done)])
