"""Series from NBIA in a task: they come whole and right, whatever the site sends, or fail for their reason."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbia_kit import (
    FILES,
    GRANTED,
    OLD_ZIP,
    PASSING,
    PUBLIC,
    QUICK,
    UID,
    V1,
    V4,
    ZIP,
    Bench,
    haul,
    one,
    refuse,
    soon,
)
from run_kit import make_dicom
from zip_kit import list_md5s, make_series_zip

from pipeline.errors import CredentialsError, ItemError
from pipeline.model import Entry, IdcLocation, NbiaLocation
from pipeline.settings import Sources
from pipeline.sources.base import Body, Fetcher, Holder
from pipeline.sources.fetch import RoutedFetcher
from pipeline.sources.tcia_calls import judge_status, plan_calls, plan_limits
from pipeline.sources.tcia_held import Key, Store
from pipeline.sources.verified import fetch_verified
from pipeline.transport.client import DOUBTS
from tests.transport.server import Server, Step, answer, chunked


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench with a site of its own."""
    made = Bench(tmp_path)
    yield made
    made.close()


# -- what is right ----------------------------------------------------------------------------------------------------


def test_a_series_comes_whole_by_one_request(bench):
    """Files are named by their SOPInstanceUID, proved by MD5, and the zip is gone when they are there."""
    bench.server.on(V4, chunked(ZIP))
    got = haul(bench, bench.fetcher(), one(bench.item))
    assert [verified.file.name for verified in got] == [f"{UID}.{n}.dcm" for n in (1, 2, 3)]
    for verified in got:
        data = Path(verified.file.local).read_bytes()
        assert data in FILES.values()
        assert (verified.file.md5, verified.file.sha256) == (
            hashlib.md5(data).hexdigest(),
            hashlib.sha256(data).hexdigest(),
        )
        assert verified.file.evidence == ("md5", "size")
        assert verified.file.route == f"nbia:{bench.base}"
        assert verified.file.key == f"{UID}/{verified.file.name.removesuffix('.dcm')}"
    (request,) = bench.server.requests
    assert request.target == f"{V4}?SeriesInstanceUID={UID}&NewFileNames=Yes&IncludeMD5=Yes"
    assert "authorization" not in request.headers
    assert bench.scratch() == []


def test_the_host_is_the_item_s(bench):
    """Each item names its host: NLST has one of its own; versions and slashes at the end of the URL do not matter."""
    other = Server()
    try:
        other.on(V4, chunked(ZIP))
        bench.server.on(V4, chunked(ZIP))
        fetcher = bench.fetcher()
        far = msgspec.structs.replace(bench.item, location=NbiaLocation(f"{other.base}/api/v4/"))
        assert {v.file.route for v in haul(bench, fetcher, one(far))} == {f"nbia:{other.base}/api"}
        haul(bench, fetcher, one(bench.item))
        assert (len(other.requests), len(bench.server.requests)) == (1, 1)
    finally:
        other.close()


def test_the_demo_s_address_comes_from_the_settings(bench):
    """A manifest says `demo`: its port is another each time."""
    bench.server.on(V4, chunked(ZIP))
    item = msgspec.structs.replace(bench.item, location=NbiaLocation("demo"))
    assert {v.file.route for v in haul(bench, bench.fetcher(), one(item))} == {f"nbia:{bench.base}"}


def test_names_in_the_zip_leave_no_trace(bench):
    """Both calls give the same bodies, though they name and order the files otherwise."""
    bench.server.on(V4, chunked(ZIP))
    bench.server.on(V1, chunked(OLD_ZIP))
    new = haul(bench, bench.fetcher(), one(bench.item))
    bench.server.on(V4, answer(404))
    old = haul(bench, bench.fetcher(), one(bench.item))
    assert [v.file for v in new] == [v.file for v in old]


# -- another try, another way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", PASSING.values(), ids=PASSING)
def test_what_passes_is_got_over(bench, step):
    """The next request gets the series, by the same call."""
    bench.server.on(V4, step, chunked(ZIP))
    assert len(haul(bench, bench.fetcher(), one(bench.item))) == 3
    assert bench.asked() == [V4, V4]


LASTING = {"404": answer(404), "500": PASSING["500"], "no list": PASSING["no list"], "page": PASSING["page"]}


@pytest.mark.parametrize(
    "step", [*LASTING.values(), answer(400, GRANTED), answer(400, b"Invalid query parameter: 'x'")]
)
def test_what_v4_cannot_give_the_elder_may(bench, step):
    """An API that is gone, always fails, knows no IncludeMD5 or leaves out the list: getImageWithMD5Hash has it."""
    bench.server.on(V4, step)
    bench.server.on(V1, chunked(OLD_ZIP))
    assert len(haul(bench, bench.fetcher(), one(bench.item))) == 3
    assert bench.asked()[-1] == V1
    assert bench.server.requests[-1].target == f"{V1}?SeriesInstanceUID={UID}"


def test_a_refused_series_is_asked_for_once_more_and_fails_with_the_server_s_words(bench):
    """400 is what unknown and forbidden series get alike: it is not hammered, and nothing of it is kept."""
    bench.server.on(V4, answer(400, GRANTED))
    bench.server.on(V1, answer(400, PUBLIC))
    error = refuse(bench)
    assert (error.reason, error.transient) == ("forbidden", False)
    assert "has not been granted the access" in str(error)
    assert "not in public domain" in str(error)
    assert bench.asked() == [V4, V1]


@pytest.mark.parametrize("status", [401, 403])
def test_401_and_403_are_forbidden(bench, status):
    """Both are final."""
    bench.server.on(V4, answer(status))
    bench.server.on(V1, answer(status))
    error = refuse(bench)
    assert (error.reason, error.transient, len(bench.server.requests)) == ("forbidden", False, 2)


def test_what_may_pass_wins_over_what_will_not(bench):
    """Where one call is refused and the other fails, the item is worth another try later."""
    bench.server.on(V4, answer(400, GRANTED))
    bench.server.on(V1, answer(500))
    error = refuse(bench)
    assert (error.reason, error.transient) == ("unavailable", True)


def test_a_site_that_asks_to_slow_down_is_not_asked_another_way(bench):
    """429 is of the site, not of the call."""
    bench.server.on(V4, answer(429))
    bench.server.on(V1, chunked(OLD_ZIP))
    error = refuse(bench)
    assert (error.reason, error.transient) == ("unavailable", True)
    assert bench.asked() == [V4] * QUICK.attempts


def test_the_deadline_leaves_time_for_the_elder(bench):
    """A call that hangs uses up two thirds of the time, no more."""
    bench.server.on(V4, bench.server.hang)
    bench.server.on(V1, chunked(OLD_ZIP))
    fetcher = bench.fetcher()
    assert len(fetcher.list_bodies(one(bench.item), time.monotonic() + 1.5)) == 3


def test_how_much_may_come(bench):
    """A body that cannot be the series by its length is broken off; unknown sizes are bounded by free scratch."""
    item = msgspec.structs.replace(bench.item, bytes=10)
    assert plan_limits(item, 0)[1] == 10
    assert 10 < plan_limits(item, 0)[0] < 100 << 20
    unknown = msgspec.structs.replace(bench.item, bytes=-1)
    assert plan_limits(unknown, 10 << 30)[0] == 5 << 30
    assert plan_limits(unknown, 1 << 50)[0] == 1 << 40
    bench.server.on(V4, chunked(ZIP))
    error = refuse(bench, item)
    assert (error.reason, len(bench.server.requests)) == ("size", DOUBTS)


def test_zips_of_unknown_size_share_what_is_free(bench, monkeypatch):
    """What one may take by its limit while it comes, another one is not promised as well; nor all that is left."""
    limits: list[int] = []
    monkeypatch.setattr(Store, "free", lambda self: 64 << 30)
    fetcher = bench.fetcher()

    def bring(uid: str) -> None:
        with pytest.raises(ItemError):
            fetcher.list_bodies(one(msgspec.structs.replace(bench.item, id=uid, bytes=-1)), soon())

    def stream(url: str, dest: Path, accept: object, *, limit: int, **options: object) -> None:
        limits.append(limit >> 30)
        if len(limits) == 1:  # in its midst
            bring("1.2.3")
        raise ItemError("checksum", "no")

    monkeypatch.setattr(bench.transport, "stream", stream)
    bring(UID)
    bring("1.2.4")
    assert limits == [32, 4, 32]


# -- defects of other clients -----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Step, str]] = {
    "wrong_md5_kept": (PASSING["wrong MD5"], "checksum"),
    "licence_only_zip_is_success": (PASSING["licence only"], "count"),
    "empty_zip_is_success": (PASSING["22 bytes"], "count"),
    "valid_but_short_zip_accepted": (PASSING["short"], "count"),
    "cut_file_under_a_sound_crc_accepted": (
        chunked(make_series_zip(FILES | {"1-1.dcm": FILES["1-1.dcm"][:-9]}, md5s=list_md5s(FILES))),
        "size",
    ),
    "missing_md5_list_only_warned": (PASSING["no list"], "unavailable"),
    "truncated_zip_kept": (PASSING["short body that looks whole"], "unavailable"),
    "error_body_saved_as_zip": (answer(200, b"Server was not able to process your request"), "unavailable"),
    "error_status_saved_as_zip": (PASSING["500"], "unavailable"),
    "success_reported_when_nothing_was_saved": (PASSING["nothing"], "unavailable"),
}


@pytest.mark.parametrize(("step", "reason"), REFUSED.values(), ids=REFUSED)
def test_never(bench, step, reason):
    """Each fails the item for its reason after a bounded number of requests, may pass later, and leaves no file."""
    bench.server.on(V4, step)
    bench.server.on(V1, step)
    error = refuse(bench)
    assert (error.reason, error.transient) == (reason, True)
    assert len(bench.server.requests) <= 2 * QUICK.attempts
    assert not list(bench.root.glob("raw*"))


def test_a_truncated_zip_is_never_skipped_for_ever(bench):
    """What a killed life left half-written is no zip to the next one, which asks again."""
    bench.server.on(V4, chunked(ZIP))
    for ending in (".zip", ".part"):
        Store(bench.root / "sources", ()).path(Key(bench.base, UID), ending).write_bytes(ZIP[:700])
    assert bench.scratch() == [".part"]  # the second store has swept what the first one left
    assert len(haul(bench, bench.fetcher(), one(bench.item))) == 3
    assert len(bench.server.requests) == 1


def test_two_series_that_share_their_last_digits_are_never_merged(bench):
    """Neither zips nor records of two series meet, however much alike their UIDs are."""
    uids = [f"2.25.7003{n}54321" for n in range(2)]
    entries = []
    for number, uid in enumerate(uids):
        files = {"1-1.dcm": make_dicom(uid, f"{uid}.1"), "1-2.dcm": make_dicom(uid, f"{uid}.{number + 2}")}
        entries.append((Entry(number, 0, 0, 1, bench.make_item(files, uid)), make_series_zip(files)))
    fetcher = bench.fetcher(tuple(entry for entry, _ in entries))
    bodies: dict[str, list[Body]] = {}
    for entry, data in entries:
        bench.server.on(V4, chunked(data))
        bodies[entry.item.id] = fetcher.list_bodies(entry, soon())
    assert [name for name in bench.scratch() if name == ".zip"] == [".zip", ".zip"]
    for uid in uids:
        for n, body in enumerate(bodies[uid]):
            assert fetch_verified(fetcher, body, bench.root / f"x{n}", soon()).file.name.startswith(f"{uid}.")
    assert not {b.cache_key for b in bodies[uids[0]]} & {b.cache_key for b in bodies[uids[1]]}


def test_a_file_of_another_series_is_wrong_uid(bench):
    """A site may pack a stranger's file with the right MD5: no archive gets it."""
    files = FILES | {"1-2.dcm": make_dicom("1.2.3.4", f"{UID}.2")}
    bench.server.on(V4, chunked(make_series_zip(files)))
    with pytest.raises(ItemError) as caught:
        haul(bench, bench.fetcher(), one(bench.make_item(files)))
    assert (caught.value.reason, caught.value.transient) == ("wrong-uid", False)


# -- decisions --------------------------------------------------------------------------------------------------------


def test_what_statuses_mean():
    """NBIA's own words tell refusals from mistakes; all else is the transport's business."""
    for status, document, reason in (
        (400, GRANTED, "forbidden"),
        (400, PUBLIC, "withdrawn"),
        (400, b"A parameter, SeriesInstanceUID, is required for this API call.", "unavailable"),
        (400, b"", "unavailable"),
        (401, b"", "forbidden"),
        (403, b"<html>", "forbidden"),
        (404, b"", "unavailable"),
    ):
        error = judge_status(status, document)
        assert error is not None
        assert (error.reason, error.transient) == (reason, False)
    assert [judge_status(status, b"") for status in (500, 502, 503, 429, 302)] == [None] * 5
    assert plan_calls("1.2&x=3", secret=True)[1] == ("v2", "v2/getImageWithMD5Hash?SeriesInstanceUID=1.2%26x%3D3")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_answer_ends_in_anything_but_the_series_or_an_item_error(tmp_path_factory, world, data):
    """Mutated zips: no other exception, no byte that is not the series', no file beside those that were asked for."""
    bench = world
    raw = bytearray(data.draw(st.sampled_from([ZIP, OLD_ZIP])))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        cut = data.draw(st.integers(0, 30))
        raw[place : place + cut] = data.draw(st.binary(max_size=30))
    bench.server.on(V4, chunked(bytes(raw)))
    bench.server.on(V1, answer(404))
    bench.root = tmp_path_factory.mktemp("life")
    fetcher = bench.fetcher()
    try:
        got = haul(bench, fetcher, one(bench.item))
        assert {Path(v.file.local).read_bytes() for v in got} == set(FILES.values())
    except ItemError:
        assert not list(bench.root.glob("raw-*"))
    finally:
        fetcher.close()
    assert {path.name.split("-")[0] for path in bench.root.iterdir()} <= {"raw", "sources"}
    assert bench.scratch() == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench for all examples."""
    made = Bench(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


# -- routes -----------------------------------------------------------------------------------------------------------


def test_each_item_goes_to_its_own_source_and_none_is_opened_for_nothing(bench):
    """IDC and NBIA side by side in one task; without NBIA's items nothing of NBIA is touched."""
    bad = msgspec.structs.replace(bench.settings, credentials="/nowhere")
    idc = msgspec.structs.replace(Sources().idc, s3_endpoint=bench.server.base, mirror_endpoint="")
    routed = RoutedFetcher(Sources(idc=idc, tcia=bad), bench.transport, bench.root / "sources")
    fetchers: tuple[type, ...] = (Holder,)
    assert isinstance(routed, fetchers)
    as_contract: Fetcher = routed
    far = msgspec.structs.replace(bench.item, location=IdcLocation("bucket", "uuid"))
    with pytest.raises(ItemError, match="bucket"):
        as_contract.list_bodies(one(far), soon())
    routed.release(one(far))
    assert not (bench.root / "sources").exists()
    with pytest.raises(CredentialsError):
        routed.list_bodies(one(bench.item), soon())
    routed.close()
    bench.server.on(V4, chunked(ZIP))
    routed = RoutedFetcher(Sources(idc=idc, tcia=bench.settings), bench.transport, bench.root / "sources")
    bodies = routed.list_bodies(one(bench.item), soon())
    assert routed.fetch(bodies[0], bench.root / "raw", soon()).route == f"nbia:{bench.base}"
    routed.close()
    assert bench.scratch() == []
