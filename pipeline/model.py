"""The records that cross borders between rooms: frozen, typed, written as JSON.

Words are those of docs/design.md. Nothing here does anything.
"""

from __future__ import annotations

import msgspec


class IdcLocation(msgspec.Struct, frozen=True, tag="idc", tag_field="source"):
    """Where a series of the NCI Imaging Data Commons lies: `s3://{bucket}/{uuid}/*`.

    `uuid` is the crdc_series_uuid: it names immutable content, so a missing object is withdrawn, not late.
    """

    bucket: str
    uuid: str


class NbiaLocation(msgspec.Struct, frozen=True, tag="nbia", tag_field="source"):
    """Where a series of TCIA is handed out: NBIA's API at `base_url` sends it whole, by its UID, as a zip."""

    base_url: str


class IsicLocation(msgspec.Struct, frozen=True, tag="isic", tag_field="source"):
    """Where an image of the ISIC Archive is handed out: the API at `base_url` tells its URLs, by its ISIC id.

    `urls` are those of its files (the image, then perhaps its thumbnail) as listed, without what a signature adds;
    `names` are the names of these files in the archive, as `.jpg` and `.thumbnail.jpg`.
    """

    base_url: str
    urls: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


Location = IdcLocation | NbiaLocation | IsicLocation


class Item(msgspec.Struct, frozen=True):
    """A DICOM series or an image, as the planner selected it.

    Attributes
    ----------
    id
        SeriesInstanceUID, or ISIC id.
    path
        Folder of its files in the archive, path-safe, no slash at the ends.
    files, bytes
        What the source states; -1 when it states nothing.
    meta
        The source's row about it, in the manifest's column order, as raw JSON array.
    """

    id: str
    path: str
    files: int
    bytes: int
    location: Location
    licence: str
    meta: msgspec.Raw = msgspec.Raw(b"[]")


class Entry(msgspec.Struct, frozen=True):
    """One line of the manifest: an item, or one piece of an item that is cut over several frames.

    Attributes
    ----------
    number
        Position of the item in the manifest, from 0; the pieces of a cut item share it.
    frame
        The frame of the run it belongs to, from 0.
    piece, pieces
        A cut item's files, in the order of the source's keys, are spread over `pieces` frames; this is the
        `piece`-th, from 0. Nearly all items have one piece.
    """

    number: int
    frame: int
    piece: int
    pieces: int
    item: Item


class RemoteFile(msgspec.Struct, frozen=True):
    """One object of a source's listing. `etag` without quotes; empty when the source gives none."""

    key: str
    size: int
    etag: str


class RawFile(msgspec.Struct, frozen=True):
    """A verified file on scratch.

    Attributes
    ----------
    name
        File name in the archive, without folder: `{SOPInstanceUID}.dcm`.
    local
        Path of the bytes on scratch.
    size, sha256, md5
        Of its bytes, computed while they came in.
    key
        The source's own name of it.
    evidence
        What its bytes were checked against, best first: `sha256`, `md5`, `etag-multipart`, `size`.
    route
        The endpoint it came from.
    chain
        Compression class chosen from its header; see `pipeline.archive.chains`.
    etag
        As the site stated it, without quotes unless it is weak; empty where its source keeps none.
    """

    name: str
    local: str
    size: int
    sha256: str
    md5: str
    key: str
    evidence: tuple[str, ...]
    route: str
    chain: str
    etag: str = ""
