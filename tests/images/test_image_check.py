"""Checks of image files: whole ones pass with their size, others fail for their reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import ItemError
from pipeline.images.check import check_image, describe_other, sniff_format
from pipeline.images.header import ImageHeader
from pipeline.images.png import Layout
from pipeline.images.xmp import find_identities
from tests.images.image_bytes import XMP, chunk, jpeg, make, png, tiff


def check(tmp_path: Path, data: bytes, extension: str = "") -> ImageHeader:
    """Check bytes as a file."""
    path = tmp_path / "image"
    path.write_bytes(data)
    return check_image(path, extension)


def refuse(tmp_path: Path, data: bytes, extension: str = "") -> ItemError:
    """The error for bytes that are no whole image."""
    with pytest.raises(ItemError) as caught:
        check(tmp_path, data, extension)
    assert not caught.value.transient
    return caught.value


GOOD = {
    "jpeg": (jpeg(), ".jpg", "jpeg"),
    "progressive": (jpeg(progressive=True), ".jpeg", "jpeg"),
    "restarts": (jpeg(200, 200, restart_marker_blocks=2), ".jpg", "jpeg"),
    "grey": (make("JPEG", mode="L"), ".jpg", "jpeg"),
    "large": (jpeg(1500, 1200, quality=100, subsampling=0), ".jpg", "jpeg"),
    "png": (make("PNG"), ".png", "png"),
    "palette": (make("PNG", mode="P"), ".png", "png"),
    "one bit": (make("PNG", 41, 31, mode="1"), ".png", "png"),
    "16 bit": (make("PNG", mode="I;16"), ".png", "png"),
    "alpha": (make("PNG", mode="RGBA"), ".png", "png"),
    "tiff": (make("TIFF"), ".tif", "tiff"),
    "deflate": (make("TIFF", 300, 200, mode="L", compression="tiff_adobe_deflate"), ".tiff", "tiff"),
    "big": (make("TIFF", big_tiff=True), ".tif", "tiff"),
}


@pytest.mark.parametrize(("data", "extension", "kind"), GOOD.values(), ids=GOOD)
def test_whole_images(tmp_path: Path, data: bytes, extension: str, kind: str) -> None:
    """Images as libraries write them pass, with their pixel sizes and no warning."""
    import io

    from PIL import Image

    found = check(tmp_path, data, extension)
    assert (found.format, found.warnings) == (kind, ())
    assert (found.width, found.height) == Image.open(io.BytesIO(data)).size
    assert check(tmp_path, data, ".bin") == found


@pytest.mark.parametrize(("data", "extension", "kind"), GOOD.values(), ids=GOOD)
def test_every_cut_is_noticed(tmp_path: Path, data: bytes, extension: str, kind: str) -> None:
    """A file that ends too early never passes, wherever it was cut."""
    step = max(1, len(data) // 150)
    for end in [*range(0, len(data) - 1, step), len(data) - 1]:
        if kind == "tiff" and data[end:].strip(b"\0") == b"":
            continue  # padding behind the last value
        error = refuse(tmp_path, data[:end], extension)
        assert error.reason == "truncated", end


@pytest.mark.parametrize("extension", [".png", ".tif", ".tiff"])
def test_another_format_than_the_name_says(tmp_path: Path, extension: str) -> None:
    """An image of another format than its extension is `malformed`."""
    error = refuse(tmp_path, jpeg(), extension)
    assert error.reason == "malformed"
    assert "it is JPEG" in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?><Error>', "an XML document"),
        (b'{"detail": "Not Found"}', "JSON"),
        (b"GIF89a" + bytes(50), "474946383961"),
    ],
)
def test_no_image_at_all(tmp_path: Path, data: bytes, said: str) -> None:
    """What a site may send in place of an image is named."""
    error = refuse(tmp_path, data, ".jpg")
    assert (error.reason, said in str(error)) == ("malformed", True)
    assert sniff_format(data) == ""
    assert said in describe_other(data)


def test_the_identity_that_the_archive_embeds(tmp_path: Path) -> None:
    """An id is read from XMP in JPEG, PNG and TIFF, once, and from nowhere else."""
    name = "ISIC_0000042"
    packet = XMP.format(name=name).encode()
    assert check(tmp_path, jpeg(name=name)).identities == (name,)
    assert check(tmp_path, jpeg(comment=packet)).identities == ()
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    assert check(tmp_path, png(2, 2, bytes(6), extra=text)).identities == (name,)
    assert check(tmp_path, make("TIFF", tiffinfo={700: packet})).identities == (name,)


@pytest.mark.parametrize(
    ("packet", "found"),
    [
        (b"<dc:title>ISIC_0000001</dc:title>", ("ISIC_0000001",)),
        (b"<ns1:ImageSupplierImageID>ISIC_0000001</ns1:ImageSupplierImageID>", ("ISIC_0000001",)),
        (
            b"<x plus:ImageSupplierImageID='ISIC_0000001'/><dc:title>ISIC_0000002</dc:title>",
            ("ISIC_0000001", "ISIC_0000002"),
        ),
        (b"<dc:description>ISIC_0000001</dc:description>", ()),
        (b"<dc:title>a photo of ISIC_0000001</dc:title>", ()),
        (b"<dc:title>ISIC_1</dc:title>", ()),
        (b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><dc:title>&a;</dc:title>", ()),
    ],
)
def test_where_an_identity_stands(packet: bytes, found: tuple[str, ...]) -> None:
    """Only the title and the supplier's id name the image, as elements or attributes, under any prefix."""
    assert find_identities(packet) == found


def test_jpeg_lies(tmp_path: Path) -> None:
    """Headers that contradict each other are refused."""
    data = jpeg()
    at = data.index(b"\xff\xc0")
    huge = data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :]
    assert "cannot hold 65535 x 65535" in str(refuse(tmp_path, huge))
    assert "width is 0" in str(refuse(tmp_path, data[: at + 7] + b"\0\0" + data[at + 9 :]))
    assert "height is 0" in str(refuse(tmp_path, data[: at + 5] + b"\0\0" + data[at + 7 :]))
    assert "second frame" in str(refuse(tmp_path, data[:at] + data[at : at + 19] + data[at:]))
    assert "before any frame" in str(refuse(tmp_path, data[:at] + data[at + 19 :]))
    assert "no image" in str(refuse(tmp_path, b"\xff\xd8\xff\xd9"))
    assert "no marker" in str(refuse(tmp_path, b"\xff\xd8\xff\xe0\0\2\0\0"))
    assert "a segment of 1 bytes" in str(refuse(tmp_path, b"\xff\xd8\xff\xe0\0\1" + data[2:]))


def test_a_height_that_comes_later(tmp_path: Path) -> None:
    """A frame may leave its height to the segment after the first scan (DNL)."""
    data = jpeg()
    at = data.index(b"\xff\xc0")
    late = data[: at + 5] + b"\0\0" + data[at + 7 : -2] + b"\xff\xdc\0\4\0\x1e\xff\xd9"
    assert check(tmp_path, late) == ImageHeader("jpeg", 40, 30)


def test_what_follows_the_image_is_told(tmp_path: Path) -> None:
    """Bytes after the end are a warning: cameras add previews."""
    assert check(tmp_path, jpeg() + b"abc").warnings == ("3 bytes after the end of the image",)
    assert check(tmp_path, make("PNG") + b"abc").warnings == ("3 bytes after the end of the image",)


def test_markers_across_windows(tmp_path: Path) -> None:
    """Data is searched for its end in windows; markers, stuffed bytes and fill bytes may lie across their edges."""
    data = jpeg()
    at = data.index(b"\xff\xda")
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    for pad in range(65530, 65542):
        for end in (b"\xff\xd9", b"\xff\xff\xff\xd9", b"\xff\0\xff\xd0\xff\xd9"):
            assert check(tmp_path, data[:at] + b"\x55" * pad + end) == ImageHeader("jpeg", 40, 30)
        assert refuse(tmp_path, data[:at] + b"\x55" * pad + b"\xff").reason == "truncated"
    assert check(tmp_path, data[:at] + b"\xff" * 3_000_000 + b"\0\xff\xd9").width == 40


def test_png_lies(tmp_path: Path) -> None:
    """Chunks that are not what they say are refused."""
    row = bytes(3)
    assert check(tmp_path, png(2, 2, row * 2)) == ImageHeader("png", 2, 2)
    few = refuse(tmp_path, png(2, 3, row * 2))
    assert (few.reason, "6 of 9 bytes" in str(few)) == ("truncated", True)
    assert "more image data" in str(refuse(tmp_path, png(2, 1, row * 2)))
    assert "more image data" in str(refuse(tmp_path, png(2, 1, bytes(20_000_000))))
    assert "cannot hold" in str(refuse(tmp_path, png(2**31 - 1, 2**31 - 1, row)))
    assert "0 x 2" in str(refuse(tmp_path, png(0, 2, row)))
    assert "impossible header" in str(refuse(tmp_path, png(2, 2, row * 2, depth=7)))
    assert "no palette" in str(refuse(tmp_path, png(2, 2, row * 2, colour=3)))
    good = png(2, 2, row * 2)
    assert "its CRC" in str(refuse(tmp_path, good[:20] + b"\1" + good[21:]))
    start, head, body = good[:8], chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)), zlib.compress(row * 2)
    parts = chunk(b"IDAT", body[:4]) + chunk(b"tEXt", b"") + chunk(b"IDAT", body[4:]) + chunk(b"IEND", b"")
    assert "not in one piece" in str(refuse(tmp_path, start + head + parts))
    assert "not its first" in str(refuse(tmp_path, start + chunk(b"gAMA", bytes(4)) + head + chunk(b"IEND", b"")))
    assert "no image data" in str(refuse(tmp_path, start + head + chunk(b"IEND", b"")))
    assert "does not inflate" in str(refuse(tmp_path, start + head + chunk(b"IDAT", b"xyz" * 9)))
    assert refuse(tmp_path, start + head + struct.pack(">I", 2**31 - 1) + b"IDAT" + body).reason == "truncated"


def test_interlaced_png() -> None:
    """The rows of all seven passes are counted, empty passes as nothing."""
    assert Layout(1, 1, 8, False, True).data_bytes() == 2
    assert Layout(8, 8, 8, False, True).data_bytes() == 64 + 15
    assert Layout(3, 3, 1, False, True).data_bytes() == 2 + 2 + 2 + 2 * 2 + 2


BASE = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (277, 3, 1, 1), (278, 3, 1, 4)]


def test_tiff_lies(tmp_path: Path) -> None:
    """Directories and strips that lie outside the file, or in a circle, are refused."""
    fields = [*BASE, (273, 4, 1, 200), (279, 4, 1, 16)]
    assert check(tmp_path, tiff(fields, tail=bytes(200))) == ImageHeader("tiff", 4, 4)
    assert refuse(tmp_path, tiff(fields, tail=bytes(20))).reason == "truncated"
    assert "in a circle" in str(refuse(tmp_path, tiff(fields, fields, tail=bytes(200), circle=True)))
    assert "16 bytes" not in str(refuse(tmp_path, tiff([*BASE, (273, 4, 1, 200), (279, 4, 1, 8)], tail=bytes(200))))
    assert "where its pixels are" in str(refuse(tmp_path, tiff(BASE, tail=bytes(200))))
    assert "no directory" in str(refuse(tmp_path, b"II*\0\0\0\0\0"))
    assert "of 0 entries" in str(refuse(tmp_path, b"II*\0\x08\0\0\0" + bytes(40)))
    many = [(256, 4, 1, 2**31), (257, 4, 1, 2**31), (278, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)]
    assert "strips or tiles for" in str(refuse(tmp_path, tiff(many)))
    assert "where 4 are due" in str(refuse(tmp_path, tiff([*BASE[:5], (278, 3, 1, 1), *fields[6:]], tail=bytes(200))))
    text = [(256, 2, 1, 4), *fields[1:]]
    assert "numbers of type 2" in str(refuse(tmp_path, tiff(text, tail=bytes(200))))
    far = [*fields, (700, 7, 2**31, 8)]
    assert refuse(tmp_path, tiff(far, tail=bytes(200))).reason == "truncated"


def test_tiles_and_overviews(tmp_path: Path) -> None:
    """The size is the full image's, not its overviews'; tiles that were left out (0, 0) are allowed."""
    tiles = [(322, 3, 1, 4), (323, 3, 1, 4), (324, 4, 1, 300), (325, 4, 1, 9)]
    full = [(256, 3, 1, 4), (257, 3, 1, 3), (259, 3, 1, 8), *tiles]
    small = [
        (254, 4, 1, 1),
        (256, 3, 1, 400),
        (257, 3, 1, 1),
        (259, 3, 1, 8),
        (278, 3, 1, 1),
        (273, 4, 1, 300),
        (279, 4, 1, 9),
    ]
    assert check(tmp_path, tiff(full, small, tail=bytes(400))) == ImageHeader("tiff", 4, 3)
    empty = [*full[:5], (324, 4, 1, 0), (325, 4, 1, 0)]
    assert "no pixels" in str(refuse(tmp_path, tiff(empty, tail=bytes(400))))
    assert "without a size" in str(refuse(tmp_path, tiff([*full[:3], *tiles[2:]], tail=bytes(400))))


def test_endless_directories(tmp_path: Path) -> None:
    """A chain of thousands of directories, each asking for much, ends soon."""
    fields = [*BASE, (273, 4, 1, 60), (279, 4, 1, 16)]
    assert "more than 1000 directories" in str(refuse(tmp_path, tiff(*[fields] * 1200, tail=bytes(200))))


@pytest.mark.parametrize(
    ("compression", "least"),
    [(8, 969), (32946, 969), (5, 385), (32773, 15_625), (7, 1954), (2, 125), (4, 125), (1, 1_000_000), (50000, 1)],
    ids=["deflate", "old deflate", "LZW", "PackBits", "JPEG", "CCITT 1D", "CCITT G4", "none", "zstd"],
)
def test_tiff_compressed_beyond_reason(tmp_path: Path, compression: int, least: int) -> None:
    """A strip or tile is `truncated` when its bytes cannot hold its pixels, however well they were compressed."""
    head = [(256, 4, 1, 1000), (257, 4, 1, 1000), (258, 3, 1, 8), (259, 3, 1, compression)]
    for fields in (
        [(273, 4, 1, 200), (278, 4, 1, 1000), (279, 4, 1)],
        [(322, 4, 1, 1000), (323, 4, 1, 1000), (324, 4, 1, 200), (325, 4, 1)],
    ):

        def build(size: int, fields: list[tuple[int, ...]] = fields) -> bytes:
            return tiff([*head, *fields[:-1], (*fields[-1], size)], tail=bytes(1_000_200))

        assert check(tmp_path, build(least)) == ImageHeader("tiff", 1000, 1000)
        if least > 1:
            error = refuse(tmp_path, build(least - 1))
            assert error.reason == "truncated"
            assert "cannot hold" in str(error) or "uncompressed" in str(error)


def test_real_tiffs_of_little_content(tmp_path: Path) -> None:
    """An image of one colour passes with every compression that Pillow writes."""
    for mode, kinds in {"L": ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg"), "1": ("group3", "group4")}.items():
        for kind in kinds:
            out = io.BytesIO()
            Image.new(mode, (4000, 4000)).save(out, "TIFF", compression=kind)
            assert check(tmp_path, out.getvalue()) == ImageHeader("tiff", 4000, 4000)


def test_tiles_that_were_never_written(tmp_path: Path) -> None:
    """Tiles without a place stand for none; a file that has some is remarked."""
    head = [(256, 4, 1, 512), (257, 4, 1, 256), (258, 3, 1, 8), (259, 3, 1, 8), (322, 4, 1, 256), (323, 4, 1, 256)]
    tail = struct.pack("<4I", 200, 0, 100, 0) + bytes(300)
    place = 8 + 2 + 12 * 8 + 4
    found = check(tmp_path, tiff([*head, (324, 4, 2, place), (325, 4, 2, place + 8)], tail=tail))
    assert found == ImageHeader("tiff", 512, 256, warnings=("1 of 2 strips or tiles were never written",))
