"""DICOM files made of bytes, in every way of writing them that the walker must read, and their verdicts."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.dicom.check import check_dicom
from pipeline.dicom.header import DicomHeader
from pipeline.errors import ItemError

SERIES = "1.2.826.0.1.3680043.10.77.1"
INSTANCE = "1.2.826.0.1.3680043.10.77.1.5"
STUDY = "1.2.826.0.1.3680043.10.77"
CT, SECONDARY_CAPTURE, SEGMENTATION = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "7", "66.4"))
BASIC_TEXT_SR, RT_DOSE, ENCAPSULATED_PDF = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.11", "481.2", "104.1"))
PRIVATE_CLASS = "1.2.826.0.1.3680043.10.77.9"

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
BIG, RLE, JPEG = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
MPEG4 = "1.2.840.10008.1.2.4.102"

UNDEFINED = 0xFFFFFFFF
_LONG = {"OB", "OD", "OF", "OW", "SQ", "UC", "UN", "UT"}


@dataclass
class Writer:
    """Elements one after another, as the transfer syntax writes them."""

    explicit: bool = True
    big: bool = False
    out: bytearray = field(default_factory=bytearray)

    @property
    def order(self) -> str:
        return ">" if self.big else "<"

    def head(self, tag: int, vr: str, length: int) -> Writer:
        """Tag, VR and length of an element, whatever follows."""
        self.out += struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if tag >> 16 == 0xFFFE or not self.explicit:
            self.out += struct.pack(self.order + "I", length)
        elif vr in _LONG:
            self.out += vr.encode() + b"\0\0" + struct.pack(self.order + "I", length)
        else:
            self.out += vr.encode() + struct.pack(self.order + "H", length)
        return self

    def put(self, tag: int, vr: str, value: bytes | str | int) -> Writer:
        """A whole element; text is padded to even length."""
        if isinstance(value, int):
            value = struct.pack(self.order + "H", value)
        elif isinstance(value, str):
            pad = b"\0" if vr == "UI" else b" "
            value = value.encode() + pad * (len(value) % 2)
        self.head(tag, vr, len(value))
        self.out += value
        return self

    def raw(self, data: bytes) -> Writer:
        self.out += data
        return self

    def item(self, length: int, data: bytes = b"") -> Writer:
        return self.head(0xFFFEE000, "", length).raw(data)

    def end_item(self) -> Writer:
        return self.head(0xFFFEE00D, "", 0)

    def end_sequence(self) -> Writer:
        return self.head(0xFFFEE0DD, "", 0)


def part10(transfer_syntax: str, data_set: bytes, *, instance: str = INSTANCE, sop_class: str = CT) -> bytes:
    """Preamble, file meta information and data set."""
    meta = Writer().put(0x00020002, "UI", sop_class).put(0x00020003, "UI", instance)
    meta.put(0x00020010, "UI", transfer_syntax)
    length = Writer().put(0x00020000, "UL", struct.pack("<I", len(meta.out)))
    return bytes(128) + b"DICM" + bytes(length.out + meta.out) + data_set


def writer_for(transfer_syntax: str) -> Writer:
    """An empty data set of that transfer syntax."""
    return Writer(explicit=transfer_syntax != IMPLICIT, big=transfer_syntax == BIG)


def identity(w: Writer, *, sop_class: str = CT, series: str = SERIES, instance: str = INSTANCE) -> Writer:
    """The elements up to group 0020, a sequence of every kind among them."""
    w.put(0x00080016, "UI", sop_class).put(0x00080018, "UI", instance).put(0x00080060, "CS", "CT")
    w.head(0x00081140, "SQ", UNDEFINED)  # undefined length, items of both kinds, a sequence inside
    w.item(UNDEFINED).put(0x00081150, "UI", "1.2.3").head(0x00081199, "SQ", UNDEFINED)
    w.item(UNDEFINED).put(0x00081155, "UI", "1.2.4").end_item().end_sequence().end_item()
    inner = Writer(explicit=w.explicit, big=w.big).put(0x00081155, "UI", "1.2.5").out
    w.item(len(inner), bytes(inner)).end_sequence()
    w.put(0x00090010, "LO", "PRIVATE").head(0x00091001, "SQ", 8 + len(inner)).item(len(inner), bytes(inner))
    w.put(0x00100010, "PN", "Nobody").put(0x00100020, "LO", "P-1")
    if w.explicit:  # UN of undefined length holds implicit little endian
        unknown = Writer(explicit=False).item(UNDEFINED).put(0x00191001, "", b"ab").end_item().end_sequence()
        w.head(0x00191000, "UN", UNDEFINED).raw(bytes(unknown.out))
    return w.put(0x0020000D, "UI", STUDY).put(0x0020000E, "UI", series)


def describe(
    w: Writer, *, rows: int = 4, columns: int = 6, bits: int = 16, samples: int = 1, frames: int = 1
) -> Writer:
    """The image pixel module."""
    w.put(0x00280002, "US", samples).put(0x00280004, "CS", "MONOCHROME2" if samples == 1 else "RGB")
    if frames != 1:
        w.put(0x00280008, "IS", str(frames))
    return w.put(0x00280010, "US", rows).put(0x00280011, "US", columns).put(0x00280100, "US", bits)


def native(transfer_syntax: str = EXPLICIT, *, length: int | None = None, sop_class: str = CT, **shape: int) -> bytes:
    """An image with `length` bytes of native pixel data, by default as many as described."""
    if length is None:
        samples = shape.get("rows", 4) * shape.get("columns", 6) * shape.get("samples", 1) * shape.get("frames", 1)
        length = (samples * shape.get("bits", 16) + 7) // 8
        length += length % 2
    w = describe(identity(writer_for(transfer_syntax), sop_class=sop_class), **shape)
    w.put(0x7FE00010, "OW", bytes(n % 255 + 1 for n in range(length)))
    return part10(transfer_syntax, bytes(w.out), sop_class=sop_class)


def encapsulated(transfer_syntax: str = JPEG, *, fragments: int = 3, frames: int = 3, close: bool = True) -> bytes:
    """A multi-frame image of `fragments` fragments behind an empty offset table."""
    w = describe(identity(Writer()), bits=8, frames=frames).head(0x7FE00010, "OB", UNDEFINED).item(0)
    for n in range(fragments):
        w.item(10 + n * 2, bytes(range(1, 11 + n * 2)))
    return part10(transfer_syntax, bytes((w.end_sequence() if close else w).out))


def without_pixels(sop_class: str = BASIC_TEXT_SR) -> bytes:
    """A structured report: no image pixel module."""
    return part10(EXPLICIT, bytes(identity(Writer(), sop_class=sop_class).put(0x0040A491, "CS", "COMPLETE").out))


def deflated() -> bytes:
    """An image whose data set is deflated."""
    data_set = bytes(describe(identity(Writer())).put(0x7FE00010, "OW", bytes(range(48))).out)
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return part10(DEFLATED, stream.compress(data_set) + stream.flush())


# Whole files that end with their pixel data: no prefix of them is a whole file.
GOOD = {
    "implicit": native(IMPLICIT),
    "explicit": native(EXPLICIT),
    "big endian": native(BIG),
    "multi-frame": native(EXPLICIT, frames=5),
    "odd, padded": native(EXPLICIT, rows=3, columns=3, bits=8),
    "bitmap": native(EXPLICIT, rows=3, columns=3, bits=1, frames=7, sop_class=SEGMENTATION),
    "colour": native(EXPLICIT, bits=8, samples=3, sop_class=SECONDARY_CAPTURE),
    "encapsulated": encapsulated(),
    "deflated": deflated(),
}


def check(folder: Path, data: bytes, series: str = SERIES) -> DicomHeader:
    """The verdict on `data` as a file."""
    path = folder / "x.dcm"
    path.write_bytes(data)
    return check_dicom(path, series_uid=series)


def refusal(folder: Path, data: bytes, series: str = SERIES) -> ItemError:
    """The refusal of `data`; the test fails if it is accepted."""
    with pytest.raises(ItemError) as caught:
        check(folder, data, series)
    return caught.value
