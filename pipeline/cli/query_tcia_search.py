"""Commands of `medhaul query tcia` that look for patients and collections: `search`, `counts`, `doi`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import make_echo
from pipeline.cli.query_table import Output, print_lines
from pipeline.cli.query_tcia_options import (
    DAY,
    FILTERS,
    asks_site,
    check_uids,
    combine,
    filter_options,
    row_options,
    write_manifest,
)
from pipeline.errors import UsageError
from pipeline.sources.tcia_rows import DoiEntry
from pipeline.sources.tcia_search import CRITERIA, DATE_RANGE, RANGES, FoundPatient

if TYPE_CHECKING:
    from pipeline.sources.tcia_client import TciaClient

_COUNTED: dict[str, Any] = {
    name.replace("_", "-"): name for name in ("collection", "modality", "body_part", "manufacturer", "species")
}


def search_options(command: Any) -> Any:
    """Add the criteria of a search as options."""
    helps = FILTERS | {
        "software": "SoftwareVersions.",
        "sex": "PatientSex: M, F or O.",
        "time_point": "Longitudinal time point.",
        "min_studies": "With at least so many studies.",
        "min_study_dates": "With studies on at least so many days.",
        "species": "Code, such as 337915000 (human).",
        "description": "Words of the series' description.",
        "phantom": "YES or NO.",
        "third_party": "YES or NO: results of others' analyses.",
        "exclude_commercial": "YES: not what must not be used commercially.",
        "all_modalities": "all: patients who have all the modalities, rather than any.",
    }
    ranges = {"age": "In years.", "pixel_spacing": "In mm.", "slice_thickness": "In mm.", DATE_RANGE: "Days."}
    for name in reversed([*CRITERIA, *RANGES, DATE_RANGE]):
        flag = f"--{name.replace('_', '-')}"
        if name in ranges:
            kind: Any = DAY if name == DATE_RANGE else str
            command = click.option(flag, name, nargs=2, type=kind, metavar="FROM TO", help=ranges[name])(command)
        else:
            command = click.option(flag, name, multiple=True, help=helps.get(name, ""))(command)
    return command


@click.command()
@click.argument("of", type=click.Choice(list(_COUNTED)))
@filter_options("collection", "modality", "body_part")
@row_options
@asks_site
def counts(client: TciaClient, output: Output, of: str, **chosen: tuple[str, ...]) -> None:
    """Count patients by the values of a column.

    \b
    medhaul query tcia counts body-part --modality CT
    """
    if several := [name for name, values in chosen.items() if len(set(values)) > 1]:
        raise UsageError(f"--{several[0].replace('_', '-')} can be given once here", hint="patients would count twice")
    one: dict[str, Any] = next(combine(chosen))
    output.rows(["value", "count"], ((found.value, found.count) for found in client.counts(_COUNTED[of], **one)))


@click.command()
@search_options
@click.option("--start", type=click.IntRange(min=0), default=0, help="Leave out so many patients.")
@click.option("--counts", is_flag=True, help="How many patients by collection, modality, body part and species.")
@click.option("--uids", is_flag=True, help="Print SeriesInstanceUIDs of all that is found, one a line.")
@click.option("--manifest", type=click.Path(path_type=Path, dir_okay=False), help="Write them to a .tcia manifest.")
@row_options
@asks_site
def search(
    client: TciaClient, output: Output, start: int, counts: bool, uids: bool, manifest: Path | None, **given: Any
) -> None:
    """Search for patients, as the portal's simple search.

    --limit is 100 unless given.

    \b
    medhaul query tcia search --modality CT --modality PT --all-modalities all --body-part CHEST
    medhaul query tcia search --collection LIDC-IDRI --slice-thickness 0 1.5 --manifest thin.tcia
    """
    criteria = {name: list(value) for name, value in given.items() if value}
    if not criteria:
        raise UsageError("a search needs a criterion", hint="for example --collection LIDC-IDRI")
    if DATE_RANGE in criteria:
        criteria[DATE_RANGE] = [day.date() for day in criteria[DATE_RANGE]]
    if uids or manifest is not None:
        names = list(islice(client.search_series(criteria), output.limit))
        check_uids(names)
        if manifest is not None:
            write_manifest(client, manifest, names, given["collection"])
        if uids:
            print_lines(names)
        return
    wanted = output.limit or 100
    found = client.search(criteria, start=start, size=wanted)
    if counts:
        kinds = ("collections", "modalities", "body_parts", "species")
        output.rows(
            ["of", "value", "count"],
            ((kind, one.value, one.count) for kind in kinds for one in getattr(found, kind)),
        )
        return
    output.records(found.patients, FoundPatient)
    shown = start + len(found.patients)
    if found.patients and (start or shown < found.total):
        make_echo(quiet=False, verbose=False).note(
            f"{start + 1:,} to {shown:,} of {found.total:,} patients; see --start"
        )


@click.command()
@click.argument("doi")
@click.option("--series", "of_series", is_flag=True, help="Its series instead of its collections.")
@row_options
@asks_site
def doi(client: TciaClient, output: Output, doi: str, of_series: bool) -> None:
    """List what a DOI stands for: collections, or series.

    \b
    medhaul query tcia doi 10.7937/K9/TCIA.2015.LO9QL9SX
    """
    output.records(client.doi(doi, series=of_series), DoiEntry)
