"""Files of the demo ISIC Archive: real images with their own words in them, served as S3 and CloudFront do."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_isic_lists import OWNER, Api

from pipeline.demo import isic_data, isic_pixels
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_bodies import EMBEDDED, make_body, size_of
from pipeline.demo.isic_data import IsicDemo, build_isic, make_generated

NOW = 1_800_000_000.0


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> IsicDemo:
    """The small demo data."""
    return build_isic(tmp_path_factory.mktemp("isic"))


@pytest.fixture
def clock() -> Clock:
    """The site's clock."""
    return Clock()


@pytest.fixture
def site(demo: IsicDemo, clock: Clock) -> Iterator[IsicSite]:
    """A site that serves them."""
    with IsicSite(demo.archive, clock=clock) as running:
        yield running


def opened(body: bytes):
    """An image as Pillow reads it, to its end."""
    images = pytest.importorskip("PIL.Image")
    image = images.open(io.BytesIO(body))
    image.load()
    return image


def test_every_image_is_one(demo):
    """Pillow reads every image, of the size and kind that its record says, from 10 to 300 kB."""
    sizes = []
    for image in demo.archive.images:
        body = make_body(image)
        found = opened(body)
        assert found.size == (image.width, image.height)
        assert found.format == {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}[image.kind]
        assert len(body) == size_of(image)
        sizes.append(len(body))
    assert min(sizes) >= 10_000
    assert 200_000 < max(sizes) <= 300_000
    assert {image.kind for image in demo.archive.images} == {"jpg", "png", "tif"}


def test_images_differ_and_stay(demo):
    """No two images have the same bytes, and each has the same in every process."""
    digests = [hashlib.sha256(make_body(image)).hexdigest() for image in demo.archive.images]
    assert len(set(digests)) == len(digests)
    program = (
        "import hashlib, sys, pathlib; from pipeline.demo.isic_data import *; from pipeline.demo.isic_bodies import *;"
        "print(*[hashlib.sha256(make_body(i)).hexdigest() for i in load_isic(pathlib.Path(sys.argv[1])).images[:20]])"
        "; assert not {'PIL', 'numpy'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", program, str(demo.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(isic_data.__file__).parents[2])
    assert done.stdout.split() == digests[:20]


def test_a_jpeg_names_itself(demo):
    """A JPEG carries its id, licence and own attribution, in XMP and IPTC, between its head and its tables."""
    image = demo.archive.image(demo.named["two-attributions"])
    found = opened(make_body(image))
    xmp = found.info["xmp"].decode()
    assert image.isic_id in xmp
    assert "Demo Contributor, on their own" in xmp
    assert image.licence in xmp
    iptc = pytest.importorskip("PIL.IptcImagePlugin").getiptcinfo(found)
    assert iptc[2, 110].decode() == "Demo Contributor, on their own"
    assert iptc[2, 115] == b"ISIC Archive"
    plain = isic_pixels.make_jpeg(image.width, image.height, image.detail, image.seed)
    assert len(make_body(image)) - len(plain) == EMBEDDED


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 63), st.integers(0, 9))
def test_jpegs_of_any_size(width, height, detail, seed):
    """A JPEG of any size and detail is one."""
    assert opened(isic_pixels.make_jpeg(width, height, detail, seed)).size == (width, height)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 600), st.integers(1, 600))
def test_other_kinds_of_any_size(width, height):
    """So are PNG and TIFF."""
    assert opened(isic_pixels.make_png(width, height, 1)).size == (width, height)
    assert opened(isic_pixels.make_tiff(width, height, 1)).size == (width, height)


def test_many_images_are_made_fast(tmp_path):
    """Of 20,000 images each has its own number and bytes, which are found by it, and true sizes."""
    archive = build_isic(tmp_path, "many").archive
    assert len(archive.images) == 20_000
    sample = archive.images[::501]
    assert len({image.isic_id for image in archive.images}) == 20_000
    assert len({make_body(image) for image in sample}) == len(sample)
    for image in sample:
        assert archive.image(image.isic_id) == image
        assert len(make_body(image)) == size_of(image) < 10_000
        opened(make_body(image))
    assert archive.find("ISIC_0000000") is None or archive.image("ISIC_0000000").number == 0
    moments = [image.created for image in archive.images]
    assert moments == sorted(moments)
    assert make_generated(5).images[-1] == archive.images[4]


def test_files_come_whole(site, demo):
    """A file comes with its length, MD5 as ETag, type and disposition; some without saying what they are."""
    api = Api(site.url)
    for isic_id in (demo.named["large"], demo.named["png"], demo.named["mosaic"]):
        image = demo.archive.image(isic_id)
        got = api.ask("GET", f"/isic-archive/{image.key}")
        assert (got.status, got.body) == (200, make_body(image))
        assert got.headers["ETag"] == f'"{hashlib.md5(got.body).hexdigest()}"'
        assert got.headers["Accept-Ranges"] == "bytes"
        plain = image.number % 10 == 7
        wanted = {"jpg": "image/jpeg", "png": "image/png", "tif": "image/tiff"}[image.kind]
        assert got.headers["Content-Type"] == ("binary/octet-stream" if plain else wanted)
        assert got.headers["Content-Disposition"] == (None if plain else "attachment")
        head = api.ask("HEAD", f"/isic-archive/{image.key}")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(got.body)), b"")
        thumbnail = opened(api.ask("GET", f"/isic-archive/{image.thumbnail_key}").body)
        assert (thumbnail.format, max(thumbnail.size) <= 256) == ("JPEG", True)
    assert any(image.number % 10 == 7 for image in demo.archive.images)


def test_ranges(site, demo):
    """A range comes as 206, with If-Range as long as the file is the same; one outside is refused."""
    api, path = Api(site.url), f"/isic-archive/images/{demo.named['large']}.jpg"
    whole = api.ask("GET", path)
    etag = whole.headers["ETag"]
    got = api.ask("GET", path, Range="bytes=100-", If_Range=etag)
    assert (got.status, got.body) == (206, whole.body[100:])
    assert got.headers["Content-Range"] == f"bytes 100-{len(whole.body) - 1}/{len(whole.body)}"
    assert api.ask("GET", path, Range="bytes=100-", If_Range='"0"').status == 200
    assert api.ask("GET", path, Range="bytes=99999999-").status == 416
    assert api.ask("GET", path, If_None_Match=etag).status == 304
    assert api.ask("GET", path, If_Match='"0"').status == 412


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/isic-archive/images/ISIC_9999999.jpg", 404),
        ("/isic-archive/images/PNG.jpg", 404),
        ("/isic-archive/images/PRIVATE.jpg", 404),
        ("/isic-archive/other", 404),
        ("/isic-archive?list-type=2", 403),
        ("/isic-archive/", 403),
        ("/nothing/x", 404),
    ],
)
def test_files_that_are_not_there(site, demo, path, status):
    """What is not in the bucket, has another kind, or is not public does not come; nobody lists the bucket."""
    path = path.replace("PNG", demo.named["png"]).replace("PRIVATE", demo.named["private"])
    got = Api(site.url).ask("GET", path)
    assert (got.status, got.body[:5]) == (status, b"<?xml")


def test_signed_urls_end(site, demo, clock):
    """A private image has a signed URL until midnight and seven days more; then it is refused, and a new one works."""
    api = Api(site.url, OWNER)
    url = api.get(f"images/{demo.named['private']}/").json["files"]["full"]["url"]
    assert {part.partition("=")[0] for part in urlsplit(url).query.split("&")} == {
        "Expires", "Signature", "Key-Pair-Id"
    }  # fmt: skip
    assert int(url.partition("Expires=")[2].partition("&")[0]) % 86400 == 0
    nobody = Api(site.url)
    body = nobody.ask("GET", url).body
    assert body == make_body(demo.archive.image(demo.named["private"]))
    assert nobody.ask("GET", url, Range="bytes=5-").body == body[5:]
    clock.now += 6 * 86400
    assert nobody.ask("GET", url).status == 200
    clock.now += 86400
    got = nobody.ask("GET", url)
    assert (got.status, b"<Code>AccessDenied</Code>" in got.body) == (403, True)
    assert nobody.ask("GET", api.get(f"images/{demo.named['private']}/").json["files"]["full"]["url"]).status == 200


def test_signatures_are_checked(site, demo):
    """Without its signature, or with that of another file or time, a URL is refused, whatever is in it."""
    url = Api(site.url, OWNER).get(f"images/{demo.named['private']}/").json["files"]["full"]["url"]
    for wrong in (
        url.partition("?")[0],
        url.replace("Expires=1", "Expires=2"),
        url.replace("Signature=", "Signature=%C3%A4"),
        url.replace(demo.named["private"], demo.named["private-lesion"]),
    ):
        assert Api(site.url).ask("GET", wrong).status == 403


def test_all_urls_may_be_signed(demo, clock):
    """On demand public images have signed URLs too, that are good for as long as wanted."""
    with IsicSite(demo.archive, signed="all", url_lifetime=60, clock=clock) as site:
        api = Api(site.url)
        files = api.get("images/", limit=1).json["results"][0]["files"]
        assert [api.ask("GET", file["url"]).status for file in files.values()] == [200, 200]
        clock.now += 61
        assert [api.ask("GET", file["url"]).status for file in files.values()] == [403, 403]


def test_withdrawn_and_revised_images(site, demo):
    """A withdrawn image is nowhere any more; a revised one has other bytes, ETag and date under its key."""
    api, isic_id = Api(site.url), demo.named["large"]
    path = f"/isic-archive/images/{isic_id}.jpg"
    before = api.ask("GET", path)
    site.revise(isic_id)
    after = api.ask("GET", path)
    assert (len(after.body), after.body != before.body) == (len(before.body), True)
    assert (after.headers["ETag"], after.headers["Last-Modified"]) != (
        before.headers["ETag"],
        before.headers["Last-Modified"],
    )
    opened(after.body)
    site.withdraw(isic_id)
    assert [api.ask("GET", path).status, api.get(f"images/{isic_id}/").status] == [404, 404]
    assert isic_id not in api.ids()
    with pytest.raises(KeyError):
        site.withdraw("ISIC_9999999")


def test_calls_are_counted(site, demo):
    """Every request counts for its endpoint."""
    api = Api(site.url)
    api.ids("images/search/", limit=30)
    api.get(f"images/{demo.named['png']}/")
    api.get("nothing/")
    api.ask("GET", f"/isic-archive/images/{demo.named['png']}.png")
    api.ask("GET", f"/isic-archive/thumbnails/{demo.named['png']}_thumbnail.jpg")
    wanted = {"images/search": 2, "images/{id}": 1, "unknown": 1, "file": 1, "thumbnail": 1}
    assert site.calls() == wanted
    assert site.stats.count("GET", "images/*", "isic-archive") == 1
    assert site.stats.count("GET", "isic/images/*", "isic-api") == 3
