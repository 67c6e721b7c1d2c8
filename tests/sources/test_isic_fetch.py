"""Images in a task: they come whole and right, whatever the site sends, or fail for their reason."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.archive.tar import join_path
from pipeline.errors import ItemError
from pipeline.model import Entry
from pipeline.sources.isic_answer import INLINE, add_etag, choose_range, keep_etag, strong_etag
from pipeline.sources.isic_body import list_files, read_facts
from tests.images.image_bytes import jpeg, make
from tests.sources.isic_archive import NOT_FOUND, image
from tests.sources.isic_kit import Bench, SearchArchive, make_item, serve, single
from tests.sources.test_tcia_http import Asked, Handler, _site, answer, reset  # noqa: F401 -- the fixture

NAME = "ISIC_0000001"
FILE, SMALL = f"/images/{NAME}.jpg", f"/thumbnails/{NAME}_thumbnail.jpg"
DATA = jpeg(name=NAME)
PIXELS = {"metadata.acquisition.pixels_x": 40, "metadata.acquisition.pixels_y": 30}
LARGE = jpeg(1500, 1500, name=NAME, quality=100, subsampling=0)


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """An empty archive."""
    return SearchArchive(site)


@pytest.fixture
def bench(archive: SearchArchive, tmp_path: Path) -> Iterator[Bench]:
    """A task's way to it."""
    made = Bench(archive, tmp_path)
    yield made
    made.close()


def item_of(bench: Bench, *paths: str, number: int = 1, **facts: Any) -> Any:
    """An image whose files are at these paths of the site."""
    origin = bench.archive.site.origin
    return make_item(bench.root, tuple(origin + path for path in paths or (FILE,)), number, **facts)


def refuse(bench: Bench, item: Any) -> ItemError:
    """The error that an image fails with; nothing of it is left on scratch."""
    with pytest.raises(ItemError) as caught:
        bench.haul(item)
    assert list(bench.folder.iterdir()) == []
    return caught.value


# -- what is right ----------------------------------------------------------------------------------------------------


def test_an_image_and_its_thumbnail(bench: Bench) -> None:
    """Each comes whole by one request, under its own name, with all the evidence there is."""
    small = jpeg(20, 15)
    bench.archive.site.on(FILE, serve(DATA, Content_Type="binary/octet-stream"))
    bench.archive.site.on(SMALL, serve(small))
    item = item_of(bench, FILE, SMALL, **PIXELS, **{"files.full.size": len(DATA) - 900})
    big, little = (verified.file for verified in bench.haul(item))
    assert [join_path(item.path, file.name) for file in (big, little)] == [
        f"isic/{NAME}.jpg",
        f"isic/{NAME}.thumbnail.jpg",
    ]
    assert big.evidence == ("md5", "embedded-id", "pixels", "image", "size")
    assert little.evidence == ("md5", "image", "size")
    for file, data in ((big, DATA), (little, small)):
        assert Path(file.local).read_bytes() == data
        assert (file.size, file.md5) == (len(data), hashlib.md5(data).hexdigest())
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert (file.route, file.chain) == (f"isic:{bench.archive.site.origin}", "J")
    assert big.key == FILE[1:]
    ranges = [each.headers.get("range") for each in bench.asked(FILE)]
    assert ranges == ["bytes=0-0", f"bytes=0-{INLINE - 1}"]  # the first: whether the site answers at all
    assert len(bench.asked(SMALL)) == 1
    assert all(each.headers["accept-encoding"] == "identity" for each in bench.archive.site.asked)
    assert all("authorization" not in each.headers for each in bench.archive.site.asked)


@pytest.mark.parametrize(("kind", "chain"), [("PNG", "S"), ("TIFF", "J")])
def test_other_formats(bench: Bench, kind: str, chain: str) -> None:
    """The extension of the URL is the name's, and chooses how the file is compressed."""
    path = f"/images/{NAME}.{'tif' if kind == 'TIFF' else 'png'}"
    bench.archive.site.on(path, serve(make(kind), etag=""))
    (got,) = bench.haul(item_of(bench, path, **PIXELS))
    assert (got.file.name, got.file.chain) == (path[-4:], chain)
    assert got.file.evidence == ("pixels", "image", "size")


def test_a_url_without_extension(bench: Bench) -> None:
    """Any format will do."""
    bench.archive.site.on("/images/x", serve(make("PNG")))
    (got,) = bench.haul(item_of(bench, "/images/x"))
    assert (got.file.name, got.file.chain) == (".bin", "S")


def test_the_stated_size_is_soft(bench: Bench) -> None:
    """An image of another size than stated passes; one that is smaller is remarked."""
    bench.archive.site.on(FILE, serve(DATA))
    (got,) = bench.haul(item_of(bench, **{"files.full.size": 3}))
    assert got.warnings == ()
    (got,) = bench.haul(item_of(bench, **{"files.full.size": len(DATA) + 1}))
    assert got.warnings == (f"{len(DATA)} bytes, where the archive counted {len(DATA) + 1} when it took the image in",)


@pytest.mark.parametrize("stated", [None, len(LARGE)])
def test_a_large_image_is_resumed(bench: Bench, stated: int | None) -> None:
    """Where a connection breaks, the next request asks for the rest, under the ETag it had."""
    assert len(LARGE) > 2 * INLINE
    good = serve(LARGE)
    bench.archive.site.on(FILE, good, good, serve(LARGE, cut=INLINE + 5), good)
    (got,) = bench.haul(item_of(bench, **{"files.full.size": stated}))
    assert Path(got.file.local).read_bytes() == LARGE
    assert got.file.evidence == ("md5", "embedded-id", "image", "size")
    first, _, last = bench.asked(FILE)[1:]
    assert first.headers["range"] == choose_range(stated or -1)
    assert last.headers["range"] == f"bytes={INLINE + 5}-"
    assert last.headers["if-range"] == f'"{hashlib.md5(LARGE).hexdigest()}"'


@pytest.mark.parametrize("tags", [("", ""), ('W/"1"', 'W/"2"')], ids=["none", "weak"])
def test_versions_are_not_joined(bench: Bench, tags: tuple[str, str]) -> None:
    """Where nothing names a version for sure, a broken body is asked for again from its start."""
    other = jpeg(1500, 1500, name=NAME, quality=100, subsampling=0, seed=9)
    size = min(len(LARGE), len(other))
    assert abs(len(LARGE) - len(other)) < 4000
    old, new = (data + bytes(size + 4000 - len(data)) for data in (LARGE, other))  # of one length
    first = serve(old, etag=tags[0])
    bench.archive.site.on(FILE, first, first, serve(old, etag=tags[0], cut=INLINE + 5), serve(new, etag=tags[1]))
    (got,) = bench.haul(item_of(bench))
    assert Path(got.file.local).read_bytes() == new
    assert "range" not in bench.asked(FILE)[-1].headers
    assert got.file.etag == tags[1]


def test_an_image_that_changes_under_way(bench: Bench) -> None:
    """What came before is thrown away; in the end it is all of one version."""
    other = jpeg(1500, 1500, name=NAME, quality=100, subsampling=0, seed=9)
    bench.archive.site.on(FILE, serve(LARGE), serve(LARGE), serve(LARGE, cut=INLINE), serve(other))
    error = refuse(bench, item_of(bench))
    assert (error.reason, error.transient) == ("checksum", True)
    (got,) = bench.haul(item_of(bench))
    assert Path(got.file.local).read_bytes() == other


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
def test_a_site_without_ranges(bench: Bench, data: bytes) -> None:
    """The whole image in answer to a range is taken as that."""
    bench.archive.site.on(FILE, serve(data, ranges=False))
    (got,) = bench.haul(item_of(bench))
    assert Path(got.file.local).read_bytes() == data
    assert got.file.sha256 == hashlib.sha256(data).hexdigest()
    assert got.file.evidence == ("md5", "embedded-id", "image", "size")
    assert got.file.etag == got.file.md5 == hashlib.md5(data).hexdigest()


def flip(data: bytes) -> bytes:
    """An image with other pixels, of the same structure: a JPEG's coded bytes end far behind its middle."""
    half = len(data) // 2
    at = next(at for at in range(half, len(data)) if 0 < data[at] < 0xFE and 0 < data[at - 1] < 0xFE)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
def test_wrong_bytes_of_a_site_without_ranges(bench: Bench, data: bytes) -> None:
    """Bytes that do not have the MD5 that the answer states are not taken; those that have are, and are asked for."""
    good, bad = serve(data, ranges=False), serve(flip(data), etag=hashlib.md5(data).hexdigest(), ranges=False)
    bench.archive.site.on(FILE, bad)
    error = refuse(bench, item_of(bench))
    assert (error.reason, error.transient) == ("checksum", True)
    bench.archive.site.on(FILE, *[bad] * (2 if data is DATA else 3), good)  # the first answer wakes, or is too long
    (got,) = bench.haul(item_of(bench))
    assert Path(got.file.local).read_bytes() == data
    assert "cache-control" in bench.asked(FILE)[-1].headers


@pytest.mark.parametrize(
    ("etag", "evidence"),
    [
        ("abc-not-a-hash", ("etag", "embedded-id", "image", "size")),
        ("", ("embedded-id", "image", "size")),
        (
            f"{hashlib.md5(hashlib.md5(LARGE).digest()).hexdigest()}-1",
            ("etag-multipart", "embedded-id", "image", "size"),
        ),
    ],
    ids=["other", "none", "multipart"],
)
def test_evidence_without_ranges(bench: Bench, etag: str, evidence: tuple[str, ...]) -> None:
    """It is what the ETag of the answer allows, as where a site knows ranges."""
    bench.archive.site.on(FILE, serve(LARGE, etag=etag, ranges=False))
    (got,) = bench.haul(item_of(bench))
    assert (got.file.evidence, got.file.etag) == (evidence, etag)
    bench.archive.site.on(FILE, serve(LARGE, etag=etag))
    (got,) = bench.haul(item_of(bench))
    assert (got.file.evidence, got.file.etag) == (evidence, etag)


def until_close(handler: Handler, _: Asked) -> None:
    """The image, and nothing that states how long it is."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(LARGE)
    handler.close_connection = True


def test_a_large_answer_without_any_length(bench: Bench) -> None:
    """Only the end of the connection ends it, as a break would: it is not taken."""
    bench.archive.site.on(FILE, until_close)
    error = refuse(bench, item_of(bench))
    assert (error.reason, error.transient) == ("unavailable", True)


@pytest.mark.parametrize(
    ("etag", "evidence"), [("x", ("embedded-id", "image", "size")), (None, ("md5", "embedded-id", "image", "size"))]
)
def test_an_etag_that_only_a_part_states(bench: Bench, etag: str | None, evidence: tuple[str, ...]) -> None:
    """It is that of the bytes only if it is their hash."""
    part = serve(LARGE, etag=etag)
    bench.archive.site.on(FILE, part, part, serve(LARGE, etag=""))
    (got,) = bench.haul(item_of(bench))
    assert (got.file.evidence, got.file.etag) == (evidence, "" if etag else got.file.md5)


def test_an_md5_that_only_the_whole_answer_states(bench: Bench) -> None:
    """A part that came first without an ETag does not spare the whole its comparison."""
    bare, bad = serve(LARGE, etag=""), serve(flip(LARGE), etag=hashlib.md5(LARGE).hexdigest())
    bench.archive.site.on(FILE, bare, bare, bad)
    assert refuse(bench, item_of(bench)).reason == "checksum"
    bench.archive.site.on(FILE, bare, serve(LARGE))
    (got,) = bench.haul(item_of(bench))
    assert got.file.evidence[0] == "md5"
    assert got.file.etag == got.file.md5


@pytest.mark.parametrize(("etag", "word"), [("abc-not-a-hash", "etag"), ("", ""), (f"{'0' * 32}-2", "etag")])
def test_an_etag_that_is_no_md5(bench: Bench, etag: str, word: str) -> None:
    """It is noted as what it is, and compared with nothing."""
    bench.archive.site.on(FILE, serve(DATA, etag=etag))
    (got,) = bench.haul(item_of(bench))
    assert got.file.evidence == tuple(filter(None, (word, "embedded-id", "image", "size")))


def test_etags() -> None:
    """Weak ones stand for no bytes; a hash that was compared needs no other word; what is none is not kept."""
    kept = {'"x"': "x", " x ": "x", 'W/"x"': 'W/"x"', "": "", '""': "", '"a b"': "", '"\xe9"': "", "W/x": "", '"x': ""}
    kept |= {f'"{"x" * 256}"': "x" * 256, f'"{"x" * 257}"': "", '"\x1b"': ""}
    assert {header: keep_etag(header) for header in kept} == kept
    assert (strong_etag('W/"x"'), strong_etag('"x"'), strong_etag(""), strong_etag('"\xe9"')) == ("", "x", "", "")
    assert add_etag(("md5", "size"), "x") == ("md5", "size")
    assert add_etag(("size",), "") == ("size",)


# -- what passes ------------------------------------------------------------------------------------------------------

PASSING = {
    "500": answer(500, b"x"),
    "503": answer(503, b"x", Retry_After="1"),
    "reset": reset,
    "cut": serve(DATA, cut=50),
    "page": answer(200, b"<html>", Content_Type="text/html"),
    "wrong bytes": serve(bytes(len(DATA)), etag=hashlib.md5(DATA).hexdigest()),
    "range": answer(206, DATA, Content_Range="bytes 5-9/20"),
    "gzip": serve(DATA, Content_Encoding="gzip"),
}


@pytest.mark.parametrize("step", PASSING.values(), ids=PASSING)
def test_what_passes_is_got_over(bench: Bench, step: Any) -> None:
    """The next request gets the image."""
    bench.archive.site.on(FILE, serve(DATA), step, serve(DATA))
    (got,) = bench.haul(item_of(bench))
    assert Path(got.file.local).read_bytes() == DATA


def test_a_site_that_is_down(bench: Bench) -> None:
    """Until it has answered once, already the listing says that it does not."""
    bench.archive.site.on(FILE, answer(503, b"x"))
    with pytest.raises(ItemError) as caught:
        bench.fetcher.list_bodies(Entry(0, 0, 0, 1, item_of(bench)), time.monotonic() + 60)
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)


# -- what fails -------------------------------------------------------------------------------------------------------

WRONG = {
    "format": (make("PNG"), "malformed", {}),
    "truncated": (DATA[:-400], "truncated", {}),
    "no image": (b"GIF89a" + bytes(99), "malformed", {}),
    "pixels": (DATA, "malformed", PIXELS | {"metadata.acquisition.pixels_x": 41}),
    "another image": (jpeg(name="ISIC_0000002"), "wrong-uid", {}),
}


@pytest.mark.parametrize(("data", "reason", "facts"), WRONG.values(), ids=WRONG)
def test_a_wrong_image(bench: Bench, data: bytes, reason: str, facts: dict[str, Any]) -> None:
    """What is not the image fails, for good where the bytes have the MD5 that storage states."""
    bench.archive.site.on(FILE, serve(data))
    error = refuse(bench, item_of(bench, **facts))
    assert (error.reason, error.transient) == (reason, False)
    assert str(error).startswith(f"{FILE[1:]}: ")
    bench.archive.site.on(FILE, serve(data, etag=""))
    assert refuse(bench, item_of(bench, **facts)).transient


@pytest.mark.parametrize("status", [403, 404])
def test_a_withdrawn_image(bench: Bench, status: int) -> None:
    """Gone from storage, and not in the archive any more."""
    bench.archive.site.on(FILE, answer(status, b"<Error><Code>AccessDenied</Code></Error>"))
    bench.archive.site.on(f"/api/v2/images/{NAME}/", NOT_FOUND)
    error = refuse(bench, item_of(bench))
    assert (error.reason, error.transient) == ("withdrawn", False)


@pytest.mark.parametrize(("status", "reason"), [(403, "forbidden"), (404, "unavailable")])
def test_an_image_that_the_archive_has_and_storage_not(bench: Bench, status: int, reason: str) -> None:
    """It is not withdrawn; what is missing may come."""
    record = image(1)
    record["files"]["full"]["url"] = bench.archive.site.origin + FILE
    api = single(bench.archive, record)
    bench.archive.site.on(FILE, answer(status, b"no"))
    error = refuse(bench, item_of(bench))
    assert (error.reason, error.transient) == (reason, reason == "unavailable")
    assert len(bench.asked(api)) == 1


def test_a_page_in_place_of_the_api_says_nothing_about_the_image(bench: Bench) -> None:
    """Only the API's own 404 means withdrawn."""
    bench.archive.site.on(FILE, answer(404, b"no"))
    bench.archive.site.on(f"/api/v2/images/{NAME}/", answer(404, b"<html>nginx"))
    assert refuse(bench, item_of(bench)).reason == "unavailable"


# -- the manifest's row -----------------------------------------------------------------------------------------------


def test_rows_of_another_form_say_nothing(bench: Bench) -> None:
    """A row that is not of this image, or of other types, is not compared with anything."""
    good = item_of(bench, **PIXELS, public=True)
    assert (read_facts(good).width, read_facts(good).public) == (40, True)
    for meta in (b"[]", b"{}", b'["ISIC_0000002"]', b"x", b'["ISIC_0000001", 1, 2]'):
        facts = read_facts(msgspec.structs.replace(good, meta=msgspec.Raw(meta)))
        assert (facts.width, facts.height, facts.size, facts.public) == (None,) * 4
    wrong = item_of(bench, **{"metadata.acquisition.pixels_x": "40"})
    assert read_facts(wrong).width is None


def test_a_cut_item(bench: Bench) -> None:
    """Where a frame may hold one file only, an image and its thumbnail are a piece each."""
    item = item_of(bench, FILE, SMALL)
    pieces = [list_files(Entry(0, piece, piece, 2, item)) for piece in (0, 1)]
    assert [[body.file.key for body in piece] for piece in pieces] == [[FILE[1:]], [SMALL[1:]]]
