"""What a series' zip must hold: so many images of so many bytes, each with the MD5 that the site has of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pipeline.dicom.check import check_image
from pipeline.dicom.header import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, DicomHeader, is_uid
from pipeline.dicom.walker import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    Elements,
    WalkError,
    guess_syntax,
    walk,
    walk_group_2,
)
from pipeline.errors import ItemError
from pipeline.model import Item
from pipeline.sources.api_body import clean_text
from pipeline.sources.tcia_zip import Member, read_member, read_members

logger = logging.getLogger("medhaul.task")

MD5_LIST = "md5hashes.csv"
LICENCE = "license"
MAX_LIST = 32 << 20
# Together, of a licence and of what else may lie beside the images: it is read for its CRC, and left out.
MAX_OTHERS = 256 << 20
# Of a file's beginning, to find its SOPInstanceUID in: as a rule, and at most.
NEAR, HEAD = 2048, 64 << 10
_MD5 = re.compile(r"[0-9a-f]{32}")
_TRANSFER_SYNTAX, _SOP_INSTANCE = 0x00020010, 0x00080018
_SYNTAXES = {IMPLICIT_LE: IMPLICIT_LITTLE, EXPLICIT_LE: EXPLICIT_LITTLE, EXPLICIT_BE: EXPLICIT_BIG}


class SeriesFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of a series: its SOPInstanceUID, empty where it cannot be told, and the MD5 and size of its bytes."""

    sop: str
    md5: str
    size: int


class Found(msgspec.Struct, frozen=True):
    """An image of a zip that is what the site's list says; with `sha256` where its bytes were written out too.

    `header`: where it was seen to be a good DICOM file of its series on the way; else that is yet to be judged.
    """

    file: SeriesFile
    member: Member
    sha256: str = ""
    header: DicomHeader | None = None


def check_series(
    fd: int, item: Item, *, limit: int, check: Callable[[], object] = lambda: None, out: Path | None = None
) -> list[Found]:
    """Read a series' zip to its end; return its images in an order that depends on their content alone.

    Parameters
    ----------
    limit
        Most bytes of all images together, where the manifest does not state them.
    check
        Called now and then; what it raises ends this.
    out
        A folder for the images, each under its MD5: inflating costs more than all checks, so it is done once. Nothing
        in it is right before this returns.

    Raises
    ------
    ItemError
        `unavailable` (no whole zip; no list of MD5s), `count`, `size`, `checksum`, `empty`, `duplicate`.
    OSError
    """
    members = read_members(fd, check)
    rows = _read_rows(fd, members, item, check)
    images, others = split_members(item, members, rows)
    check_sizes(item, images, others, limit=limit)
    if odd := [member.name for member in others if member.name.casefold() not in {LICENCE, MD5_LIST}]:
        names = ", ".join(clean_text(name) for name in odd[:10])
        logger.warning("%s: %d files in its zip are no images, and left out: %.500s", item.id, len(odd), names)
    for member in others:
        for _ in read_member(fd, member, check):
            pass
    found = [_check_image(fd, member, item, rows[member.name], check, out) for member in images]
    return order_found(found)


def order_found(found: Sequence[Found]) -> list[Found]:
    """Put images into the order of their names in an archive: neither names nor order of a zip last. Pure.

    Raises `ItemError` (`duplicate`) when two are the same instance.
    """
    ordered = sorted(found, key=lambda each: (f"{each.file.sop}.dcm", each.file.md5))
    known = [each.file.sop for each in ordered if each.file.sop]
    if twice := next((a for a, b in itertools.pairwise(known) if a == b), ""):
        raise ItemError("duplicate", f"two files of the series are {twice}")
    return ordered


def split_members(item: Item, members: Sequence[Member], rows: dict[str, str]) -> tuple[list[Member], list[Member]]:
    """Tell the images from the others, and compare them with manifest and list of MD5s. Pure.

    Raises
    ------
    ItemError
        `count`, `empty`.
    """
    images: list[Member] = []
    others: list[Member] = []
    for member in members:
        image = member.name in rows or is_image(member.name)
        (images if image and member.name.casefold() not in {LICENCE, MD5_LIST} else others).append(member)
    check_count(item, len(images))
    names = {member.name for member in images}
    absent, bare = sorted(rows.keys() - names), sorted(names - rows.keys())
    if absent or bare:
        one = f"{absent[0]} is listed, but is not there" if absent else f"{bare[0]} is there, but is not listed"
        text = f"its zip has {len(images)} images, its list of MD5s {len(rows)} rows: {clean_text(one)}"
        raise ItemError("count", text, transient=True)
    return images, others


def is_image(name: str) -> bool:
    """Say whether a member must be an image by its name. Pure."""
    return name.casefold().endswith(".dcm")


def check_count(item: Item, count: int) -> None:
    """Compare the number of images with the manifest. Pure. Raises `ItemError` (`count`, `empty`)."""
    if item.files >= 0 and count != item.files:
        raise ItemError("count", f"its zip has {count} of {item.files} images", transient=True)
    if not count:
        raise ItemError("empty", "its zip has no images", transient=item.files < 0)


def check_sizes(item: Item, images: Sequence[Member], others: Sequence[Member], *, limit: int) -> None:
    """Compare the bytes of all images with the manifest, before any are inflated. Pure. Raises `ItemError` (`size`)."""
    total = sum(member.size for member in images)
    if item.bytes >= 0 and total != item.bytes:
        raise ItemError(
            "size", f"the images of its zip have {total} bytes, the manifest says {item.bytes}", transient=True
        )
    if total > limit:
        raise ItemError("size", f"the images of its zip have {total} bytes; {limit} is the limit here")
    if sum(member.size for member in others) > MAX_OTHERS:
        raise ItemError("size", f"more than {MAX_OTHERS} bytes in its zip are no images", transient=True)


def _read_rows(fd: int, members: Sequence[Member], item: Item, check: Callable[[], object]) -> dict[str, str]:
    lists = [member for member in members if member.name.casefold() == MD5_LIST]
    if len(lists) != 1:
        check_count(item, sum(is_image(member.name) for member in members))  # says more, where it is the cause
        raise ItemError("unavailable", f"its zip has {len(lists)} files {MD5_LIST} in place of one", transient=True)
    if lists[0].size > MAX_LIST:
        raise ItemError("unavailable", f"{MD5_LIST} has {lists[0].size} bytes", transient=True)
    return parse_md5_list(b"".join(read_member(fd, lists[0], check)))


def parse_md5_list(data: bytes) -> dict[str, str]:
    """Read md5hashes.csv: a MD5 in lower case for each name. Pure.

    Raises
    ------
    ItemError
        `unavailable`: not such a list, or a name twice.
    """

    def wrong(what: str) -> ItemError:
        return ItemError("unavailable", f"{MD5_LIST} in its zip is no list of MD5s: {what}", transient=True)

    lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n")
    header = [cell.strip().strip('"').casefold() for cell in lines[0].split(",")]
    if header != ["filename", "md5hash"]:
        raise wrong(f"it begins {clean_text(lines[0][:80])!r}")
    rows: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, comma, md5 = line.rstrip("\r").rpartition(",")
        name, md5 = _unquote(name), _unquote(md5.strip()).lower()
        if not comma or not name or not _MD5.fullmatch(md5):
            raise wrong(f"line {number} is {clean_text(line[:80])!r}")
        if name in rows:
            raise wrong(f"line {number} names {clean_text(name[:80])!r} again")
        rows[name] = md5
    return rows


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _check_image(fd: int, member: Member, item: Item, md5: str, check: Callable[[], object], out: Path | None) -> Found:
    header = None
    digest = hashlib.md5(usedforsecurity=False)
    other = hashlib.sha256() if out else None
    head = b""
    with open(f"{out}/{md5}", "wb", buffering=0) if out else contextlib.nullcontext() as file:
        for piece in read_member(fd, member, check):
            digest.update(piece)
            if file and other:
                other.update(piece)
                _write(file, piece)
                if len(piece) == member.size:
                    header = check_image(piece, series_uid=item.id)
            if header is None and len(head) < HEAD:
                head += piece[: HEAD - len(head)]
    if digest.hexdigest() != md5:
        text = f"{clean_text(member.name)} has MD5 {digest.hexdigest()}, {MD5_LIST} in its zip says {md5}"
        raise ItemError("checksum", text, transient=True)
    sop = header.sop_instance_uid if header else peek_instance(head)
    return Found(SeriesFile(sop, md5, member.size), member, other.hexdigest() if other else "", header)


def _write(file: io.FileIO, piece: bytes) -> None:
    written = file.write(piece)
    while written < len(piece):
        written += file.write(piece[written:])


def peek_instance(head: bytes) -> str:
    """The SOPInstanceUID of a DICOM file, from its beginning; empty where there is none to be found. Pure."""
    # It is one of the first elements, as they are in order of their tags (PS3.5 section 7.1).
    return (_find_instance(head[:NEAR]) if len(head) > NEAR else "") or _find_instance(head)


def _find_instance(head: bytes) -> str:
    found = Elements()
    try:
        position = walk_group_2(head, 132, frozenset({_TRANSFER_SYNTAX}), found)
        stated = _text(found, _TRANSFER_SYNTAX)
        if stated == DEFLATED_LE:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[position:], HEAD)
            walk(data, 0, EXPLICIT_LITTLE, frozenset({_SOP_INSTANCE}), found)
        else:
            declared = _SYNTAXES.get(stated, EXPLICIT_LITTLE) if stated else None
            walk(head, position, guess_syntax(head, position, declared), frozenset({_SOP_INSTANCE}), found)
    except (WalkError, zlib.error):
        pass  # a beginning ends too early by nature; what came before that counts
    uid = _text(found, _SOP_INSTANCE)
    return uid if head[128:132] == b"DICM" and is_uid(uid) else ""


def _text(found: Elements, tag: int) -> str:
    return found.values.get(tag, b"").decode("latin-1").strip(" \0")
