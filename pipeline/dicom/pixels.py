"""Whether the pixel data of a data set is all there: its length against its description. Pure."""

from __future__ import annotations

import msgspec

from pipeline.dicom.header import FRAGMENT_PER_FRAME, NATIVE
from pipeline.dicom.walker import (
    DVH_SEQUENCE,
    ENCAPSULATED_DOCUMENT,
    PIXEL_TAGS,
    SPECTROSCOPY_DATA,
    UNDEFINED,
    WAVEFORM_SEQUENCE,
    WalkError,
)

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Storage classes whose image pixel module is mandatory (PS3.3 annex A). RT Dose is not here: one of histograms only
# has no pixels. Unlisted classes are judged by what they say of themselves.
_IMAGE_SUFFIXES = """
    1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 3 3.1 4 4.1 4.3 4.4 5 6 6.1 6.2 6.3 7 7.1 7.2 7.3 7.4
    12.1 12.1.1 12.2 12.2.1 12.3 13.1.1 13.1.2 13.1.3 13.1.4 13.1.5 14.1 14.2 20 30 66.4 66.7
    77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.5.5 77.1.5.6
    77.1.6 77.1.7 77.1.8 77.1.9 128 128.1 130 481.1
"""
_IMAGE_CLASSES = frozenset(_STORAGE + suffix for suffix in _IMAGE_SUFFIXES.split())
# The mandatory element that holds the substance of the other classes and stands near the end of their files.
_SUBSTANCE = (
    (_STORAGE + "4.2", SPECTROSCOPY_DATA, "spectroscopy data"),
    (_STORAGE + "9.", WAVEFORM_SEQUENCE, "waveforms"),
    (_STORAGE + "481.2", DVH_SEQUENCE, "dose grid or histograms"),
    (_STORAGE + "104.", ENCAPSULATED_DOCUMENT, "encapsulated document"),
)
_HALF_CHROMA = {"YBR_FULL_422", "YBR_PARTIAL_422"}  # two pixels share their chrominance (PS3.3 section C.7.6.3.1.2)


class PixelFacts(msgspec.Struct, frozen=True):
    """What a file says of its pixels, and what a walk over it found.

    Attributes
    ----------
    bulk
        Tag of each bulk element to its length.
    fragments
        Of the encapsulated pixel data; -1 when there is none.
    provided
        Whether the pixel data lies elsewhere, at a PixelDataProviderURL.
    """

    sop_class_uid: str
    transfer_syntax_uid: str
    photometric: str
    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    bits_allocated: int
    bulk: dict[int, int]
    fragments: int
    provided: bool


def described_length(facts: PixelFacts) -> int:
    """Bytes of native pixel data that rows, columns, samples, bits and frames describe, without padding.

    Bits that do not fill bytes are packed without gaps, over the borders of frames (PS3.5 section 8.2).
    """
    samples = facts.rows * facts.columns * max(facts.samples_per_pixel, 1) * facts.frames
    if facts.photometric in _HALF_CHROMA and facts.samples_per_pixel == 3:
        samples = samples // 3 * 2
    return (samples * facts.bits_allocated + 7) // 8


def check_pixels(facts: PixelFacts) -> tuple[str, ...]:
    """What is odd about the pixel data but harms nothing; refuses what is not all there.

    Raises
    ------
    WalkError
        `truncated` when what the class or the description calls for is missing altogether: a file cut between two
        elements looks like that. `malformed` when there are fewer bytes or fragments than described.
    """
    native = [facts.bulk[tag] for tag in PIXEL_TAGS if tag in facts.bulk]
    if not native:
        _check_absence(facts)
        return ()
    if facts.fragments >= 0:
        return _check_fragments(facts)
    if UNDEFINED in native:
        raise WalkError("malformed", "its floating point pixel data has no length")
    expected = described_length(facts)
    if not expected:
        raise WalkError("malformed", "it has pixel data that no Rows, Columns and BitsAllocated describe")
    length, warnings = max(native), list[str]()
    if length < expected:
        raise WalkError("malformed", f"its pixel data has {length} bytes, its header describes {expected}")
    if length > expected + expected % 2:
        warnings.append(f"pixel data has {length} bytes, {length - expected} more than described")
    if facts.transfer_syntax_uid not in NATIVE and facts.transfer_syntax_uid.startswith("1.2.840.10008."):
        warnings.append(f"native pixel data under transfer syntax {facts.transfer_syntax_uid}")
    return tuple(warnings)


def _check_absence(facts: PixelFacts) -> None:
    if facts.provided:
        return
    if facts.sop_class_uid in _IMAGE_CLASSES:
        raise WalkError("truncated", "it ends before its pixel data, which an image must have")
    if facts.rows and facts.columns and facts.bits_allocated:
        raise WalkError("truncated", f"it ends before the {facts.rows} x {facts.columns} pixels it describes")
    for root, tag, name in _SUBSTANCE:
        belongs = facts.sop_class_uid.startswith(root) if root.endswith(".") else facts.sop_class_uid == root
        if belongs and tag not in facts.bulk:
            raise WalkError("truncated", f"it ends before its {name}, which its class must have")


def _check_fragments(facts: PixelFacts) -> tuple[str, ...]:
    if not facts.fragments:
        raise WalkError("malformed", "its encapsulated pixel data is empty")
    if facts.fragments < facts.frames and facts.transfer_syntax_uid in FRAGMENT_PER_FRAME:
        raise WalkError("malformed", f"it has {facts.fragments} fragments for {facts.frames} frames")
    if facts.transfer_syntax_uid in NATIVE:
        return (f"encapsulated pixel data under transfer syntax {facts.transfer_syntax_uid}",)
    return ()
