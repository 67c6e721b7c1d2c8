"""Each fault of the demo NBIA does on the wire what its name says, to whom it is meant for, and as often."""

from __future__ import annotations

import hashlib
import http.client
import io
import socket
import time
import zipfile
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from test_nbia_client import GUEST, SERVICES, Api

from pipeline.demo.faults import Fault, FaultPlan, NbiaKind, Rule
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.demo.nbia_faults import ANY_FAULTS, LIST_FAULTS, NBIA_PASSING_KINDS, ZIP_FAULTS
from pipeline.demo.nbia_records import NbiaSeries

ALL = {"NewFileNames": "Yes", "IncludeMD5": "Yes"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


@pytest.fixture
def api(site: NbiaSite) -> Api:
    """A client of it."""
    return Api(site.url)


@pytest.fixture
def one(demo: NbiaDemo) -> NbiaSeries:
    """A series of eleven files."""
    return demo.archive.find(demo.named["no-instance-numbers"])


def members(body: bytes) -> dict[str, bytes]:
    """The members of a zip, whose CRCs all agree."""
    opened = zipfile.ZipFile(io.BytesIO(body))
    return {name: opened.read(name) for name in opened.namelist()}


def rows_of(listing: bytes) -> dict[str, str]:
    """The rows of md5hashes.csv."""
    return dict(line.split(",") for line in listing.decode().splitlines()[1:])


def md5s(found: dict[str, bytes]) -> dict[str, str]:
    """The true MD5s of the files of a zip."""
    return {name: hashlib.md5(data).hexdigest() for name, data in found.items() if name.endswith(".dcm")}


def fetch_bent(site: NbiaSite, one: NbiaSeries, **fault: object) -> dict[str, bytes]:
    """The members of a series' zip under a fault, asked of v4 getImage with all options."""
    site.faults.clear()
    site.faults.set(f"nbia/v4/getImage/{one.uid}", Fault(**fault))
    got = Api(site.url).get("v4/getImage", SeriesInstanceUID=one.uid, **ALL)
    assert got.status == 200
    return members(got.body)


def test_all_kinds_are_known():
    """Every kind of fault of NBIA is of exactly one sort, and clients get over known ones."""
    assert set(get_args(NbiaKind)) <= ANY_FAULTS | LIST_FAULTS | ZIP_FAULTS
    assert not ANY_FAULTS & LIST_FAULTS | LIST_FAULTS & ZIP_FAULTS | ANY_FAULTS & ZIP_FAULTS
    assert set(NBIA_PASSING_KINDS) <= ANY_FAULTS | ZIP_FAULTS


@pytest.mark.parametrize(
    ("kind", "status", "type_", "word"),
    [
        ("error-401", 401, "application/json", b""),
        ("error-429", 429, "text/html", b"429 Too Many Requests"),
        ("error-500", 500, "text/plain", b"Server was not able to process your request\n"),
        ("error-502", 502, "text/html", b"502 Bad Gateway"),
        ("error-503", 503, "text/html", b"503 Service Unavailable"),
        ("error-504", 504, "text/html", b"504 Gateway Timeout"),
        ("slow-down", 503, "text/html", b"503"),
        ("forbidden", 403, "text/html", b"403 Forbidden"),
        ("html", 200, "text/html", b"sign in"),
    ],
)
def test_refusals(site, api, one, kind, status, type_, word):
    """A refusal has its status, type and words on images, lists, POSTs and tokens; who is not meant is served."""
    site.faults.set("nbia/*", Fault(kind=kind, seconds=7))
    answers = [
        api.get("v1/getImage", SeriesInstanceUID=one.uid),
        api.get("v4/getSeries", Collection=ONLY_NBIA),
        api.post("v4/getSeriesMetadata", list=one.uid),
        api.ask("POST", "/nbia-api/oauth/token", GUEST),
    ]
    for got in answers:
        assert (got.status, got.type) == (status, type_)
        assert word in got.body
        assert (got.headers["Retry-After"] == "7") is (status in {403, 429, 502, 503, 504})
    site.faults.clear()
    site.faults.set("nbia/v1/getImage/9.9", Fault(kind=kind))
    assert members(api.get("v1/getImage", SeriesInstanceUID=one.uid).body)
    assert site.faults.struck[kind] == 4


def test_400_is_in_the_words_of_the_version(site, api, one):
    """A listed series that has been withdrawn is refused as one that never was."""
    site.faults.set(f"nbia/*/getImage*/{one.uid}", Fault(kind="error-400"))
    for version in ("v1", "v4"):
        got = api.get(f"{version}/getImage", SeriesInstanceUID=one.uid)
        other = api.get(f"{version}/getImage", SeriesInstanceUID="9.9")
        assert (got.status, got.body) == (400, other.body.replace(b"9.9", one.uid.encode()))
    assert one.uid in str(api.get("v4/getSeries", Collection=ONLY_NBIA).rows)


def test_times_and_probability(site, api):
    """A fault strikes so many times, or by chance that its seed decides, for each subject apart."""
    site.faults.set("nbia/v4/getSeries/*", Fault(kind="error-502", times=2))
    statuses = [api.get("v4/getSeries", Collection=ONLY_NBIA).status for _ in range(3)]
    assert statuses == [502, 502, 200]
    assert api.get("v4/getSeries", Collection=NAMES["demo_nc"]).status == 502
    site.faults.clear()
    site.faults.set("nbia/*", Fault(kind="error-429", probability=0.5, seed=4))
    statuses = [api.get("v4/getCollectionValues").status for _ in range(40)]
    assert 8 < statuses.count(429) < 32


def test_empty(site, api, one):
    """`empty` is status 200 and nothing, on lists and on images alike."""
    site.faults.set("nbia/*", Fault(kind="empty"))
    for got in (api.get("v4/getSeries"), api.get("v4/getImage", SeriesInstanceUID=one.uid)):
        assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")


def series_rows(api: Api) -> list[dict[str, object]]:
    """The rows of the collection that only NBIA has."""
    return api.get("v4/getSeries", Collection=ONLY_NBIA).rows


def test_faults_of_lists(site, api, one):
    """Each fault of lists changes what its name says, and nothing else."""
    true = series_rows(api)

    def bend(**fault: object) -> object:
        site.faults.clear()
        site.faults.set("nbia/v4/getSeries/*", Fault(**fault))
        return series_rows(api)

    assert bend(kind="blank-rows") == [{}]
    assert bend(kind="single-object") == true[0]
    assert bend(kind="duplicate-rows") == [row for row in true for _ in range(2)]
    assert bend(kind="hide-rows", at=0.5) == true[:3]
    assert bend(kind="hide-rows", names=(one.uid,)) == [row for row in true if row["SeriesInstanceUID"] != one.uid]
    named = bend(kind="drop-keys", names=("ImageCount", "FileSize"))
    assert named == [{k: v for k, v in row.items() if k not in {"ImageCount", "FileSize"}} for row in true]
    assert not any("SeriesDescription" in row or "SeriesDate" in row for row in bend(kind="drop-keys"))
    assert all(row["AdmittingDiagnosisDescription"] == "null" for row in bend(kind="null-text"))
    wrong = bend(kind="wrong-count")
    assert [row["ImageCount"] - 1 for row in wrong] == [row["ImageCount"] for row in true]
    assert [row["FileSize"] for row in wrong] == [row["FileSize"] for row in true]
    assert [row["FileSize"] - 1 for row in bend(kind="wrong-size")] == [row["FileSize"] for row in true]
    texts = bend(kind="string-numbers")
    assert [row["ImageCount"] for row in texts] == [str(row["ImageCount"]) for row in true]
    assert texts[0]["AnnotationsFlag"] is False


def test_faults_of_lists_meet_csv(site, api, one):
    """The CSV of metadata is bent as well."""
    site.faults.set("nbia/v4/getSeriesMetadata/*", Fault(kind="duplicate-rows"))
    assert len(api.post("v4/getSeriesMetadata", list=one.uid).body.splitlines()) == 3


def test_short_zips_are_sound(site, one):
    """Zips that lack files, all files, or everything open without an error."""
    found = fetch_bent(site, one, kind="zip-short", at=0.5)
    assert len(md5s(found)) == 5
    assert set(md5s(found).values()) < {file.md5 for file in one.files}
    assert "md5hashes.csv" not in found
    assert set(fetch_bent(site, one, kind="zip-licence")) == {"LICENSE"}
    site.faults.clear()
    site.faults.set("nbia/*", Fault(kind="zip-empty"))
    got = Api(site.url).get("v1/getImageWithMD5Hash", SeriesInstanceUID=one.uid)
    assert (len(got.body), members(got.body)) == (22, {})


def test_zip_with_a_hole(site, one):
    """`zip-hole`: one file is missing while the list still names it."""
    found = fetch_bent(site, one, kind="zip-hole", at=0)
    assert set(rows_of(found["md5hashes.csv"])) - set(found) == {"1-1.dcm"}
    assert len(md5s(found)) == len(one.files) - 1


def test_zip_with_a_file_cut_short(site, one):
    """`zip-cut-entry`: one file ends early under a CRC that agrees, and the list tells."""
    found = fetch_bent(site, one, kind="zip-cut-entry", at=0.5)
    wrong = {name for name, md5 in rows_of(found["md5hashes.csv"]).items() if md5s(found)[name] != md5}
    assert len(wrong) == 1
    assert len(found[wrong.pop()]) < min(file.size for file in one.files) * 0.6


def test_faults_of_the_list_of_md5s(site, one):
    """`md5-*`: a wrong digest, no list, a name that never was, a file that is not named; the files are all right."""
    true = {file.md5 for file in one.files}
    found = fetch_bent(site, one, kind="md5-wrong")
    assert len(set(rows_of(found["md5hashes.csv"]).items()) - set(md5s(found).items())) == 1
    assert "md5hashes.csv" not in fetch_bent(site, one, kind="md5-missing")
    found = fetch_bent(site, one, kind="md5-extra")
    assert set(rows_of(found["md5hashes.csv"])) - set(found) == {"99999999.dcm"}
    found = fetch_bent(site, one, kind="md5-short")
    assert len(rows_of(found["md5hashes.csv"])) == len(one.files) - 1
    assert set(md5s(found).values()) == true


def test_shuffle(site, api, one):
    """`shuffle`: the same name is another instance at the next request, and each list agrees with its own zip."""
    site.faults.set("nbia/*", Fault(kind="shuffle"))
    firsts = set()
    for _ in range(6):
        found = members(api.get("v4/getImageWithMD5Hash", SeriesInstanceUID=one.uid).body)
        assert rows_of(found["md5hashes.csv"]) == md5s(found)
        firsts.add(md5s(found)["00000001.dcm"])
    assert len(firsts) > 1
    site.faults.clear()
    assert len({api.get("v4/getImageWithMD5Hash", SeriesInstanceUID=one.uid).body for _ in range(3)}) == 1


def test_truncate_ends_without_the_last_chunk(site, api, one):
    """`truncate` closes in the middle: a reader of chunks notices, and has what came before."""
    whole = api.get("v4/getImage", SeriesInstanceUID=one.uid).body
    site.faults.set("nbia/*", Fault(kind="truncate", at=0.5))
    with pytest.raises(http.client.IncompleteRead) as caught:
        api.get("v4/getImage", SeriesInstanceUID=one.uid)
    assert caught.value.partial == whole[: len(whole) // 2]


def test_reset_within_the_body(site, one):
    """`reset` is a TCP reset."""
    site.faults.set("nbia/*", Fault(kind="reset"))
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
        raw.sendall(f"GET {SERVICES}v4/getImage?SeriesInstanceUID={one.uid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: raw.recv(65536), b""))


def test_flip_changes_one_bit(site, api, one):
    """`flip` changes one bit of the stream."""
    whole = api.get("v4/getImage", SeriesInstanceUID=one.uid).body
    site.faults.set("nbia/*", Fault(kind="flip"))
    wrong = api.get("v4/getImage", SeriesInstanceUID=one.uid).body
    assert [(a ^ b).bit_count() for a, b in zip(whole, wrong, strict=True) if a != b] == [1]


@pytest.mark.parametrize("fault", [Fault(kind="stall", seconds=0.5), Fault(kind="drip", at=0.99, rate=2000.0)])
def test_slow_bodies_are_whole(site, api, demo, fault):
    """`stall` and `drip` take their time, and the body is right in the end."""
    uid = demo.named["single"]
    whole = api.get("v4/getImage", SeriesInstanceUID=uid).body
    site.faults.set("nbia/*", fault)
    start = time.monotonic()
    assert api.get("v4/getImage", SeriesInstanceUID=uid).body == whole
    assert time.monotonic() - start >= (0.5 if fault.kind == "stall" else len(whole) * 0.01 / 2000)


def test_hangup_and_delay(site, api):
    """`hangup` gives no byte; `delay` answers late; the site's own latency holds for all."""
    site.faults.set("nbia/*", Fault(kind="hangup", times=1))
    with pytest.raises(http.client.RemoteDisconnected):
        api.get("v4/getSeries")
    site.faults.clear()
    site.faults.set("nbia/*", Fault(kind="delay", seconds=0.3))
    site.latency = 0.2
    start = time.monotonic()
    assert api.get("v4/getCollectionValues").status == 200
    assert time.monotonic() - start >= 0.5


def test_faults_by_file(demo, tmp_path):
    """Faults of NBIA may come as a file, as those of the demo IDC do."""
    path = tmp_path / "faults.json"
    plan = FaultPlan((Rule("nbia/*", Fault(kind="error-504")),))
    path.write_bytes(msgspec.json.encode(plan))
    with NbiaSite(demo.archive, faults_file=path) as site:
        assert Api(site.url).get("v4/getSeries").status == 504
        path.unlink()
        assert Api(site.url).get("v4/getSeries").status == 200


def test_sprinkled_faults_pass(site, api, demo):
    """A sprinkle strikes part of the series once each; asked again, all come whole."""
    site.faults.sprinkle(0.5, 3, kinds=NBIA_PASSING_KINDS)
    uids = [one.uid for one in demo.archive.series if not one.restricted]
    sound = 0
    for _ in range(2):
        sound = 0
        for uid in uids:
            try:
                found = members(api.get("v4/getImageWithMD5Hash", SeriesInstanceUID=uid).body)
                sound += rows_of(found["md5hashes.csv"]) == md5s(found)
            except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError, zipfile.zlib.error):
                continue
    assert sound == len(uids)
    assert 5 < sum(site.faults.struck.values()) < len(uids)
