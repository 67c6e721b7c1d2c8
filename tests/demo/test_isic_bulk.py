"""Bulk routes of the demo ISIC Archive: tokens, file listings, CSVs, attributions, licences and zips."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from test_isic_lists import OWNER, Api

from pipeline.demo import isic_data as data
from pipeline.demo.faults import Fault
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_bodies import make_body
from pipeline.demo.isic_data import IsicDemo, build_isic, make_generated


class Clock:
    """A clock that stands until it is set."""

    now = 1_800_000_000.0

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


@pytest.fixture
def api(site: IsicSite) -> Api:
    """An anonymous client."""
    return Api(site.url)


def order(api: Api, **payload: object) -> str:
    """Ask for a zip; its token."""
    got = api.ask("POST", "/api/v2/zip-download/url/", json.dumps(payload).encode())
    assert got.status == 200
    url = json.loads(got.body)
    assert url.startswith(f"{api.url}/zip/download?zsid=")
    return url.partition("=")[2]


def rows_of(body: bytes) -> list[dict[str, str]]:
    """A CSV."""
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, {"detail": "Cannot parse request body"}),
        (b'{"query": "sex:"}', 400, {"message": "Could not parse search query."}),
        (
            b'{"query": "", "colour": 1}',
            422,
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "payload", "colour"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        ),
    ],
)
def test_orders_that_are_refused(api, body, status, said):
    """A body that is no JSON, a query that cannot be read, a key too many."""
    got = api.ask("POST", "/api/v2/zip-download/url/", body)
    assert (got.status, got.json) == (status, said)


@pytest.mark.parametrize("collections", ["65,249", [65, 249]])
def test_a_listing_names_every_file(api, demo, collections):
    """The listing has the URLs of all files of the query, not in the order of lists, and of the texts at its end."""
    token = order(api, query="sex:male", collections=collections)
    got = api.get("zip-download/file-listing/", token=token)
    assert got.headers["Transfer-Encoding"] == "chunked"
    listing = got.json
    assert listing["suggestedFilename"] == "ISIC-images.zip"
    wanted = api.ids("images/search/", query="sex:male", collections="65,249")
    listed = [file["zipPath"] for file in listing["files"]]
    names = [name.partition(".")[0] for name in listed if name.startswith("ISIC_")]
    assert sorted(names) == sorted(wanted)
    assert names != wanted
    assert {"metadata.csv", "attribution.txt", "licenses/CC-0.txt"} <= set(listed[len(names) :])
    for file in listing["files"]:
        assert api.ask("GET", file["url"]).status == 200


def test_a_listing_of_one(api, demo):
    """The zip of one image has its name."""
    token = order(api, query=f"isic_id:{demo.named['png']}")
    assert api.get("zip-download/file-listing/", token=token).json["suggestedFilename"] == f"{demo.named['png']}.zip"


def test_tokens_end(site, api, clock):
    """A token that is wrong, or older than a day, is refused; one of an owner has what is private."""
    token = order(api)
    assert len(rows_of(api.get("zip-download/metadata-file/", token=token).body)) == 56
    owners = order(Api(site.url, OWNER), query="")
    assert len(rows_of(api.get("zip-download/metadata-file/", token=owners).body)) == 60
    clock.now += 86_401
    for wrong in (token, owners, "", "x", "a:b:c", "ä", token[:-1]):
        for name in ("file-listing", "metadata-file", "attribution-file"):
            assert api.get(f"zip-download/{name}/", token=wrong).json == {"detail": "Unauthorized"}


def test_the_csv(api, demo):
    """Rows by id, sorted columns that are in use, own attributions, a tab before formulas, no sizes in pixels."""
    rows = rows_of(api.get("zip-download/metadata-file/", token=order(api)).body)
    ids = [row["isic_id"] for row in rows]
    assert ids == sorted(ids)
    columns = list(rows[0])
    assert columns[:3] == ["isic_id", "attribution", "copyright_license"]
    assert columns[3:] == sorted(columns[3:])
    assert "pixels_x" not in columns
    by_id = {row["isic_id"]: row for row in rows}
    two = demo.named["two-attributions"]
    assert by_id[two]["attribution"] == "Demo Contributor, on their own"
    assert api.get(f"images/{two}/").json["attribution"] == data.ATTRIBUTIONS[1]
    assert "\t=Demo & Söhne <dermatology>" in {row["attribution"] for row in rows}
    assert by_id[demo.named["unusual"]]["demo_note"] == 'a\ttab, a "quote" and\na line'


def test_the_csv_of_a_collection(site, api):
    """The website gives a collection's CSV; a private one's only to its owner."""
    got = api.ask("GET", "/collections/65/metadata/")
    assert got.headers["Content-Type"] == "text/csv"
    assert len(rows_of(got.body)) == 30
    path = f"/collections/{data.PRIVATE}/metadata/"
    assert api.ask("GET", path).status == 404
    assert len(rows_of(Api(site.url, OWNER).ask("GET", path).body)) == 6
    assert rows_of(api.ask("GET", f"/collections/{data.EMPTY}/metadata/").body) == []


def test_attributions(api, demo):
    """Whom to name: by the number of images, then by name; the anonymous last."""
    got = api.get("zip-download/attribution-file/", token=order(api))
    names = got.body.decode().split("\n\n")
    counts = Counter(image.credit for image in demo.archive.images if image.public)
    assert names[-1] == "Anonymous"
    assert set(names) == set(counts)
    assert [counts[name] for name in names[:-1]] == sorted((counts[name] for name in names[:-1]), reverse=True)


def test_licences(api):
    """Each licence has its text; others are not there."""
    for name in ("CC-0", "CC-BY", "CC-BY-NC"):
        got = api.get(f"zip-download/license-file/{name}/")
        assert (got.status, got.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert "creativecommons.org" in got.body.decode()
    assert api.get("zip-download/license-file/MIT/").status == 404


def test_the_zip(api, demo):
    """The zip has the images as they are, stored, and the texts; it takes no ranges."""
    token = order(api, collections=str(data.CLINIC))
    got = api.ask("GET", f"/zip/download?zsid={quote(token)}", Range="bytes=5-")
    assert (got.status, got.headers["Transfer-Encoding"]) == (200, "chunked")
    made = zipfile.ZipFile(io.BytesIO(got.body))
    assert made.testzip() is None
    wanted = {i.isic_id: i for i in demo.archive.images if i.public and data.CLINIC in i.collections}
    images = {name.partition(".")[0]: name for name in made.namelist() if name.startswith("ISIC_")}
    assert set(images) == set(wanted)
    for isic_id, name in images.items():
        assert made.read(name) == make_body(wanted[isic_id])
    assert {info.compress_type for info in made.infolist()} == {zipfile.ZIP_STORED}
    assert {"metadata.csv", "attribution.txt"} <= set(made.namelist())
    assert api.ask("GET", "/zip/download?zsid=x").status == 401


def test_streams_break(site, api):
    """A fault within a stream ends it where it says."""
    token = order(api)
    site.faults.set("isic/zip-download/metadata-file", Fault(kind="html", times=1))
    assert api.get("zip-download/metadata-file/", token=token).body.startswith(b"<!doctype")
    assert api.ask("HEAD", f"/api/v2/zip-download/metadata-file/?token={token}").status == 405


def test_the_listing_of_many():
    """A listing of 20,000 files is one answer, with each file once."""
    with IsicSite(make_generated(20_000)) as site:
        api = Api(site.url)
        files = api.get("zip-download/file-listing/", token=order(api)).json["files"]
        assert len({file["url"] for file in files}) == 20_000 + 5
