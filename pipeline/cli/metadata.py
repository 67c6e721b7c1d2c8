"""`medhaul metadata`: tables of what an archive site says about its images, without the images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Echo, make_echo
from pipeline.cli.isic_images import Images, Wanted, image_progress, tell_missing
from pipeline.cli.query_isic_options import (
    ended_by_sigterm,
    explain_nothing,
    note_kept,
    open_client,
    patience,
    select_options,
    site_options,
)
from pipeline.cli.query_table import choose_form, print_lines, print_records, printing
from pipeline.errors import ItemsFailedError, UsageError
from pipeline.report.isic_census import Census, FieldUse, read_uses
from pipeline.report.isic_columns import (
    COLLECTION_IDS,
    COLLECTION_NAMES,
    Columns,
    default_columns,
    importer_columns,
    read_mapping,
)
from pipeline.report.isic_table import Written, choose_table_form, render_lines, write_table
from pipeline.sources.isic_cells import join_values
from pipeline.sources.isic_rows import Image

BATCH = 100  # images whose collections are looked up at once


@click.group()
def metadata() -> None:
    """Write tables of what a site says about its images.

    \b
    medhaul metadata isic --collection 249 -o bcn20000.csv
    """


_FILE = click.Path(path_type=Path, dir_okay=False)


@metadata.command()
@select_options
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="A .csv, .parquet or .jsonl file; else CSV to stdout.")
@click.option("--columns", type=_FILE, metavar="MAP.csv", help="Columns of your own: two columns, my name,ISIC field.")
@click.option("--importer", is_flag=True, help="The columns of the metadata importer of 2017.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="The first N images that match.")
@click.option("--exact", is_flag=True, help="Leave cells of CSV as they are, also what a spreadsheet would run.")
@click.option("--fields", is_flag=True, help="List the fields in use instead, with counts and types.")
@click.option(
    "--from",
    "source",
    type=click.Choice(["auto", "rows", "facets"]),
    default="auto",
    show_default=True,
    help="Where --fields counts: all rows, or the site's facets (one request, frequent values). auto: facets for the"
    " whole archive.",
)
@click.option("--csv", "form", flag_value="csv", help="Print --fields as CSV.")
@click.option("--json", "form", flag_value="json", help="Print --fields as JSON.")
@site_options
def isic(wanted: Wanted, fields: bool, source: str, form: str | None, **options: Any) -> None:
    """Write a table of the ISIC Archive's images, a row each.

    Without --columns, a table has every field that there is, always in the same order (`medhaul query isic fields`),
    and `other` for what is newer than this version. What an image does not have is an empty cell. Nothing given: the
    whole archive, some 500,000 images, 100 a request; pages are kept, so an interrupted table goes on where it was.

    \b
    medhaul metadata isic --collection HAM10000 -o ham.csv
    medhaul metadata isic --query "diagnosis_1:Malignant" --where "age_approx >= 50" -o malignant.parquet
    medhaul metadata isic --ids list.txt --columns mine.csv -o mine.csv
    medhaul metadata isic --collection 65 --collection 70 --importer -o old.csv
    medhaul metadata isic --fields --collection 249
    medhaul metadata isic --count 10 | head -3

    mine.csv has a line for each column, with or without a header; older names of fields are understood:

    \b
    my name,ISIC field
    patient,patient_id
    outcome,benign_malignant
    challenge,collections

    `collections` and `collection_ids` are those of --collection that an image is in. A cell that begins with = + - @,
    a tab or a line end, and is no number, gets a leading ' so that no spreadsheet runs it; --exact leaves it out.
    A file is there when it is whole. Ids that the archive does not have end with 3, and the table has the others.
    """
    with ended_by_sigterm():
        _choose(wanted, fields=fields, source=source, form=form, **options)


def _choose(wanted: Wanted, *, fields: bool, source: str, form: str | None, **options: Any) -> None:
    """List fields or write a table."""
    echo = make_echo(quiet=False, verbose=False)
    site = {name: options.pop(name) for name in ("base_url", "expire", "refresh", "offline", "wait")}
    if fields:
        if options["output"] or options["columns"] or options["importer"] or options["exact"]:
            raise UsageError("--fields is a list of its own", hint="leave out -o, --columns, --importer and --exact")
        _list_fields(wanted, source, form or "table", options["count"], site, echo)
        return
    if form or source != "auto":
        raise UsageError("--csv, --json and --from are for --fields", hint="-o FILE.csv or FILE.jsonl says the form")
    _write(wanted, site=site, echo=echo, **options)


def _list_fields(wanted: Wanted, source: str, form: str, count: int | None, site: dict[str, Any], echo: Echo) -> None:
    local = Wanted(query=wanted.query, collections=wanted.collections) != wanted or count is not None
    if source == "facets" and local:
        raise UsageError(
            "the site's facets know --query and --collection only", hint="leave out the others, or --from rows"
        )
    with open_client(**site) as client, patience():
        images = Images(client, wanted)
        if source == "facets" or (source == "auto" and wanted.all and count is None):
            uses = read_uses(client.facets(wanted.query, images.resolve()))
            echo.note("as the site counts once a day: frequent values only, and not all fields; --from rows counts all")
        else:
            census = Census()
            with image_progress("fields", quiet=echo.quiet) as tell:
                images = Images(client, wanted, tell)
                for each in islice(images, count):
                    census.add(_make_row(each))
            uses = census.result()
            echo.note(f"{census.rows:,} images")
            note_kept(images)
    with printing():
        print_records(uses, FieldUse, choose_form(form))


def _choose_columns(columns: Path | None, wanted: Wanted, echo: Echo, *, importer: bool) -> Columns:
    """The table's columns. Raises `UsageError`, `ConfigError`."""
    if columns is not None and importer:
        raise UsageError("--columns and --importer contradict each other", hint="give one of them")
    chosen = default_columns()
    if columns is not None:
        chosen = read_mapping(columns)
        if chosen.by_collection and not wanted.collections:
            raise UsageError(
                f"{columns}: images do not say which collections they are in",
                hint="name those to look in: --collection",
            )
    elif importer:
        chosen = importer_columns()
    for note in chosen.notes:
        echo.note(note)
    return chosen


def _write(
    wanted: Wanted,
    *,
    output: Path | None,
    columns: Path | None,
    importer: bool,
    count: int | None,
    exact: bool,
    site: dict[str, Any],
    echo: Echo,
) -> None:
    form = choose_table_form(output) if output is not None else "csv"
    if exact and form != "csv":
        raise UsageError("--exact is for CSV: other forms are exact", hint="leave it out")
    chosen = _choose_columns(columns, wanted, echo, importer=importer)
    quiet = echo.quiet or (output is None and sys.stdout.isatty())
    with open_client(**site) as client, patience(), image_progress(str(output or "images"), quiet=quiet) as tell:
        images = Images(client, wanted, tell)
        some = count is not None or wanted.ids is not None
        rows = _make_rows(images, count, by_collection=chosen.by_collection, some=some)
        written = None
        if output is None:
            with printing():
                print_lines(render_lines(chosen.columns, rows, form=form, exact=exact))
        else:
            written = write_table(output, chosen.columns, rows, form=form, exact=exact)
    if written is not None and output is not None:
        _report(output, written, echo, named=columns is not None)
    _explain(images, wanted, echo)


def _make_row(image: Image) -> dict[str, Any]:
    """All that an image has; signatures of URLs are left out: tables are given to others."""
    from pipeline.sources.isic_table import image_row

    row, other = image_row(image)
    return {**row, **other}


def _make_rows(images: Images, count: int | None, *, by_collection: bool, some: bool) -> Iterator[Mapping[str, Any]]:
    """Rows of the first `count` images; `some`: they may be few, so their collections are looked up one by one."""
    numbers = images.resolve() if by_collection else ()
    names = images.names() if numbers else {}
    several = len(numbers) > 1
    masks = images.memberships() if several and not some else {}
    chosen = islice(images, count)
    while part := list(islice(chosen, BATCH if several and some else 1)):
        if several and some:
            masks = images.memberships([image.isic_id for image in part])
        for image in part:
            row = _make_row(image)
            if numbers:
                mask = masks.get(image.isic_id, 0) if several else 1
                inside = [number for place, number in enumerate(numbers) if mask >> place & 1]
                row[COLLECTION_IDS] = join_values(inside)
                row[COLLECTION_NAMES] = join_values(names[number] for number in inside)
            yield row


def _report(output: Path, written: Written, echo: Echo, *, named: bool) -> None:
    echo.note(f"{output}: {written.rows:,} images")
    if named and written.rows and written.empty:
        echo.note(f"no image has a value for {', '.join(written.empty)}")


def _explain(images: Images, wanted: Wanted, echo: Echo) -> None:
    """Tell what people should know of the table, and raise `ItemsFailedError` for ids that did not come."""
    if why := explain_nothing(images, wanted):
        echo.note(f"nothing matches: {why}")
    note_kept(images)
    if images.missing and wanted.ids is not None:
        raise ItemsFailedError(
            f"not found: {tell_missing(images.missing, len(wanted.ids))}",
            hint="they were withdrawn, never were, or are not public",
        )
