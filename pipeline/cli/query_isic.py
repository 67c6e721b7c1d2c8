"""`medhaul query isic`: what the ISIC Archive of skin images holds, asked of its API; no image is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from pipeline.cli.common import make_echo
from pipeline.cli.isic_images import Images, Wanted, find_collections, tell_missing
from pipeline.cli.query_isic_options import (
    IMAGE_HEADER,
    IMAGE_TABLE,
    OTHER,
    Rows,
    asks_site,
    explain_nothing,
    image_cells,
    name_columns,
    note_kept,
    select_options,
)
from pipeline.cli.query_table import choose_form, form_options, print_rows, printing
from pipeline.errors import ItemsFailedError, UsageError
from pipeline.sources.isic_fields import FIELDS, OLD_NAMES
from pipeline.sources.isic_rows import Collection, Lesion, Record, User

if TYPE_CHECKING:
    from pipeline.sources.isic_client import IsicClient

_COLLECTION = ("id", "name", "public", "pinned", "locked", "doi")
_LESION = ("id", "images_count", "longitudinally_monitored", "index_image_id", "outcome_diagnosis")


@click.group()
def isic() -> None:
    """Explore the ISIC Archive of skin images through its API.

    \b
    medhaul query isic collections --counts --sort -images
    medhaul query isic facets --collection 249 --field diagnosis_1 --field sex
    medhaul query isic images --query "diagnosis_1:Malignant AND age_approx:[50 TO *]" --limit 20
    medhaul query isic images --collection HAM10000 --where "pixels_x >= 600 AND sex IS NOT NULL" --csv
    medhaul query isic size --query 'image_type:"TBP tile: close-up"'
    medhaul query isic image ISIC_0000001
    medhaul query isic fields

    All options given must hold. --query is in the archive's own search language, and the site searches; --where is
    SQL over the fields, and decided here. Tables show the main columns, --csv and --json all of them.

    Answers are kept in the user's cache folder for a day, pages of long lists of images for 30, and their use is told;
    --refresh asks anew.
    `medhaul metadata isic` writes tables of all metadata to a file.

    Public images need no account. For others, MEDHAUL_ISIC_CREDENTIALS names a file of mode 0600 with a token (as
    isic-cli keeps it, or the token alone), or MEDHAUL_ISIC_TOKEN holds it. Tokens are good for a day.
    """


@isic.command()
@click.option("--name", default="", metavar="TEXT", help="Only those with this text in their name, in any case.")
@click.option("--pinned/--not-pinned", default=None, help="Only those that the archive recommends, or only others.")
@click.option("--counts", is_flag=True, help="With the number of images: one more request a collection.")
@asks_site(*_COLLECTION)
def collections(client: IsicClient, output: Rows, name: str, pinned: bool | None, counts: bool) -> None:
    """List collections, the newest first.

    \b
    medhaul query isic collections --pinned --sort name
    medhaul query isic collections --name challenge --counts
    """
    found = [each for each in client.collections(pinned=pinned) if name.casefold() in (each.name or "").casefold()]
    header, rows = _records(Collection, found)
    if counts:
        header = [*header[:2], "images", *header[2:]]
        rows = ([*row[:2], client.count(collections=[row[0]]), *row[2:]] for row in rows)
        if tuple(output.wanted) == _COLLECTION:
            output.choose(*_COLLECTION[:2], "images", *_COLLECTION[2:])
    output.show(header, rows)


@isic.command()
@click.option("--all", "everything", is_flag=True, help="All images of the archive: some 500,000, 100 a request.")
@select_options
@click.option("--id-only", is_flag=True, help="Print only ISIC ids, one a line.")
@asks_site(*IMAGE_TABLE)
def images(client: IsicClient, output: Rows, wanted: Wanted, everything: bool, id_only: bool) -> None:
    """List images with their metadata.

    Oldest first, or in the order of --ids. `medhaul metadata isic -o FILE` writes tables of many images.

    \b
    medhaul query isic images --collection 249 --where "diagnosis_3 ILIKE '%nevus%'" --limit 10
    medhaul query isic images --query lesion_id:IL_1234567 --sort acquisition_day
    medhaul query isic images --query "sex:male" --columns isic_id,age_approx --csv
    medhaul query isic images --ids list.txt --json
    medhaul query isic images --query "sex:female AND -mel_thick_mm:*" --id-only > list.txt
    """
    if wanted.all and not everything and output.limit is None:
        hint = "give --query, --collection, --where, --conditions or --ids; --limit for the first; --all for all"
        raise UsageError("nothing says which images", hint=hint)
    output.choose(*(("isic_id",) if id_only else name_columns(output.wanted)))
    chosen = Images(client, wanted)
    if id_only:
        output.lines(each.isic_id for each in chosen)
    else:
        output.show(IMAGE_HEADER, map(image_cells, chosen))
    if why := explain_nothing(chosen, wanted):
        make_echo(quiet=False, verbose=False).note(why)
    note_kept(chosen)
    if chosen.missing:
        assert wanted.ids is not None
        raise ItemsFailedError(
            f"not found: {tell_missing(chosen.missing, len(wanted.ids))}",
            hint="they were withdrawn, never were, or are not public",
        )


@isic.command()
@click.argument("isic_ids", metavar="ISIC_ID...", nargs=-1, required=True)
@asks_site(sortable=False)
def image(client: IsicClient, output: Rows, isic_ids: tuple[str, ...]) -> None:
    """Tell all that the archive says about images, as it is now.

    A table has a line for each field; --csv and --json a row for each image.
    """
    found = {isic_id: client.image(isic_id) for isic_id in dict.fromkeys(isic_ids)}
    rows = [image_cells(each) for each in found.values() if each is not None]
    if output.kind == "table":
        pairs = [(name, value) for row in rows for name, value in zip(IMAGE_HEADER, row, strict=True)]
        output.show(["field", "value"], [pair for pair in pairs if pair[1] not in (None, {})])
    else:
        output.show(IMAGE_HEADER, rows)
    missing = [isic_id for isic_id, each in found.items() if each is None]
    if missing:
        text = f"ISIC does not have {tell_missing(missing, len(found))}"
        raise ItemsFailedError(text, hint="withdrawn, never there, or not public")


@isic.command()
@select_options
@asks_site(sortable=False)
def size(client: IsicClient, output: Rows, wanted: Wanted) -> None:
    """Say how much is selected: images and bytes.

    Bytes are about right: the site keeps those of the files as they came in, and counts once a day. With --where,
    --conditions or --ids, images are listed and counted here.
    """
    if wanted == Wanted(query=wanted.query, collections=wanted.collections):
        numbers = find_collections(client, wanted.collections)
        row = [client.count(wanted.query, numbers), client.size(wanted.query, numbers)]
    else:
        row = [0, 0]
        chosen = Images(client, wanted)
        for each in chosen:
            row[0] += 1
            row[1] += (each.full.size if each.full else None) or 0
        note_kept(chosen)
    output.show(["images", "bytes"], [row])


@isic.command()
@click.argument("lesion_ids", metavar="[LESION_ID]...", nargs=-1)
@asks_site(*_LESION)
def lesions(client: IsicClient, output: Rows, lesion_ids: tuple[str, ...]) -> None:
    """List lesions, or some of them, with the ids of their images.

    Only lesions of which all images may be seen. --csv and --json have the ids of the images.

    \b
    medhaul query isic lesions IL_1234567 --json
    medhaul query isic lesions --limit 100 --csv
    """
    missing: list[str] = []

    def ask() -> Iterator[Lesion]:
        for lesion_id in dict.fromkeys(lesion_ids):
            found = client.lesion(lesion_id)
            if found is None:
                missing.append(lesion_id)
            else:
                yield found

    header = [
        name for name in (field.name for field in msgspec.structs.fields(Lesion)) if name not in {"images", OTHER}
    ]
    rows = (
        [*(getattr(each, name) for name in header), [one.isic_id for one in each.images], each.other]
        for each in (ask() if lesion_ids else client.lesions())
    )
    output.show([*header, "images", OTHER], rows)
    if missing:
        text = f"ISIC does not have {', '.join(missing[:5])}"
        raise ItemsFailedError(text, hint="never there, or some of the images are not public")


@isic.command()
@click.option("--old", is_flag=True, help="Names of earlier versions of the archive, and what became of them.")
@form_options
def fields(form: str, old: bool) -> None:
    """List the fields that images have.

    For --columns, --where and --query; asks nobody. `searchable`: --query knows it. --where takes the full name, which
    stands in `column`, as well, in double quotes. `medhaul metadata isic --fields` counts the fields in use.
    """
    header = ["field", "type", "searchable", "column", "values"]
    rows: list[list[Any]] = [
        [each.name, each.kind, each.searchable, each.column, "; ".join(each.values)] for each in FIELDS.values()
    ]
    if old:
        header, rows = ["old", "new", "note"], [[name, each.new, each.note] for name, each in OLD_NAMES.items()]
    with printing():
        print_rows(header, rows, choose_form(form))


@isic.command()
@asks_site(sortable=False)
def stats(client: IsicClient, output: Rows) -> None:
    """Tell how much there is in the whole archive."""
    output.show(["name", "count"], [[name, count] for name, count in client.stats().items()])


@isic.command()
@click.option("--query", default="", metavar="DSL", help="Of the images that this finds.")
@click.option("--collection", multiple=True, help="Of the images of this collection, by number or name.")
@click.option("--field", multiple=True, help="Only this field.")
@asks_site()
def facets(client: IsicClient, output: Rows, query: str, collection: tuple[str, ...], field: tuple[str, ...]) -> None:
    """Count images by the values of fields.

    The site counts once a day, and tells a field's most frequent values only.

    \b
    medhaul query isic facets --field diagnosis_3 --query "diagnosis_1:Malignant"
    """
    wanted = {name.casefold() for name in name_columns(field)}
    found = client.facets(query, find_collections(client, collection))
    rows = [
        [name, value, count]
        for name, counts in found.items()
        if not wanted or name.casefold() in wanted
        for value, count in counts.items()
    ]
    output.show(["field", "value", "count"], rows)


def _make_records_command(name: str, kind: Literal["studies", "annotations"], summary: str) -> None:
    @isic.command(name, help=summary)
    @asks_site()
    def command(client: IsicClient, output: Rows) -> None:
        found: Iterator[Record] = iter(getattr(client, kind)())
        some = list(islice(found, None if output.sorts else output.limit))
        header = list(dict.fromkeys(["id", *(path for each in some for path in each.values)]))
        output.show(header, ([each.values.get(path) for path in header] for each in some))


_make_records_command("studies", "studies", "List studies. Only for staff of the archive, with a token.")
_make_records_command(
    "annotations", "annotations", "List annotations of studies. Only for staff of the archive, with a token."
)


@isic.command()
@asks_site("id", "full_name", "email", "hash_id", "accepted_terms", sortable=False)
def me(client: IsicClient, output: Rows) -> None:
    """Tell whom the archive takes you for, by the token.

    An expired token is no error elsewhere: images that are not public are just missing. Here it ends with 77.
    """
    output.show(*_records(User, [client.me()]))


def _records(kind: type[msgspec.Struct], found: list[Any]) -> tuple[list[str], Iterator[list[Any]]]:
    header = [field.name for field in msgspec.structs.fields(kind)]
    return header, ([getattr(each, name) for name in header] for each in found)
