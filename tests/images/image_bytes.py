"""Images for tests: real ones from Pillow, and the bytes to bend them with."""

from __future__ import annotations

import io
import random
import struct
import zlib

from PIL import Image

XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
    'plus:ImageSupplierImageID="{name}"><dc:title><rdf:Alt><rdf:li xml:lang="x-default">{name}</rdf:li></rdf:Alt>'
    "</dc:title></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """A picture of noise, the same for the same seed."""
    noise = random.Random(seed).randbytes(width * height)
    return Image.frombytes("L", (width, height), noise).convert(mode)


def make(kind: str, width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 1, **options: object) -> bytes:
    """A picture as a file; `kind` and options as Pillow has them."""
    out = io.BytesIO()
    picture(width, height, mode, seed).save(out, kind, **options)
    return out.getvalue()


def jpeg(width: int = 40, height: int = 30, name: str = "", seed: int = 1, **options: object) -> bytes:
    """A JPEG, with the identity that the archive embeds if it has a name."""
    data = make("JPEG", width, height, seed=seed, **options)
    if not name:
        return data
    packet = b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(name=name).encode()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet + data[2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of given, unfiltered image data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(*directories: list[tuple[int, int, int, int]], tail: bytes = b"", circle: bool = False) -> bytes:
    """A little-endian TIFF of directories of (tag, type, count, value); `tail` follows them. `circle`: they do."""
    size = sum(2 + 12 * len(fields) + 4 for fields in directories)
    out, place = b"II*\0" + struct.pack("<I", 8), 8
    for number, fields in enumerate(directories):
        place += 2 + 12 * len(fields) + 4
        following = place if number < len(directories) - 1 else 8 if circle else 0
        out += struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
        out += struct.pack("<I", following)
    assert len(out) == 8 + size
    return out + tail
