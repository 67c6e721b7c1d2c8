"""Lists of the demo ISIC Archive: pages, cursors, ties, searches, records, errors; our own client reads them all."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo import isic_data as data
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_data import IsicDemo, build_isic, make_generated
from pipeline.demo.isic_pages import Cursor, Ordering, cut_page, parse_cursor, render_cursor
from pipeline.demo.isic_query import BadQueryError, ColumnlessError, parse_query
from pipeline.sources.isic_client import IsicClient
from pipeline.sources.isic_token import BearerToken

OWNER = "demo-owner-token"


class Got:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers = answer.status, answer.headers
        self.body = answer.read()

    @property
    def json(self) -> dict:
        """The body as JSON."""
        return json.loads(self.body)


class Api:
    """A client of a site; every call has a connection of its own."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url, self.token = url, token

    def ask(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Got:
        """Ask for a URL, or a path of the site."""
        parts = urlsplit(url if url.startswith("http") else self.url + url)
        connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            given["Authorization"] = f"Bearer {self.token}"
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, body=body, headers=given)
            return Got(connection.getresponse())
        finally:
            connection.close()

    def get(self, name: str, /, **params: object) -> Got:
        """GET of an endpoint, `images/search/`."""
        return self.ask("GET", f"/api/v2/{name}" + (f"?{urlencode(params)}" if params else ""))

    def walk(self, name: str, /, **params: object) -> list[dict]:
        """All pages of a list."""
        page = self.get(name, **params).json
        pages = [page]
        while page["next"]:
            page = self.ask("GET", page["next"]).json
            pages.append(page)
        return pages

    def ids(self, name: str = "images/", /, **params: object) -> list[str]:
        """Ids of all rows of a list."""
        return [row.get("isic_id", row.get("id")) for page in self.walk(name, **params) for row in page["results"]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> IsicDemo:
    """The small demo data."""
    return build_isic(tmp_path_factory.mktemp("isic"))


@pytest.fixture
def site(demo: IsicDemo) -> Iterator[IsicSite]:
    """A site that serves them."""
    with IsicSite(demo.archive) as running:
        yield running


@pytest.fixture
def api(site: IsicSite) -> Api:
    """An anonymous client."""
    return Api(site.url)


def public(demo: IsicDemo) -> list[str]:
    """Ids of the public images, oldest first."""
    return [image.isic_id for image in demo.archive.images if image.public]


def test_an_image_has_the_documented_shape(api, demo):
    """An image has the keys of the API in their order, sizes that are true, and no null in its metadata."""
    record = api.get(f"images/{demo.named['large']}/").json
    assert list(record) == ["isic_id", "copyright_license", "attribution", "files", "metadata", "public"]
    assert record["copyright_license"] in {"CC-0", "CC-BY", "CC-BY-NC"}
    assert record["files"]["full"]["url"].endswith(f"/isic-archive/images/{demo.named['large']}.jpg")
    for file in record["files"].values():
        assert file["size"] == len(api.ask("GET", file["url"]).body)
    assert list(record["metadata"]) == ["acquisition", "clinical"]
    assert record["metadata"]["acquisition"]["pixels_x"] == 1024
    assert None not in record["metadata"]["clinical"].values()
    bare = api.get(f"images/{demo.named['bare']}/").json["metadata"]
    assert (sorted(bare["acquisition"]), bare["clinical"]) == (["pixels_x", "pixels_y"], {})
    unusual = api.get(f"images/{demo.named['unusual']}/").json["metadata"]["clinical"]
    assert "\n" in unusual["demo_note"]


def test_numbers_with_decimals_are_text(demo):
    """Millimetres come as text with two decimals, ages as whole multiples of 5 up to 85."""
    lengths = [value for i in demo.archive.images if (value := i.clinical.get("clin_size_long_diam_mm"))]
    assert lengths
    assert all(isinstance(value, str) and len(value.partition(".")[2]) == 2 for value in lengths)
    ages = {i.clinical.get("age_approx") for i in demo.archive.images} - {None}
    assert ages <= set(range(0, 90, 5))


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 8, 100])
def test_pages_follow_each_other(api, demo, limit):
    """Every page but the last is full; only the first has a count; the last has no next."""
    pages = api.walk("images/", limit=limit)
    assert [page["count"] for page in pages] == [56] + [None] * (len(pages) - 1)
    assert {len(page["results"]) for page in pages[:-1]} <= {limit}
    found = [row["isic_id"] for page in pages for row in page["results"]]
    assert len(set(found)) == len(found)
    tied = [demo.archive.images[place].isic_id for place in data.TIED]
    lost = set(public(demo)) - set(found)
    assert lost <= set(tied)
    assert bool(lost) == (limit in {1, 3, 6})  # a page ends among them


def test_ties_at_a_pages_edge_lose_rows(demo):
    """Ten rows of one time across the edge of a page: pages of 100 lose none, shorter ones lose some, silently."""
    with IsicSite(make_generated(205)) as site:
        assert len(Api(site.url).ids(limit=100)) == 205
        assert len(Api(site.url).ids(limit=7)) < 205
        assert len(Api(site.url).ids(limit=3)) < 205


def test_the_next_page_keeps_parameters(api):
    """The next URL has all parameters of the request, sorted, unknown ones too, and a readable cursor."""
    page = api.get("images/search/", sort="x", query="public:true", limit=5, benign_malignant="malignant").json
    query = page["next"].partition("?")[2]
    assert [part.partition("=")[0] for part in query.split("&")] == [
        "benign_malignant", "cursor", "limit", "query", "sort"
    ]  # fmt: skip
    assert page["next"].startswith("http://127.0.0.1:")
    cursor = parse_qs(base64.b64decode(parse_qs(query)["cursor"][0]).decode())
    assert cursor == {"p": ["2014-10-13 19:36:11.989000+00:00"]}


def test_unknown_parameters_are_ignored(api):
    """An offset of the former API gives the first page again."""
    assert api.get("images/", limit=3, offset=50).json["results"] == api.get("images/", limit=3).json["results"]


def test_the_previous_page(api):
    """The page before the second one has the rows of the first one."""
    first = api.get("images/", limit=5).json
    second = api.ask("GET", first["next"]).json
    assert first["previous"] is None
    assert api.ask("GET", second["previous"]).json["results"] == first["results"]


def test_a_cursor_begins_at_a_date(api, demo):
    """A made-up cursor lists what was published after a moment."""
    cursor = base64.b64encode(b"p=2014-11-18 00:00:00%2B00:00").decode()
    assert api.ids(cursor=cursor) == public(demo)[40:]


@pytest.mark.parametrize(
    ("limit", "length"), [("0", 56), ("1000", 56), ("-1", 0), ("7", 7), (" 7 ", 7), ("x", 422), ("", 422), ("1.5", 422)]
)
def test_limits(api, limit, length):
    """0 is 100, more than 100 is 100, less than none is none; what is no number is refused."""
    got = api.get("images/", limit=limit)
    if length == 422:
        assert (got.status, got.json["detail"][0]["loc"]) == (422, ["query", "limit"])
        assert got.json["detail"][0]["type"] == "int_parsing"
    else:
        assert len(got.json["results"]) == length


@pytest.mark.parametrize("cursor", ["x", "ä", "cD14", base64.b64encode(b"o=-1").decode(), "p=2020-01-01"])
def test_bad_cursors(api, cursor):
    """A cursor that is none is refused by 422."""
    got = api.get("images/", cursor=cursor)
    assert (got.status, got.json["detail"][0]["loc"]) == (422, ["query", "cursor"])
    assert got.json["detail"][0]["msg"] == "Value error, Invalid cursor."


ROW = Ordering(lambda row: row[0], lambda row: str(row[0]), int)


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=350), st.just(100))
def test_full_pages_lose_nothing(moments, limit):
    """With pages of 100 every row comes once, forward and backward, where no 100 rows share a time."""
    rows = [(moment, place) for place, moment in enumerate(sorted(moments))]
    if any(moments.count(moment) >= 100 for moment in set(moments)):
        return
    forward, cursor, last = [], Cursor(), None
    for _ in range(10):
        cut = cut_page(rows, ROW, cursor, limit)
        forward += cut.rows
        last = cut
        if cut.following is None:
            break
        cursor = parse_cursor(render_cursor(cut.following))
    assert forward == rows
    assert last.following is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sex:male", lambda f: f.get("sex") == "male"),
        ("-sex:male", lambda f: f.get("sex") != "male"),
        ("- sex : male", lambda f: f.get("sex") != "male"),
        ("diagnosis_1:Mal*", lambda f: f.get("diagnosis_1") == "Malignant"),
        ("diagnosis_1:*ign", lambda f: f.get("diagnosis_1") == "Benign"),
        ("diagnosis_3:*", lambda f: "diagnosis_3" in f),
        ("-diagnosis_3:*", lambda f: "diagnosis_3" not in f),
        ("sex:*al*", lambda _: False),  # ends with "al*": nothing does
        ("age_approx:[20 TO 50}", lambda f: 20 <= f.get("age_approx", -1) < 50),
        ("age_approx:{20 TO *]", lambda f: f.get("age_approx", -1) > 20),
        ("age_approx:*", lambda f: "age_approx" in f),
        ("clin_size_long_diam_mm:[0.5 TO 9.99]", lambda f: 0.5 <= float(f.get("clin_size_long_diam_mm", 99)) <= 9.99),
        ("melanocytic:true", lambda f: f.get("melanocytic") is True),
        ("image_type:clinical", lambda f: f.get("image_type") == "clinical: close-up"),
        ('image_type:"RCM: tile" OR image_type:"RCM: mosaic"', lambda f: str(f.get("image_type")).startswith("RCM")),
        ('mel_mitotic_index:"<1/mm^2"', lambda f: "mel_mitotic_index" in f),
        ("sex:male age_approx:*", lambda f: f.get("sex") == "male"),
        (
            "sex:male OR sex:female AND diagnosis_1:Benign",
            lambda f: f.get("sex") == "male" or (f.get("sex") == "female" and f.get("diagnosis_1") == "Benign"),
        ),
        (
            "(sex:male OR sex:female) AND diagnosis_1:Benign",
            lambda f: "sex" in f and f.get("diagnosis_1") == "Benign",
        ),
        ("copyright_license:CC-BY-NC", lambda f: f["copyright_license"] == "CC-BY-NC"),
        ("", lambda _: True),
    ],
)
def test_searches(api, demo, query, expected):
    """A query finds just the images that its words say."""
    wanted = [
        image.isic_id
        for image in demo.archive.images
        if image.public and expected({"copyright_license": image.licence, **image.acquisition, **image.clinical})
    ]
    assert api.ids("images/search/", query=query) == wanted
    assert api.get("images/search/", query=query, limit=1).json["count"] == len(wanted)


@pytest.mark.parametrize(
    "query",
    [
        "sex", "sex:", "sex:male and age_approx:50", "sex:'male'", "diagnosis:melanoma", "benign_malignant:benign",
        "anatom_site_general:torso", "acquisition_day:1", "attribution:x", "pixels_x:100", "age_approx:>50",
        "age_approx:fifty", "melanocytic:True", "NOT sex:male", "(sex:male", "sex:male)", "sex:[1 TO 2]", "AND",
        "sex:mäle", "(sex:male) age_approx:5", "()", "-(sex:male)", "Sex:male", "(" * 2000, "\x00",
    ],
)  # fmt: skip
def test_queries_that_cannot_be_read(api, query):
    """The site refuses them by 400 and its one sentence."""
    got = api.get("images/search/", query=query)
    assert (got.status, got.json) == (400, {"message": "Could not parse search query."})


@given(st.text(alphabet='sex:male()[]{}"*-_ ANDORTO015.', max_size=60))
def test_any_text_is_a_query_or_none(query):
    """Whatever the text, it is read, or refused in the one way."""
    try:
        judge = parse_query(query)
    except (BadQueryError, ColumnlessError):
        return
    assert judge({"sex": "male", "age_approx": 5}) in {True, False}


def test_the_two_engines_differ():
    """`*al*` finds nothing in lists but does in sizes; a negated suffix is a negated prefix in lists only."""
    row = {"sex": "male", "diagnosis_1": "Benign"}
    assert not parse_query("sex:*al*")(row)
    assert parse_query("sex:*al*", "search")(row)
    assert parse_query("-diagnosis_1:*ign")(row)
    assert not parse_query("-diagnosis_1:*ign", "search")(row)


def test_a_field_without_a_column_is_a_crash(api):
    """The parser knows `hairy`, the database does not: 500 and a page of HTML."""
    got = api.get("images/search/", query="hairy:true")
    assert (got.status, got.headers["Content-Type"]) == (500, "text/html; charset=utf-8")


def test_collections_filter(api, demo):
    """A union of collections, as a list or repeated; those that are unknown or private give nothing and no error."""

    def of(*numbers):
        return [i.isic_id for i in demo.archive.images if i.public and set(numbers) & set(i.collections)]

    both = of(data.CHALLENGE, data.CLINIC)
    assert len(both) < len(of(data.CHALLENGE)) + len(of(data.CLINIC))
    assert api.ids("images/search/", collections=f"{data.CHALLENGE},{data.CLINIC}") == both
    path = f"/api/v2/images/search/?collections={data.CHALLENGE}&collections={data.CLINIC}"
    assert [row["isic_id"] for row in api.ask("GET", path).json["results"]] == both
    for number in (data.PRIVATE, data.EMPTY, 999):
        assert api.get("images/search/", collections=number).json["count"] == 0
    assert api.get("images/search/", collections="").json["count"] == 56
    assert api.get("images/search/", collections="x").status == 422


def test_sizes_and_facets(api, demo):
    """The size is the sum of the sizes that the list states; facets count values of fields."""
    pages = api.walk("images/search/", query="sex:male")
    stated = sum(row["files"]["full"]["size"] for page in pages for row in page["results"])
    assert api.get("images/search/size/", query="sex:male").json == {"size": stated}
    buckets = api.get("images/facets/").json["sex"]["buckets"]
    counted = {bucket["key"]: bucket["doc_count"] for bucket in buckets}
    images = [image for image in demo.archive.images if image.public]
    assert counted == {sex: sum(i.clinical.get("sex") == sex for i in images) for sex in ("male", "female")}


def test_size_modes(demo):
    """Stated sizes are true, or too small by what was put into JPEGs, or not there."""
    large, png = demo.named["large"], demo.named["png"]
    sizes = {}
    for mode in ("exact", "ingest", "absent"):
        with IsicSite(demo.archive, sizes=mode) as site:
            api = Api(site.url)
            sizes[mode] = [api.get(f"images/{one}/").json["files"]["full"]["size"] for one in (large, png)]
            assert site.file_of(large).size == len(api.ask("GET", f"/isic-archive/images/{large}.jpg").body)
    assert sizes["absent"] == [None, None]
    assert [a - b for a, b in zip(sizes["exact"], sizes["ingest"], strict=True)] == [3032, 0]


def test_collections(api):
    """Collections come newest first, or by name; those that are private do not; there is no count of images."""
    found = api.get("collections/").json
    assert [one["id"] for one in found["results"]] == [data.EMPTY, data.TILES, data.CLINIC, data.DERMOSCOPY, 65]
    assert found["count"] == 5
    challenge = found["results"][-1]
    assert list(challenge) == ["doi", "doi_url", "id", "name", "description", "public", "pinned", "locked"]
    assert (challenge["doi_url"], challenge["locked"]) == ("https://doi.org/10.34970/100001", True)
    assert api.get("collections/65/").json == challenge
    assert api.ids("collections/", pinned="true", limit=1) == [data.DERMOSCOPY, data.CHALLENGE]
    names = [one["name"] for page in api.walk("collections/", sort="name", limit=2) for one in page["results"]]
    assert names == sorted(names)
    assert api.get("collections/", sort="size").status == 422
    assert api.get(f"collections/{data.PRIVATE}/").json == {"detail": "Not Found"}
    assert api.get("collections/autocomplete/", query="demo").json[0]["name"].startswith("Demo")
    counted = sum(row["count"] for row in api.get("collections/65/attribution/").json)
    assert counted == api.get("images/search/", collections=65, limit=1).json["count"]


def test_lesions(site, api, demo):
    """A lesion has its images, and is there only for who sees all of them."""
    found = api.walk("lesions/", limit=100)[0]["results"]
    assert found == sorted(found, key=lambda one: one["id"])
    one = found[1]
    assert list(one) == [
        "id", "images", "images_count", "longitudinally_monitored", "index_image_id", "outcome_diagnosis",
        "outcome_diagnosis_1",
    ]  # fmt: skip
    assert one["images_count"] == len(one["images"]) == 2
    assert one["longitudinally_monitored"] is True
    assert one["index_image_id"] in {image["isic_id"] for image in one["images"]}
    assert api.get(f"lesions/{one['id']}/").json == one
    assert "IL_7000099" not in {one["id"] for one in found}
    assert api.get("lesions/IL_7000099/").status == 404
    shown = Api(site.url, OWNER).get("lesions/IL_7000099/").json
    assert [image["public"] for image in shown["images"]] == [True, False]


def test_accounts(site, demo):
    """A token shows what is private to who owns it; a wrong token is nobody's, and only `users/me` says so."""
    owner, other, wrong = Api(site.url, OWNER), Api(site.url, "demo-other-token"), Api(site.url, "gone")
    assert owner.get("users/me/").json["full_name"] == "Olive Owner"
    assert list(owner.get("users/me/").json) == [
        "id", "email", "first_name", "last_name", "created", "accepted_terms", "hash_id", "full_name"
    ]  # fmt: skip
    assert (wrong.get("users/me/").status, wrong.get("users/me/").json) == (401, {"detail": "Unauthorized"})
    assert [len(api.ids()) for api in (owner, other, wrong)] == [60, 56, 56]
    assert owner.get("images/search/", collections=data.PRIVATE).json["count"] == 6
    assert wrong.get(f"images/{demo.named['private']}/").status == 404
    assert owner.get("studies/").status == 401
    staff = Api(site.url, "demo-staff-token")
    assert staff.get("studies/").json["results"][0] == staff.get("studies/1/").json
    assert staff.get("annotations/9/").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/v2/images/ISIC_9999999/", 404, b'{"detail":"Not Found"}'),
        ("GET", "/api/v2/images/x/", 404, b'{"detail":"Not Found"}'),
        ("GET", "/api/v2/collections/999/", 404, b'{"detail":"Not Found"}'),
        ("HEAD", "/api/v2/images/", 405, b""),
        ("POST", "/api/v2/images/", 405, b"Method not allowed"),
        ("DELETE", "/api/v2/stats/", 405, b"Method not allowed"),
    ],
)
def test_errors(api, method, path, status, body):
    """What is not there, and what is asked in the wrong way."""
    got = api.ask(method, path)
    assert (got.status, got.body) == (status, body)


def test_paths_without_a_slash_are_redirected(api):
    """A path without its slash is sent on, query and all; one that there is not is a page of HTML."""
    got = api.ask("GET", "/api/v2/images?limit=1")
    assert (got.status, got.headers["Location"]) == (301, "/api/v2/images/?limit=1")
    got = api.ask("GET", "/api/v1/image")
    assert (got.status, got.body[:15]) == (404, b"<!doctype html>")


def test_answers_are_zipped_on_request(api):
    """The answer is gzip for who takes it, and the same JSON."""
    got = api.ask("GET", "/api/v2/images/", Accept_Encoding="gzip")
    assert got.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(got.body) == api.ask("GET", "/api/v2/images/").body
    assert got.headers["Access-Control-Allow-Origin"] == "*"


def test_the_list_grows(site, demo):
    """Images that are published while somebody lists come at the end."""
    api = Api(site.url)
    site.published = 30
    first = api.get("images/", limit=20).json
    site.published = 40
    rest = api.ask("GET", first["next"]).json["results"]
    assert (first["count"], len(rest)) == (30, 20)
    site.withdraw(demo.archive.images[0].isic_id)
    assert api.get("images/").json["count"] == 39


def test_our_client_reads_everything(site, demo):
    """The planner's client lists, counts and searches all that the archive has, private images too."""
    with IsicClient(site.api_url, token=BearerToken(OWNER)) as isic:
        images = {image.isic_id: image for image in isic.images()}
        assert set(images) == {image.isic_id for image in demo.archive.images}
        assert isic.me().full_name == "Olive Owner"
        assert images[demo.named["private"]].full.signed
        assert images[demo.named["png"]].full.extension == ".png"
        assert isic.count("sex:male", [65]) == len(list(isic.images("sex:male", [65])))
        assert isic.size() > 2_000_000
        assert isic.facets()["diagnosis_1"]
        assert isic.collections()[0].id == data.EMPTY
        assert len(list(isic.lesions())) == len(demo.archive.images) // 6 + 1
        assert isic.stats()["image.images_count"] == 60
        assert "CC-BY" in isic.licence("CC-BY")
        assert isic.image("ISIC_9999999") is None


def test_a_list_of_half_a_million(tmp_path: Path):
    """The largest scale is built and listed at once, from any place, in its order."""
    demo = build_isic(tmp_path, "listing")
    with IsicSite(demo.archive) as site:
        api = Api(site.url)
        first = api.get("images/").json
        assert first["count"] == 500_000
        assert api.ask("GET", first["next"]).json["count"] is None
        last = demo.archive.images[-1]
        cursor = base64.b64encode(b"p=" + str(demo.archive.images[-51].created).replace("+", "%2B").encode()).decode()
        page = api.get("images/", cursor=cursor).json
        assert (len(page["results"]), page["results"][-1]["isic_id"], page["next"]) == (50, last.isic_id, None)
        assert api.get(f"images/{last.isic_id}/").json == page["results"][-1]
