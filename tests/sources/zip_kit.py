"""Zips as NBIA sends them, and as nobody should: made of parts that can each be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec


class Stream(io.RawIOBase):
    """Where nothing can be written again, so that zipfile puts sizes behind the data, as a servlet does."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.data += data
        return len(data)


def make_zip(files: Mapping[str, bytes], *, stream: bool = True, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these files by Python's zipfile."""
    out: Any = Stream() if stream else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, data in files.items():
            member = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
            member.compress_type = method
            made.writestr(member, data)
    return bytes(out.data) if stream else out.getvalue()


def list_md5s(files: Mapping[str, bytes]) -> bytes:
    """The text of md5hashes.csv for these files."""
    rows = [f"{name},{hashlib.md5(data).hexdigest()}\n" for name, data in files.items()]
    return ("Filename,MD5Hash\n" + "".join(reversed(rows))).encode()


def make_series_zip(files: Mapping[str, bytes], *, md5s: bytes | None = None, licence: bool = True) -> bytes:
    """A zip of a series as v4 sends it."""
    first = {"LICENSE": b"CC BY 4.0\n"} if licence else {}
    return make_zip({**first, **files, "md5hashes.csv": list_md5s(files) if md5s is None else md5s})


class Made(msgspec.Struct, kw_only=True):
    """A member to write by hand; what is None is written as it is."""

    name: bytes = b"a.dcm"
    data: bytes = b"data" * 50
    deflated: bool = True
    flags: int = 0
    method: int | None = None
    packed: bytes | None = None
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    local_flags: int | None = None
    local_method: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    attributes: int = 0
    disk: int = 0


def write_zip(
    *members: Made,
    prefix: bytes = b"",
    comment: bytes = b"",
    tail: bytes = b"",
    count: int | None = None,
    here: int | None = None,
    disk: int = 0,
    shift: int = 0,
    grow: int = 0,
    zip64: bytes = b"",
) -> bytes:
    """A zip by hand: `shift` moves the stated place of the directory, `grow` its stated size."""
    out = bytearray(prefix)
    directory = bytearray()
    for made in members:
        packed = made.packed
        if packed is None:
            packed = made.data
            if made.deflated:
                engine = zlib.compressobj(wbits=-15)
                packed = engine.compress(made.data) + engine.flush()
        method = made.method if made.method is not None else 8 if made.deflated else 0
        crc = zlib.crc32(made.data) if made.crc is None else made.crc
        size = len(made.data) if made.size is None else made.size
        packed_size = len(packed) if made.packed_size is None else made.packed_size
        offset = len(out) if made.offset is None else made.offset
        local_name = made.name if made.local_name is None else made.local_name
        local_size = size if made.local_size is None else made.local_size
        local_flags = made.flags if made.local_flags is None else made.local_flags
        local_method = method if made.local_method is None else made.local_method
        out += struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 20, local_flags, local_method, 0, 33, crc, packed_size & 0xFFFFFFFF,
            local_size & 0xFFFFFFFF, len(local_name), 0,
        )  # fmt: skip
        out += local_name + packed
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 0x0314, 20, made.flags, method, 0, 33, crc, packed_size, size,
            len(made.name), len(made.extra), len(made.comment), made.disk, 0, made.attributes, offset,
        )  # fmt: skip
        directory += made.name + made.extra + made.comment
    place = len(out)
    number = len(members) if count is None else count
    out += directory + zip64
    out += struct.pack(
        "<4s4H2IH", b"PK\x05\x06", disk, disk, number if here is None else here, number, len(directory) + grow,
        place + shift, len(comment),
    )  # fmt: skip
    return bytes(out + comment + tail)


@contextmanager
def opened(folder: Path, data: bytes) -> Iterator[int]:
    """A descriptor of a file with these bytes."""
    path = folder / "a.zip"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
