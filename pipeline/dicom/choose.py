"""Which compression class a file belongs to, from its header or its suffix: the measured rule. Pure."""

from __future__ import annotations

from pipeline.dicom.header import (
    DEFLATED_LE,
    ENCAPSULATED_UNCOMPRESSED,
    HTJ2K,
    JPEG_2000,
    JPEG_2000_MULTI,
    JPEG_LS,
    JPEG_XL,
    NATIVE,
    RLE,
    VIDEO,
    DicomHeader,
)

# Arithmetic and wavelet coders leave nothing to gain; Huffman coders (JPEG, deflate) may, so those are probed.
_INCOMPRESSIBLE = JPEG_2000 | JPEG_2000_MULTI | HTJ2K | JPEG_LS | JPEG_XL | VIDEO
_STORED_SUFFIXES = frozenset({"png", "jp2", "j2k", "jpx", "jls", "jxl", "mp4", "gz", "bz2", "xz", "zst", "zip"})
_PROBED_SUFFIXES = frozenset({"jpg", "jpeg", "tif", "tiff"})


def choose_chain(header: DicomHeader | None, suffix: str) -> str:
    """One of the classes of `pipeline.archive.chains.CLASSES`: a chain, or which chains to probe.

    Parameters
    ----------
    header
        Of a DICOM file; `None` for other files.
    suffix
        Of the file's name, with or without dot, in any case; only looked at without a header.
    """
    if header is None:
        ending = suffix.lower().lstrip(".")
        return "S" if ending in _STORED_SUFFIXES else "J" if ending in _PROBED_SUFFIXES else "A0"
    syntax = header.transfer_syntax_uid
    if syntax == DEFLATED_LE:
        return "J"
    if header.encapsulated and syntax not in NATIVE | {ENCAPSULATED_UNCOMPRESSED, RLE}:
        return "S" if syntax in _INCOMPRESSIBLE else "J"
    if syntax == RLE or not (header.encapsulated or header.pixel_length):
        return "A0"
    shape = header.bits_allocated, header.samples_per_pixel
    return {(16, 1): "A2", (8, 3): "RGB"}.get(shape, "A0")
