"""DICOM series for demos and tests, made from a seed: valid, quick to make, the same bytes on every machine."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import msgspec

from pipeline.demo import encode, phantom
from pipeline.demo.encode import Value, make_uid
from pipeline.demo.kinds import (
    KINDS,
    LIKENESS,
    SEG_FRAMES,
    Kind,
    describe_briefly,
    describe_instance,
    describe_pixels,
    describe_report,
    describe_segmentation,
)

__all__ = ["KINDS", "choose_area", "iterate_fitting_series", "make_fitting_series", "make_series", "plan_sizes"]


def make_series(
    kind: str,
    seed: int,
    slices: int = 0,
    collection: str = "demo",
    patient: str = "DEMO-001",
    *,
    study: int = 1,
    number: int = 1,
) -> list[bytes]:
    """Make a series of `slices` files (0: as many as the kind usually has) in order of their InstanceNumber.

    All UIDs depend only on the arguments: the same patient and study number of a collection give one
    StudyInstanceUID, and any other argument a SeriesInstanceUID of its own.

    Raises
    ------
    KeyError
        When `kind` is not one of `KINDS`.
    """
    shape = KINDS[kind]
    count = slices or shape.slices
    study_uid = make_uid("study", collection, patient, study)
    series_uid = make_uid("series", collection, patient, study, number, kind, seed)
    files = []
    for n in range(count):
        attributes = describe_instance(shape, seed, n, count, (study_uid, series_uid, patient), number)
        if shape.rows:
            attributes |= describe_pixels(shape, shape.rows, shape.columns)
        if kind == "SEG":
            attributes |= describe_segmentation(make_uid("series", collection, patient, study, 1, "CT", seed))
        if kind == "SR":
            attributes |= describe_report(n)
        head = encode.encode_head(attributes, shape.syntax)
        files.append(head + _render_pixels(kind, f"{series_uid}/{n}", (n + 0.5) / count))
    return files


def make_fitting_series(
    series_uid: str,
    study_uid: str,
    patient_id: str,
    modality: str,
    files: int,
    total_bytes: int,
    seed: int,
) -> list[bytes]:
    """Make a series that fits a row of an index: its UIDs, its number of files and its exact number of bytes.

    Files are of equal size, to two bytes. Pixel rows fill a file as far as they go and DataSetTrailingPadding
    (FFFC,FFFC) takes the rest. A DICOM data set has an even length; when `total_bytes` is odd, the padding of the last
    file has an odd length, which readers take as it is stated.

    Raises
    ------
    ValueError
        When so many files cannot be so small: about 900 bytes are needed for each.
    """
    return list(iterate_fitting_series(series_uid, study_uid, patient_id, modality, files, total_bytes, seed))


def iterate_fitting_series(
    series_uid: str,
    study_uid: str,
    patient_id: str,
    modality: str,
    files: int,
    total_bytes: int,
    seed: int,
) -> Iterator[bytes]:
    """As `make_fitting_series`, one file at a time, for series that do not fit into memory."""
    shape = msgspec.structs.replace(LIKENESS.get(modality, LIKENESS["OT"]), modality=modality)
    for n, size in enumerate(plan_sizes(files, total_bytes)):
        attributes = describe_briefly(shape, (study_uid, series_uid, patient_id), seed, n)
        yield _fit(shape, attributes, size, n + seed)


def plan_sizes(files: int, total_bytes: int) -> list[int]:
    """Share bytes out over files: all even but perhaps the last, and equal to two bytes but for that. Pure."""
    if files < 1:
        raise ValueError(f"{files} files cannot hold {total_bytes} bytes")
    pairs, odd = divmod(total_bytes, 2)
    sizes = [2 * (pairs // files + (n < pairs % files)) for n in range(files)]
    sizes[-1] += odd
    return sizes


_WIDTHS = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 16, 4, 1)


def _fit(shape: Kind, attributes: dict[int, Value], size: int, turn: int) -> bytes:
    cell = shape.samples * shape.bits // 8
    pixels = b""
    if shape.rows:
        probe = len(encode.encode_head(attributes | describe_pixels(shape, 1, 1), shape.syntax))
        rows, columns = choose_area(size - probe - encode.ELEMENT_HEAD, cell)
        if rows:
            attributes = attributes | describe_pixels(shape, rows, columns)
            pixels = encode.encode_native_pixels(_stock_pixels(shape, rows * columns * cell, turn))
    body = encode.encode_head(attributes, shape.syntax) + pixels
    rest = size - len(body)
    if rest == 0:
        return body
    if rest < encode.ELEMENT_HEAD:
        raise ValueError(f"{size} bytes are too few for a {shape.modality} file with these UIDs")
    filler = _stock_pixels(shape, rest - encode.ELEMENT_HEAD, turn) if not shape.rows else bytes(rest - 12)
    return body + encode.encode_element(encode.TRAILING_PADDING, "OB", filler)


def choose_area(room: int, cell: int) -> tuple[int, int]:
    """Choose rows and columns of pixels of `cell` bytes for `room` bytes of pixels and padding; (0, 0): none fit. Pure.

    The pixels' length is even, and what is left is either nothing or enough for a padding element.
    """
    for columns in _WIDTHS:
        rows = min(room // (columns * cell), 65535)
        while rows * 4 > columns:
            used = rows * columns * cell
            if used % 2 == 0 and (room == used or room - used >= encode.ELEMENT_HEAD):
                return rows, columns
            rows -= 1
    return 0, 0


def _stock_pixels(shape: Kind, size: int, turn: int) -> bytes:
    """Cut `size` bytes of phantom from a stock; `turn` decides where."""
    stock = _make_stock(16 if shape.bits == 16 else 8)
    start = (turn * 40_014) % len(stock) & ~1
    piece = stock[start : start + size]
    if len(piece) < size:
        piece += (stock * ((size - len(piece)) // len(stock) + 1))[: size - len(piece)]
    return piece


@functools.cache
def _make_stock(bits: int) -> bytes:
    if bits == 16:
        return b"".join(phantom.make_grey16(phantom.TORSO, 512, 512, n / 4, f"stock/{n}", 5) for n in range(4))
    return phantom.make_rgb8(phantom.SECTOR, 512, 512, 0.5, "stock")


def _render_pixels(kind: str, seed: str, part: float) -> bytes:
    shape = KINDS[kind]
    rows, columns = shape.rows, shape.columns
    if kind == "CT":
        return encode.encode_native_pixels(phantom.make_grey16(phantom.TORSO, rows, columns, part, seed, 5))
    if kind == "MR":
        return encode.encode_native_pixels(phantom.make_grey16(phantom.HEAD, rows, columns, part, seed, 4))
    if kind == "PT":
        return encode.encode_native_pixels(phantom.make_grey16(phantom.UPTAKE, rows, columns, part, seed, 4))
    if kind == "US":
        pixels = phantom.make_rgb8(phantom.SECTOR, rows, columns, part, seed)
        return encode.encode_native_pixels(pixels, vr="OB")
    if kind == "RLE":
        pixels = phantom.make_grey16(phantom.HEAD, rows, columns, part, seed, 2)
        return encode.encode_encapsulated_pixels([encode.encode_rle_frame((pixels[1::2], pixels[0::2]), columns)])
    if kind == "SEG":
        masks = (phantom.make_mask(phantom.TORSO[2], rows, columns, (n + 0.5) / SEG_FRAMES) for n in range(SEG_FRAMES))
        return encode.encode_native_pixels(b"".join(masks), vr="OB")
    return b""
