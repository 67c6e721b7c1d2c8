"""What the manifest says of an ISIC image's files, and whether what came is such a file. Pure but for reading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pipeline.dicom.choose import choose_chain
from pipeline.errors import ItemError
from pipeline.images.check import EXTENSIONS, check_image
from pipeline.images.header import ImageHeader
from pipeline.model import Entry, IsicLocation, Item, RemoteFile
from pipeline.sources.base import Body, Judged, cut_files
from pipeline.sources.isic_fields import FIELDS

# In place of an extension, where the URL has none: any format will do.
UNKNOWN_EXTENSION = ".bin"
THUMBNAIL = ".thumbnail"
_PLACES = {column: place for place, column in enumerate(FIELDS)}


class Facts(msgspec.Struct, frozen=True):
    """What the manifest's row says of an image; None where it says nothing."""

    public: bool | None = None
    size: int | None = None
    thumbnail_size: int | None = None
    width: int | None = None
    height: int | None = None


def image_location(item: Item) -> IsicLocation:
    """Where an image is; raises `ItemError` for an item that is none."""
    where = item.location
    if not isinstance(where, IsicLocation) or len(where.urls) != len(where.names):
        raise ItemError("internal", f"it is not at the ISIC Archive, but at {where}")
    return where


def read_facts(item: Item) -> Facts:
    """Read a row; one that is not of this image, or of another form, says nothing."""
    try:
        values = msgspec.json.decode(item.meta)
    except msgspec.DecodeError:
        return Facts()
    if not isinstance(values, list) or values[:1] != [item.id]:
        return Facts()

    def value(column: str, kind: type) -> Any:
        place = _PLACES[column]
        found = values[place] if place < len(values) else None
        return found if type(found) is kind else None

    return Facts(
        public=value("public", bool),
        size=value("files.full.size", int),
        thumbnail_size=value("files.thumbnail_256.size", int),
        width=value("metadata.acquisition.pixels_x", int),
        height=value("metadata.acquisition.pixels_y", int),
    )


def list_files(entry: Entry) -> list[Body]:
    """The files of an entry, the image and then perhaps its thumbnail; of a cut item those of its piece.

    Their sizes are those that the archive counted when it took the image in: JPEGs have grown since.
    """
    item, where, facts = entry.item, image_location(entry.item), read_facts(entry.item)
    bodies = []
    for url, name in zip(where.urls, where.names, strict=True):
        stated = facts.thumbnail_size if name.startswith(THUMBNAIL) else facts.size
        # No site says what bytes it has: what is kept for a life to come is of this run, and was checked.
        file = RemoteFile(urlsplit(url).path.lstrip("/"), -1 if stated is None else stated, "")
        bodies.append(Body(entry, file, f"isic:{where.base_url}:{item.id}{name}"))
    if entry.pieces > 1:
        counts = cut_files([1] * len(bodies), entry.pieces)
        begin = sum(counts[: entry.piece])
        return bodies[begin : begin + counts[entry.piece]]
    return bodies


def find_index(body: Body) -> int:
    """Which file of its image a body is."""
    item = body.entry.item
    names = image_location(item).names
    return next(at for at, name in enumerate(names) if body.cache_key.endswith(f":{item.id}{name}"))


def judge_image(body: Body, path: Path) -> Judged:
    """Check that a file is a whole image, of the format of its name, and the one that was asked for.

    Raises
    ------
    ItemError
        `malformed`, `truncated`: see `check_image`; `malformed`, too, for other than the stated pixels; `wrong-uid`:
        its embedded identity is another image's.
    """
    item = body.entry.item
    name = image_location(item).names[find_index(body)]
    found = re.search(r"\.[a-z0-9]+$", name)
    extension = found[0] if found else UNKNOWN_EXTENSION
    header = check_image(path, extension)
    facts = Facts() if name.startswith(THUMBNAIL) else read_facts(item)
    evidence = compare_image(header, item.id, facts)
    size = path.stat().st_size
    warnings = header.warnings
    if facts.size is not None and size < facts.size:  # what the archive embeds makes files larger
        warnings = (*warnings, f"{size} bytes, where the archive counted {facts.size} when it took the image in")
    known = extension if extension != UNKNOWN_EXTENSION else EXTENSIONS[header.format]
    return Judged(name, choose_chain(None, known), evidence, warnings)


def compare_image(header: ImageHeader, isic_id: str, facts: Facts) -> tuple[str, ...]:
    """What proves that an image is the one that was asked for, best first; raises `ItemError`. Pure."""
    evidence = ["image"]
    if facts.width and facts.height:
        if (header.width, header.height) != (facts.width, facts.height):
            raise ItemError(
                "malformed",
                f"it has {header.width} x {header.height} pixels, the archive says {facts.width} x {facts.height}",
            )
        evidence.insert(0, "pixels")
    if header.identities:
        if isic_id not in header.identities:
            raise ItemError("wrong-uid", f"it says that it is {' and '.join(header.identities[:3])}")
        evidence.insert(0, "embedded-id")
    return tuple(evidence)
