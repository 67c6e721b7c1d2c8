"""The record of one checked DICOM file, and the UIDs that decide how it is read."""

from __future__ import annotations

import re

import msgspec

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_J = "1.2.840.10008.1.2.4."  # the JPEG family and video
JPEG = frozenset(f"{_J}{n}" for n in (*range(50, 67), 70))
JPEG_LS = frozenset({f"{_J}80", f"{_J}81"})
JPEG_2000 = frozenset({f"{_J}90", f"{_J}91"})
JPEG_2000_MULTI = frozenset({f"{_J}92", f"{_J}93"})
HTJ2K = frozenset({f"{_J}201", f"{_J}202", f"{_J}203"})
JPEG_XL = frozenset({f"{_J}110", f"{_J}111", f"{_J}112"})
VIDEO = frozenset(f"{_J}{n}{part}" for n in range(100, 109) for part in ("", ".1"))

NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})
# One fragment or more for every frame (PS3.5 A.4). Video is one bit stream for all frames, and a multi-component
# JPEG 2000 codestream may hold many frames, so they are not here.
FRAGMENT_PER_FRAME = JPEG | JPEG_LS | JPEG_2000 | HTJ2K | JPEG_XL | {RLE, DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED}

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


class DicomHeader(msgspec.Struct, frozen=True):
    """What the task needs to know of one whole, verified DICOM instance.

    Attributes
    ----------
    rows, columns, samples_per_pixel, bits_allocated
        As the file states at top level; 0 where it does not.
    frames
        NumberOfFrames; 1 where the file does not state it.
    pixel_length
        Bytes of native pixel data, padding included; 0 when encapsulated or absent.
    encapsulated
        Whether the pixel data is a sequence of fragments.
    warnings
        What is odd but harms nothing, one sentence each.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    modality: str
    sop_class_uid: str
    transfer_syntax_uid: str
    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    bits_allocated: int
    pixel_length: int
    encapsulated: bool
    warnings: tuple[str, ...] = ()


def is_uid(text: str) -> bool:
    """True for at most 64 characters of numbers joined by single dots (PS3.5 section 9.1).

    Leading zeros are let through: the standard forbids them, files in use have them, and they merge no two names.
    """
    return len(text) <= 64 and text.isascii() and _UID.fullmatch(text) is not None
