"""What a manifest's row says of an ISIC image: the planner writes it, whoever makes tables of a run reads it. Pure.

A row has the registry's columns, then what the listed images have beyond it (a column each, or all in `other`), then
`ADDED`. `pipeline.sources.isic_body` reads the registry's columns alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.sources.isic_cells import COLLECTION_IDS, COLLECTION_NAMES, REST, join_values
from pipeline.sources.isic_rows import Collection, Value

# The collection that the image is stored under; of all selected ones that it is in, the ids with blanks between, and as
# JSON lists the names and the different DOIs; where its licence is.
ADDED = ("collection", "collection_ids", "collections", "LicenseURI", "source_DOIs")
LICENCE_URLS = {
    "CC-0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-NC": "https://creativecommons.org/licenses/by-nc/4.0/",
}


class Described(msgspec.Struct, frozen=True):
    """An image by its row: `row` as `flatten_image` has it, with the collections; URL of its licence; DOIs."""

    row: dict[str, Value]
    licence_url: str
    dois: tuple[str, ...]


def name_others(others: set[str], most: int) -> list[str]:
    """Names of the columns beyond the registry's: sorted, or, for more than `most`, `other` for all of them."""
    # An image may have a field of that name: that would not be told from the column for all.
    return [REST] if len(others) > most or REST in others else sorted(others)


def unfold_other(names: Sequence[str], other: str | None) -> list[Value]:
    """Values of the columns `names` from what an image has beyond the registry, as a JSON object."""
    if list(names) == [REST]:
        return [other]
    values = msgspec.json.decode(other) if other and names else {}
    return [values.get(name) for name in names]


def collection_name(collection: Collection) -> str:
    """What a collection is called; its number where it has no name."""
    return (collection.name or "").strip() or str(collection.id)


def added_values(licence: str, stored_in: str, collections: Sequence[Collection]) -> list[Value]:
    """Values of `ADDED`; `collections` are the selected ones that the image is in."""
    uri = LICENCE_URLS.get(licence)
    if not collections:
        return [stored_in, None, None, uri, None]
    ids = " ".join(str(each.id) for each in collections)
    dois = list(dict.fromkeys(each.doi for each in collections if each.doi))
    return [stored_in, ids, _encode(list(map(collection_name, collections))), uri, _encode(dois) if dois else None]


def read_meta(columns: Sequence[str], meta: bytes) -> Described:
    """Read a row. `ValueError`: it does not have as many values as there are columns."""
    values = msgspec.json.decode(meta)
    split = len(columns) - len(ADDED)
    _, ids, names, uri, dois = values[split:]
    row: dict[str, Value] = dict(zip(columns[:split], values[:split], strict=True))
    if REST in row:
        rest = row.pop(REST)
        row |= msgspec.json.decode(str(rest)) if rest else {}
    row[COLLECTION_IDS] = join_values((ids or "").split())
    row[COLLECTION_NAMES] = join_values(_decode(names))
    return Described(row, uri or "", tuple(_decode(dois)))


def _encode(values: list[str]) -> str:
    return msgspec.json.encode(values).decode()


def _decode(text: str | None) -> list[str]:
    return msgspec.json.decode(text, type=list[str]) if text else []
