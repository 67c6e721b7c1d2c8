"""The files of the demo ISIC Archive: made when they are asked for, the same each time, with the image's own words.

Every JPEG carries its id, licence and attribution (XMP and IPTC), `EMBEDDED` bytes of it. They came in later than the
site counted the image's bytes, so what the site states may be less than what there is; see `state_size`.
"""

from __future__ import annotations

import functools
import struct
from typing import Literal
from xml.sax.saxutils import escape

from pipeline.demo.bucket import MODIFIED, StoredObject, make_object
from pipeline.demo.isic_pixels import make_jpeg, make_png, make_tiff
from pipeline.demo.isic_records import IsicImage

EMBEDDED = 3032
Sizes = Literal["exact", "ingest", "absent"]
CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png", "tif": "image/tiff"}
LICENCE_URLS = {
    "CC-0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-NC": "https://creativecommons.org/licenses/by-nc/4.0/",
}
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MONTH = 30 * 86_400
_JFIF = 20  # bytes of a JPEG before its other segments


def make_body(image: IsicImage, revision: int = 0) -> bytes:
    """All bytes of an image's file. `revision`: how often its attribution was corrected since it came. Pure."""
    if image.kind == "png":
        return make_png(image.width, image.height, image.seed + 1_000_000 * revision)
    if image.kind == "tif":
        return make_tiff(image.width, image.height, image.seed + 1_000_000 * revision)
    plain = make_jpeg(image.width, image.height, image.detail, image.seed)
    return plain[:_JFIF] + render_embedded(image, revision) + plain[_JFIF:]


def make_thumbnail(image: IsicImage) -> bytes:
    """A JPEG of at most 256 pixels a side, without words. Pure."""
    scale = min(1.0, 256 / max(image.width, image.height))
    return make_jpeg(max(1, int(image.width * scale)), max(1, int(image.height * scale)), 5, image.seed)


def render_embedded(image: IsicImage, revision: int = 0) -> bytes:
    """The segments of a JPEG that name the image: XMP and IPTC, `EMBEDDED` bytes together. Pure."""
    credit = image.own_attribution or image.attribution
    credit += f" (corrected {revision})" if revision else ""
    about = "".join(
        (
            f'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{image.isic_id}</rdf:li></rdf:Alt></dc:title>',
            f"<plus:ImageSupplierImageID>{image.isic_id}</plus:ImageSupplierImageID>",
            f'<xmpRights:UsageTerms><rdf:Alt><rdf:li xml:lang="x-default">{image.licence}</rdf:li></rdf:Alt>',
            f"</xmpRights:UsageTerms><xmpRights:WebStatement>{LICENCE_URLS[image.licence]}</xmpRights:WebStatement>",
            f"<photoshop:Credit>{escape(credit)}</photoshop:Credit>",
        )
    )
    head = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
        ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/">'
    )
    start = (head + about + "</rdf:Description></rdf:RDF></x:xmpmeta>").encode()
    end = b'<?xpacket end="w"?>'
    iptc = b"".join(_iptc(number, text) for number, text in ((110, credit), (115, "ISIC Archive")))
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    photoshop = b"Photoshop 3.0\0" + resource
    second = struct.pack(">BBH", 0xFF, 0xED, len(photoshop) + 2) + photoshop
    padding = EMBEDDED - len(second) - 4 - len(_XMP) - len(start) - len(end)
    if padding < 0:
        raise ValueError(f"the attribution of {image.isic_id} is too long to embed")
    packet = _XMP + start + b" " * padding + end
    return struct.pack(">BBH", 0xFF, 0xE1, len(packet) + 2) + packet + second


def _iptc(number: int, text: str) -> bytes:
    data = text.encode()
    return struct.pack(">BBBH", 0x1C, 2, number, len(data)) + data


@functools.lru_cache(maxsize=4096)
def _size_of(kind: str, width: int, height: int, detail: int, seed: int) -> int:
    if kind == "jpg":
        return len(make_jpeg(width, height, detail, seed)) + EMBEDDED
    return len(make_png(width, height, seed) if kind == "png" else make_tiff(width, height, seed))


def size_of(image: IsicImage) -> int:
    """Bytes of an image's file, whatever its revision of attribution; of PNG and TIFF, as it came. Pure."""
    return _size_of(image.kind, image.width, image.height, image.detail, image.seed)


def state_size(image: IsicImage, sizes: Sizes) -> int | None:
    """Bytes as the site states them: right, as before the words were put in, or not at all. Pure."""
    if sizes == "absent":
        return None
    return size_of(image) - (EMBEDDED if sizes == "ingest" and image.kind == "jpg" else 0)


@functools.lru_cache(maxsize=512)
def thumbnail_size(width: int, height: int, seed: int) -> int:
    """Bytes of a thumbnail. Pure."""
    scale = min(1.0, 256 / max(width, height))
    return len(make_jpeg(max(1, int(width * scale)), max(1, int(height * scale)), 5, seed))


def make_file(image: IsicImage, key: str, *, thumbnail: bool = False, revision: int = 0) -> StoredObject:
    """The object of an image's file or thumbnail, with its hashes. Pure."""
    body = make_thumbnail(image) if thumbnail else make_body(image, revision)
    return make_object(key, body, modified=MODIFIED + revision * _MONTH)
