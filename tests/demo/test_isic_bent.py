"""Each fault of the demo ISIC Archive does on the wire what its name says."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator

import pytest
from test_isic_lists import OWNER, Api

from pipeline.demo.faults import Fault
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_bodies import make_body
from pipeline.demo.isic_data import IsicDemo, build_isic
from pipeline.demo.isic_faults import API_FAULTS, FILE_FAULTS, ISIC_PASSING_KINDS
from pipeline.errors import SiteUnavailableError
from pipeline.sources.isic_client import IsicClient
from pipeline.transport.retry import Policy, Runtime


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


@pytest.fixture
def file(demo: IsicDemo) -> str:
    """The path of a file."""
    return f"/isic-archive/images/{demo.named['large']}.jpg"


@pytest.fixture
def body(demo: IsicDemo) -> bytes:
    """Its bytes."""
    return make_body(demo.archive.image(demo.named["large"]))


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("error-400", 400, b'{"message":"Could not parse search query."}'),
        ("error-401", 401, b'{"detail":"Unauthorized"}'),
        ("error-429", 429, b"<!doctype html>"),
        ("error-500", 500, b"<!doctype html>"),
        ("error-502", 502, b"<!doctype html>"),
        ("error-503", 503, b"<!doctype html>"),
        ("error-504", 504, b"<!doctype html>"),
        ("forbidden", 403, b"<!doctype html>"),
        ("vanish", 404, b'{"detail":"Not Found"}'),
        ("html", 200, b"<!doctype html>"),
        ("empty", 200, b""),
    ],
)
def test_refusals(site, api, kind, status, text):
    """A refusal has its status and words on the endpoint that it is set for, as often as it says, and nowhere else."""
    site.faults.set("isic/images/search", Fault(kind=kind, times=1))
    assert api.get("images/").status == 200
    got = api.get("images/search/")
    assert (got.status, got.body[: len(text)] if text else got.body) == (status, text)
    assert api.get("images/search/").status == 200


@pytest.mark.parametrize(("kind", "status"), [("error-429", 429), ("slow-down", 503)])
def test_retry_after(site, api, file, kind, status):
    """Both have a Retry-After where seconds are given, of the API and of files."""
    for seconds, header in ((0, None), (7, "7")):
        site.faults.set("*", Fault(kind=kind, seconds=seconds))
        for got in (api.get("stats/"), api.ask("GET", file)):
            assert (got.status, got.headers["Retry-After"]) == (status, header)


def test_hangups(site, api, file):
    """No answer at all, of the API and of files."""
    site.faults.set("*", Fault(kind="hangup"))
    for ask in (lambda: api.get("images/"), lambda: api.ask("GET", file)):
        with pytest.raises(http.client.RemoteDisconnected):
            ask()


def test_lists_end_early(site, api):
    """A page that is cut is one whose length was promised."""
    site.faults.set("isic/images", Fault(kind="truncate"))
    with pytest.raises(http.client.IncompleteRead):
        api.get("images/")


def test_lists_mislead(site, api, demo):
    """Rows are missing or come twice, counts are wrong, pages go in a circle."""
    right = api.get("images/", limit=5).json
    ids = [row["isic_id"] for row in right["results"]]

    def bent(kind, **options):
        site.faults.clear()
        site.faults.set("isic/images", Fault(kind=kind, **options))
        return api.get("images/", limit=5).json

    assert [row["isic_id"] for row in bent("hide-rows", names=(ids[1],))["results"]] == [ids[0], *ids[2:]]
    assert [row["isic_id"] for row in bent("duplicate-rows")["results"]] == [*ids, ids[0]]
    assert bent("wrong-count")["count"] == right["count"] + 1
    assert bent("next-loop")["next"] == f"{site.url}/api/v2/images/?limit=5"


def test_records_mislead(site, api, demo):
    """The size of one image is wrong or missing; other keys go on demand."""
    large = demo.named["large"]
    right = api.get(f"images/{large}/").json
    site.faults.set(f"isic/record/{large}", Fault(kind="wrong-size"))
    assert api.get(f"images/{large}/").json["files"]["full"]["size"] == 2 * right["files"]["full"]["size"] + 1
    site.faults.clear()
    site.faults.set(f"isic/record/{large}", Fault(kind="drop-keys"))
    listed = {row["isic_id"]: row for row in api.get("images/").json["results"]}
    assert "size" not in listed[large]["files"]["full"]
    assert "size" in listed[demo.named["png"]]["files"]["full"]
    site.faults.clear()
    site.faults.set("isic/record/*", Fault(kind="drop-keys", names=("metadata.clinical", "files.full.url")))
    assert set(api.get(f"images/{large}/").json["metadata"]) == {"acquisition"}


def test_silent_anonymity(site):
    """A good token stops to count in the middle of a list, and only `users/me` would say so."""
    api = Api(site.url, OWNER)
    site.faults.set("isic/images", Fault(kind="anonymous"))
    assert api.get("users/me/").status == 200
    assert len(api.ids("images/")) == 56
    site.faults.set("isic/*", Fault(kind="anonymous"))
    assert api.get("users/me/").status == 401
    site.faults.clear()
    site.tokens.clear()
    assert (api.get("users/me/").status, len(api.ids("images/"))) == (401, 56)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("error-429", 429), ("error-500", 500), ("error-502", 502), ("error-503", 503), ("error-504", 504),
        ("forbidden", 403), ("expired", 403), ("vanish", 404), ("html", 200),
    ],
)  # fmt: skip
def test_refused_files(site, api, demo, file, kind, status, body):
    """A file is refused while the API lists it as ever; other files come."""
    site.faults.set(f"images/{demo.named['large']}.jpg", Fault(kind=kind))
    got = api.ask("GET", file)
    assert (got.status, got.body != body) == (status, True)
    assert api.ask("HEAD", file).status == status
    assert demo.named["large"] in api.ids()
    assert api.ask("GET", f"/isic-archive/thumbnails/{demo.named['large']}_thumbnail.jpg").status == 200


def test_bodies_of_another_length(site, api, file, body):
    """`short` and `long` have a Content-Length that agrees with what they send, `truncate` one that does not."""
    site.faults.set("images/*", Fault(kind="short", at=0.5))
    assert api.ask("GET", file).body == body[: len(body) // 2]
    site.faults.clear()
    site.faults.set("images/*", Fault(kind="long"))
    assert api.ask("GET", file).body == body + bytes(1000)
    site.faults.clear()
    site.faults.set("images/*", Fault(kind="truncate", at=0.5))
    with pytest.raises(http.client.IncompleteRead) as caught:
        api.ask("GET", file)
    assert caught.value.partial == body[: len(body) // 2]


def test_bodies_of_the_same_length(site, api, demo, file, body):
    """`flip` changes a bit; `swap` sends another image's file, whole and sound, with its own ETag."""
    site.faults.set("images/*", Fault(kind="flip"))
    assert sum(a != b for a, b in zip(api.ask("GET", file).body, body, strict=True)) == 1
    site.faults.clear()
    other = demo.archive.image(demo.named["tile"])
    site.faults.set("images/*", Fault(kind="swap", names=(other.isic_id,)))
    got = api.ask("GET", file)
    assert got.body == make_body(other)
    assert got.headers["ETag"] == f'"{hashlib.md5(got.body).hexdigest()}"'
    site.faults.set("images/*", Fault(kind="swap"))
    assert api.ask("GET", file).body not in {body, make_body(other)}


def test_a_file_changes_while_somebody_resumes(site, api, file, body):
    """After a cut the file is another: If-Range gets it whole, who does without gets the rest of the new one."""
    site.faults.set("images/*", Fault(kind="truncate", at=0.5, times=1))
    site.faults.set("images/*", Fault(kind="revised"))
    with pytest.raises(http.client.IncompleteRead) as caught:
        api.ask("GET", file)
    had = len(caught.value.partial)
    etag = f'"{hashlib.md5(body).hexdigest()}"'
    careless = api.ask("GET", file, Range=f"bytes={had}-")
    assert (careless.status, careless.headers["ETag"] != etag) == (206, True)
    careful = api.ask("GET", file, Range=f"bytes={had}-", If_Range=etag)
    assert (careful.status, careful.body != body, len(careful.body)) == (200, True, len(body))


def test_files_without_ranges_types_or_right_etags(site, api, file, body):
    """`ignore-range`, `octet-stream` and `etag-get` do what they say and leave the bytes alone."""
    site.faults.set("images/*", Fault(kind="ignore-range"))
    assert (api.ask("GET", file, Range="bytes=9-").status, api.ask("GET", file, Range="bytes=9-").body) == (200, body)
    site.faults.clear()
    site.faults.set("images/*", Fault(kind="octet-stream"))
    got = api.ask("GET", file)
    assert (got.headers["Content-Type"], got.headers["Content-Disposition"]) == ("binary/octet-stream", None)
    site.faults.clear()
    site.faults.set("images/*", Fault(kind="etag-get"))
    got = api.ask("GET", file)
    assert (got.body, got.headers["ETag"] != f'"{hashlib.md5(body).hexdigest()}"') == (body, True)


def test_signed_files_fail_by_name(site, demo):
    """A signed URL's faults are set by its image."""
    url = Api(site.url, OWNER).get(f"images/{demo.named['private']}/").json["files"]["full"]["url"]
    site.faults.set(f"content/{demo.named['private']}.jpg", Fault(kind="expired", times=1))
    assert [Api(site.url).ask("GET", url).status for _ in range(2)] == [403, 200]


def test_sprinkled_faults_pass(site, demo, body):
    """Under a sprinkle of what passes, who asks twice gets every file right."""
    site.faults.sprinkle(1.0, seed=5, kinds=ISIC_PASSING_KINDS)
    for image in demo.archive.images[:30]:
        for _ in range(2):
            try:
                got = Api(site.url).ask("GET", f"/isic-archive/{image.key}")
            except (http.client.HTTPException, ConnectionError):
                continue
        assert (got.status, got.body) == (200, make_body(image))
    assert len(site.faults.struck) > 5
    assert set(ISIC_PASSING_KINDS) <= API_FAULTS | FILE_FAULTS


def test_our_client_notices(site):
    """The planner's client gets over what passes, and does not take a list with holes for a whole one."""
    waits = Runtime(wait=lambda _, __: False)
    with IsicClient(site.api_url, runtime=waits, policy=Policy(attempts=4, deadline=60.0)) as isic:
        site.faults.set("isic/images", Fault(kind="error-503", times=2))
        site.faults.set("isic/images", Fault(kind="truncate", times=1))
        assert len(list(isic.images())) == 56
        site.faults.clear()
        names = (site.archive.images[3].isic_id,)
        site.faults.set("isic/images/search", Fault(kind="hide-rows", names=names))
        with pytest.raises(SiteUnavailableError):
            list(isic.images("public:true"))
