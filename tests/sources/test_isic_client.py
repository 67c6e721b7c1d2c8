"""The ISIC client: what it can ask, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError, UsageError
from pipeline.sources.isic_client import BASE_URL, IsicClient
from pipeline.sources.isic_dsl import plan_selection
from pipeline.sources.isic_token import BearerToken
from tests.sources.isic_archive import (  # noqa: F401 -- the fixture
    API,
    NOT_FOUND,
    UNAUTHORIZED,
    Archive,
    _archive,
    client,
    ids,
    image,
    image_rows,
    page,
    said,
)
from tests.sources.test_tcia_http import (  # noqa: F401 -- the fixture
    Asked,
    Handler,
    Step,
    Waits,
    _site,
    answer,
    cut,
    kept,
    reset,
)


def test_conditions_select(archive: Archive) -> None:
    """The site searches as far as it can, the rest is decided here; notes are warnings."""
    archive.rows = image_rows(6)
    for number, (_, record) in enumerate(archive.rows):
        record["metadata"]["clinical"]["diagnosis_1"] = "Malignant" if number % 2 else "Benign"
        record["metadata"]["acquisition"]["pixels_x"] = 100 * number
    archive.queries["diagnosis_1:Malignant"] = lambda each: each["metadata"]["clinical"]["diagnosis_1"] == "Malignant"
    conditions = [["meta.clinical.benign_malignant", "==", "malignant"], ["meta.acquisition.pixelsX", ">", 100]]
    with client(archive) as isic:
        found = [each.isic_id for each in isic.select(conditions)]
        assert found == [each.isic_id for each in isic.select(plan_selection(conditions))]
    assert found == ["ISIC_0000004", "ISIC_0000006"]


def test_one_image(archive: Archive) -> None:
    """An image as it is now, or None for 404; another path's 404 is no such answer."""
    archive.site.on(f"{API}images/ISIC_0000001/", said(200, image(1)), said(200, image(1, sex="female")), NOT_FOUND)
    with client(archive) as isic:
        first, second, third = (isic.image("ISIC_0000001") for _ in range(3))
        assert first
        assert second
        assert first.metadata["metadata.clinical.sex"] == "male"
        assert second.metadata["metadata.clinical.sex"] == "female"
        assert third is None
        with pytest.raises(SiteUnavailableError, match="no such path"):
            isic.image("ISIC_0000002")  # a web server's own page
        for bad in ("", "ISIC_1", "../users/me", "ISIC_0000001/similar", "ISIC_\u0660000001"):
            with pytest.raises(UsageError):
                isic.image(bad)


def test_collections(archive: Archive) -> None:
    """All collections, one of them, and one that there is not: an error instead of no images."""
    for number in range(1, 131):
        archive.add_collection(number, [])
    archive.site.on(f"{API}collections/999/", NOT_FOUND)
    with client(archive) as isic:
        found = isic.collections()
        assert [each.id for each in found] == list(range(130, 0, -1))
        asked = len(archive.site.asked)
        assert len(isic.collections()) == 130
        assert len(archive.site.asked) == asked
        assert isic.collection(5).name == "C5"
        for call in (isic.count, isic.size, isic.facets, isic.image_pages):
            with pytest.raises(ConfigError, match="999"):
                call(collections=[5, 999])
        for bad in ("5", ["5"], [0], [True], 5):
            with pytest.raises(UsageError):
                isic.images(collections=bad).__next__()  # type: ignore[arg-type]
        isic.collections(pinned=True, sort="name")
    last = [each for each in archive.site.asked if each.path == f"{API}collections/"][-3]
    assert last.params == {"pinned": "true", "sort": "name", "limit": "100"}


def test_values_of_a_selection(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """`select` refuses a value that no image has, and warns where the site does not list them all."""
    archive.rows = image_rows(3)
    queries = ("anatom_site_2:Nail AND patient_id:IP_1", "anatom_site_2:nail")
    archive.queries = dict.fromkeys(queries, lambda _: False)
    site = {"Head, neck": 5, "Nail": 1}
    facet = {"buckets": [{"key": key, "doc_count": count} for key, count in site.items()]}
    archive.site.on(f"{API}images/facets/", said(200, {"anatom_site_2": facet}))
    with client(archive, refresh=True) as isic:
        found = isic.facets()["anatom_site_2"]
        assert (found, found.others) == (site, 0)
        for operator, value in (("==", "nail"), ("!=", "nail"), ("in", ["Nail", "nail"]), ("not in", ["nail"])):
            with pytest.raises(ConfigError, match="anatom_site_2 is never 'nail'") as caught:
                list(isic.select([["anatom_site_2", operator, value]]))
            assert "did you mean Nail" in caught.value.hint
        assert list(isic.select([["anatom_site_2", "in", ["Nail"]], ["patient_id", "==", "IP_1"]])) == []
    assert "anatom_site_2" not in caplog.text
    archive.site.on(f"{API}images/facets/", said(200, {"anatom_site_2": facet | {"sum_other_doc_count": 7}}))
    with client(archive, refresh=True) as isic:
        assert isic.facets()["anatom_site_2"].others == 7
        assert list(isic.select([["anatom_site_2", "==", "nail"]])) == []
    assert "most frequent values only, and 'nail' is none of them (did you mean 'Nail'" in caplog.text


def test_counts_and_facets(archive: Archive) -> None:
    """Sizes, counts, statistics, facets, licences, lesions."""
    archive.rows = image_rows(150)
    buckets = {"buckets": [{"key": "male", "doc_count": 3}], "sum_other_doc_count": 0}
    ranged = {"buckets": {"0.0-0.5": {"from": 0.0, "doc_count": 2}}}
    lesion = {"id": "IL_0000001", "images": [image(1)], "images_count": 1, "longitudinally_monitored": False}
    steps: dict[str, Step] = {
        "images/search/size/": said(200, {"size": 12345}),
        "images/facets/": said(200, {"sex": buckets, "mel_thick_mm": ranged, "other": {"value": 1}}),
        "stats/": said(200, {"image": {"public_images_count": 3}, "doi": {"dois_count": 1}, "x": None}),
        "zip-download/license-file/CC-0/": answer(200, b"CC0 1.0 Universal", Content_Type="text/plain"),
        "lesions/": said(200, {"results": [lesion], "count": 1, "next": None, "previous": None}),
        "lesions/IL_0000001/": said(200, {**lesion, "index_image_id": "ISIC_0000001"}),
        "lesions/IL_0000002/": NOT_FOUND,
    }
    for path, step in steps.items():
        archive.site.on(API + path, step)
    with client(archive) as isic:
        assert isic.count() == 150
        assert isic.size() == 12345
        assert isic.facets() == {"sex": {"male": 3}, "mel_thick_mm": {"0.0-0.5": 2}}
        assert isic.stats() == {"image.public_images_count": 3, "doi.dois_count": 1}
        assert isic.licence("CC-0") == "CC0 1.0 Universal"
        (found,) = isic.lesions()
        assert found.images[0].isic_id == "ISIC_0000001"
        one = isic.lesion("IL_0000001")
        assert one
        assert one.index_image_id == "ISIC_0000001"
        assert isic.lesion("IL_0000002") is None
        with pytest.raises(UsageError):
            isic.lesion("../x")
        with pytest.raises(UsageError):
            isic.licence("GPL")  # type: ignore[arg-type]


def test_a_bad_query_is_explained(archive: Archive) -> None:
    """The site's short word comes with what is probably wrong: exit code 78, asked once."""
    with client(archive) as isic, pytest.raises(ConfigError, match="Could not parse search query") as caught:
        ids(isic, query="diagnosis:melanoma and sex:male")
    assert caught.value.exit_code == 78
    assert "removed in May 2025" in caught.value.hint
    assert "capital letters" in caught.value.hint
    assert len(archive.site.asked) == 1


def test_a_query_that_finds_nothing_is_reviewed(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """A value in the wrong case finds nothing without a word from the site; here it is said."""
    archive.queries["sex:Male"] = lambda _: False
    with client(archive) as isic:
        assert isic.count("sex:Male") == 0
        assert "male; female" in caplog.text
        caplog.clear()
        assert ids(isic, query="sex:Male") == []
    assert "male; female" in caplog.text


def test_a_refused_parameter(archive: Archive) -> None:
    """422 says which parameter."""
    detail = [{"type": "value_error", "loc": ["query", "cursor"], "msg": "Value error, Invalid cursor."}]
    archive.site.on(f"{API}images/", said(422, {"detail": detail}))
    with client(archive) as isic, pytest.raises(ConfigError, match=r"query\.cursor: Value error") as caught:
        ids(isic)
    assert "from the beginning" in caught.value.hint


FAULTS: dict[str, Step] = {
    "429": answer(429, b"", Retry_After="3"),
    "500": answer(500, b"<html>Server Error (500)</html>"),
    "503": answer(503),
    "reset": reset,
    "short": cut(b'{"results": [', chunked=False),
    "HTML": answer(200, b"<html>Please wait</html>", Content_Type="text/html"),
    "cut JSON": answer(200, b'{"results": [{"isic_id":'),
    "empty": answer(200),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_may_pass_is_asked_again(archive: Archive, tmp_path: Path, fault: Step) -> None:
    """One bad answer in the middle of a list costs one request; always bad, it is an error that names the path."""
    archive.rows = image_rows(150)
    calls = 0

    def sometimes(handler: Handler, asked: Asked) -> None:
        nonlocal calls
        calls += 1
        (fault if calls == 2 else archive.list_images)(handler, asked)

    archive.site.on(f"{API}images/", sometimes)
    waits = Waits()
    with client(archive, runtime=waits.runtime) as isic:
        assert len(ids(isic)) == 150
    assert len(waits.seconds) == 1
    assert waits.seconds[0] >= (3 if fault is FAULTS["429"] else 0)
    archive.site.on(f"{API}stats/", fault)
    stored = len(kept(tmp_path))
    with client(archive) as isic, pytest.raises(SiteUnavailableError, match="/api/v2/stats/"):
        isic.stats()
    assert len(kept(tmp_path)) == stored


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"{}", b"7", b'{"results": {}}', b'{"results": [7]}', b'{"results": [{"isic_id": 5}]}'),
        *(b'{"results": [], "count": -1}', b'{"results": [], "next": "http://x/?a"}', b'{"results": [], "next": 5}'),
        *(b'{"results": [], "count": true}', b'{"results":[{"isic_id":"../../etc"}]}', b"[" * 100_000),
    ],
)
def test_a_wrong_shape(archive: Archive, tmp_path: Path, body: bytes) -> None:
    """JSON that is no page of images is an error that names the path, and is not kept."""
    archive.site.on(f"{API}images/", answer(200, body))
    with client(archive) as isic, pytest.raises(SiteUnavailableError, match="/api/v2/images/"):
        ids(isic)
    assert kept(tmp_path) == []


def test_compressed_answers_and_redirections(archive: Archive) -> None:
    """Compressed JSON is read; a path that has moved is followed, to a log-in page it is an error."""
    body = gzip.compress(json.dumps({"image": {"n": 5}}).encode())
    archive.site.on("/other/stats/", answer(200, body, Content_Encoding="gzip"))
    archive.site.on(f"{API}stats/", answer(301, Location=f"{archive.site.origin}/other/stats/"))
    with client(archive) as isic:
        assert isic.stats() == {"image.n": 5}
    archive.site.on(f"{API}stats/", answer(302, Location="/login/"))
    archive.site.on("/login/", answer(200, b"<html>Log in</html>"))
    with client(archive, refresh=True) as isic, pytest.raises(SiteUnavailableError, match="redirection to /login/"):
        isic.stats()
    archive.site.on(f"{API}images/", answer(302, Location=f"{API}images/ISIC_0000001/"))
    archive.site.on(f"{API}images/ISIC_0000001/", said(200, image(1)))
    with client(archive) as isic, pytest.raises(SiteUnavailableError, match="something else"):
        ids(isic)
    archive.site.on(f"{API}users/me/", answer(302, Location=f"{API}images/ISIC_0000001/"))
    with (
        client(archive, token=BearerToken("x")) as isic,
        pytest.raises(SiteUnavailableError, match="something else"),
    ):
        isic.me()


def test_base_urls() -> None:
    """A host alone gets the path of the API; others are taken as they are."""
    assert repr(IsicClient(BASE_URL)) == "IsicClient('https://api.isic-archive.com/api/v2')"
    assert repr(IsicClient("http://127.0.0.1:80")) == "IsicClient('http://127.0.0.1:80/api/v2')"
    assert repr(IsicClient("http://127.0.0.1:80/x/v2/")) == "IsicClient('http://127.0.0.1:80/x/v2')"
    for bad in ("", "ftp://x", "https://a:b@x/", "https://x/?a=1", "https://x:99999/"):
        with pytest.raises(ConfigError):
            IsicClient(bad)


def test_unauthorized_is_what_the_site_says(archive: Archive) -> None:
    """A private site answers nobody: an error about accounts, not about images."""
    archive.site.on(f"{API}images/", UNAUTHORIZED)
    with client(archive) as isic, pytest.raises(CredentialsError):
        ids(isic)
