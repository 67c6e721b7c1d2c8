"""Whether a file is the whole DICOM instance that the manifest means."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pipeline.dicom.fallback import inflate, read_header_with_pydicom
from pipeline.dicom.header import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, DicomHeader, is_uid
from pipeline.dicom.pixels import PixelFacts, check_pixels
from pipeline.dicom.walker import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    PIXEL_TAGS,
    Buffer,
    Elements,
    Syntax,
    WalkError,
    guess_syntax,
    walk,
    walk_group_2,
)
from pipeline.errors import ItemError

_META_CLASS, _META_INSTANCE, _TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _PATIENT_ID = 0x00080016, 0x00080018, 0x00080060, 0x00100020
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS = 0x00280002, 0x00280004, 0x00280008, 0x00280010
_COLUMNS, _BITS, _PROVIDER_URL = 0x00280011, 0x00280100, 0x00287FE0

_META_TAGS = frozenset({_META_CLASS, _META_INSTANCE, _TRANSFER_SYNTAX})
_TAGS = frozenset(
    {_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _PATIENT_ID, _STUDY, _SERIES, _SAMPLES, _PHOTOMETRIC, _FRAMES}
    | {_ROWS, _COLUMNS, _BITS, _PROVIDER_URL}
)
_SYNTAXES = {IMPLICIT_LE: IMPLICIT_LITTLE, EXPLICIT_LE: EXPLICIT_LITTLE, EXPLICIT_BE: EXPLICIT_BIG}
_PREAMBLE = 132  # 128 free bytes, then DICM (PS3.10 section 7.1)
_STRANGERS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<", "an XML document"),
    (b"{", "a JSON document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89png", "a PNG image"),
)


def check_dicom(path: Path, *, series_uid: str) -> DicomHeader:
    """The header of the file at `path`, once it is known to be whole and of the series `series_uid`.

    The file is mapped, not read: memory stays small whatever its size. It must not be cut while this runs.

    Raises
    ------
    ItemError
        `not-dicom`, `wrong-uid`, `truncated` or `malformed`; the message names the file.
    OSError
        The file cannot be read, or a deflated one cannot be inflated into the folder where it lies.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, 512, 0)
            if size < _PREAMBLE or head[128:_PREAMBLE] != b"DICM":
                raise ItemError("not-dicom", f"{_describe_stranger(head, size)}, not a DICOM file")
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as buf:
                return _check(buf, path, series_uid)
        finally:
            os.close(descriptor)
    except ItemError as error:
        raise ItemError(error.reason, f"{path.name}: {error}") from error.__cause__
    except WalkError as error:
        raise ItemError(error.reason, f"{path.name}: {error}") from error.__cause__


def check_image(data: bytes, *, series_uid: str) -> DicomHeader | None:
    """What `check_dicom` would say of a file of these bytes, where it would say so at once; else None.

    For bytes that are in memory on their way to a file: of a good file it spares opening it again. Of a file that is
    deflated, odd or wrong it says nothing: that is for `check_dicom` to judge.
    """
    if data[128:_PREAMBLE] != b"DICM":
        return None
    found = Elements()
    try:
        pos = walk_group_2(data, _PREAMBLE, _META_TAGS, found)
        stated = _text(found, _TRANSFER_SYNTAX)
        declared = _SYNTAXES.get(stated, EXPLICIT_LITTLE)
        if pos == len(data) or not stated or stated == DEFLATED_LE or guess_syntax(data, pos, declared) != declared:
            return None
        walk(data, pos, declared, _TAGS, found)
        return _judge(found, declared, stated, series_uid)
    except (WalkError, ItemError):
        return None


def _describe_stranger(head: bytes, size: int) -> str:
    if not size:
        return "it is empty"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, name in _STRANGERS:
        if start.startswith(magic):
            return f"it is {name} of {size} bytes" + (
                f" that begins {head[:80]!r}" if magic[:1] in {b"<", b"{"} else ""
            )
    return f"it is {size} bytes without preamble and DICM"


def _check(buf: Buffer, path: Path, series_uid: str) -> DicomHeader:
    found = Elements()
    pos = walk_group_2(buf, _PREAMBLE, _META_TAGS, found)
    if pos == len(buf):
        raise WalkError("truncated", f"it ends at byte {pos}, with its file meta information")
    stated = _text(found, _TRANSFER_SYNTAX)
    if stated == DEFLATED_LE:
        with inflate(buf, pos, path.parent) as (inflated, excess):
            if excess > 1:
                found.warn(f"{excess} bytes behind the deflated data set")
            walk(inflated, 0, EXPLICIT_LITTLE, _TAGS, found)
        return _judge(found, EXPLICIT_LITTLE, stated, series_uid)
    declared = _SYNTAXES.get(stated, EXPLICIT_LITTLE) if stated else None
    syntax = guess_syntax(buf, pos, declared)
    if declared is None:
        stated = next(uid for uid, written in _SYNTAXES.items() if written == syntax)
        found.warn(f"no transfer syntax stated; read as {stated}")
    elif syntax != declared:
        found.warn(f"not written in its transfer syntax {stated}")
    try:
        walk(buf, pos, syntax, _TAGS, found)
    except WalkError as error:
        # The end of the file within an element says enough, unless the walk may have lost its way before.
        if error.reason == "truncated" and not found.warnings:
            raise
        found, syntax = _ask_pydicom(buf, path, found, error)
    return _judge(found, syntax, stated, series_uid)


def _ask_pydicom(buf: Buffer, path: Path, lost: Elements, error: WalkError) -> tuple[Elements, Syntax]:
    """A second walk, from where pydicom finds the pixel data; `error` when it finds none or the walk fails again."""
    found = Elements({tag: value for tag, value in lost.values.items() if tag in _META_TAGS})
    try:
        values, pos, syntax = read_header_with_pydicom(path, _TAGS)
        walk(buf, pos, syntax, frozenset(), found)
    except WalkError as again:
        raise error from again
    if not found.bulk.keys() & PIXEL_TAGS:
        raise error
    found.values.update(values)
    found.warn(f"only pydicom can read its header: {error}")
    return found, syntax


def _judge(found: Elements, syntax: Syntax, transfer_syntax: str, series_uid: str) -> DicomHeader:
    """The header, if UIDs and pixel data are as they must be."""
    series, instance = _text(found, _SERIES), _text(found, _SOP_INSTANCE)
    facts = PixelFacts(
        sop_class_uid=_text(found, _SOP_CLASS) or _text(found, _META_CLASS),
        transfer_syntax_uid=transfer_syntax,
        photometric=_text(found, _PHOTOMETRIC),
        rows=_integer(found, _ROWS, syntax),
        columns=_integer(found, _COLUMNS, syntax),
        frames=_frames(found),
        samples_per_pixel=_integer(found, _SAMPLES, syntax),
        bits_allocated=_integer(found, _BITS, syntax),
        bulk=found.bulk,
        fragments=found.fragments,
        provided=_PROVIDER_URL in found.values,
    )
    for warning in check_pixels(facts):
        found.warn(warning)
    if not series or series != series_uid:
        raise ItemError("wrong-uid", f"its SeriesInstanceUID is {series!r}, the manifest says {series_uid!r}")
    if not is_uid(instance):
        raise ItemError("wrong-uid", f"its SOPInstanceUID {instance!r} is no UID")
    stated = _text(found, _META_INSTANCE)
    if stated != instance and is_uid(stated):
        # De-identification often renews the one and forgets the other: harmless, and too common to refuse.
        found.warn(f"MediaStorageSOPInstanceUID {stated} is not its SOPInstanceUID")
    encapsulated = found.fragments >= 0
    return DicomHeader(
        sop_instance_uid=instance,
        series_instance_uid=series,
        study_instance_uid=_text(found, _STUDY),
        patient_id=_text(found, _PATIENT_ID),
        modality=_text(found, _MODALITY),
        sop_class_uid=facts.sop_class_uid,
        transfer_syntax_uid=transfer_syntax,
        rows=facts.rows,
        columns=facts.columns,
        frames=facts.frames,
        samples_per_pixel=facts.samples_per_pixel,
        bits_allocated=facts.bits_allocated,
        pixel_length=0 if encapsulated else sum(found.bulk.get(t, 0) for t in PIXEL_TAGS),
        encapsulated=encapsulated,
        warnings=tuple(found.warnings),
    )


def _text(found: Elements, tag: int) -> str:
    """The value as text without padding: UTF-8, which holds ASCII, else as Latin-1, which takes any byte."""
    value = found.values.get(tag, b"").rstrip(b" \0")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _integer(found: Elements, tag: int, syntax: Syntax) -> int:
    """The value of an unsigned integer of 2 or 4 bytes; 0 when it is missing or empty."""
    value = found.values.get(tag, b"")
    if len(value) not in {0, 2, 4}:
        raise WalkError("malformed", f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has {len(value)} bytes, not 2")
    return int.from_bytes(value, "big" if syntax.big else "little")


def _frames(found: Elements) -> int:
    """NumberOfFrames; 1 when it is missing, empty or no positive number."""
    text = found.values.get(_FRAMES, b"").strip(b" \0")
    if not text:
        return 1
    if len(text) > 12 or not text.isdigit():
        raise WalkError("malformed", f"its NumberOfFrames is {text[:20]!r}")
    if not int(text):
        found.warn("NumberOfFrames is 0; taken for 1")
    return max(int(text), 1)
