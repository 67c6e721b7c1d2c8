"""Metadata of many series: one bad row, one bad UID, one failing version or host costs no more than it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import SiteUnavailableError
from pipeline.transport.retry import Policy, Runtime
from tests.sources.test_tcia_client import COLLECTIONS, client
from tests.sources.test_tcia_http import EMPTY, Asked, Handler, Site, Step, _site, answer, rows  # noqa: F401 -- fixture

POST, SINGLE = "/v4/getSeriesMetadata", "/v1/getSeriesMetaData"
HEAD = '"PatientID","SeriesInstanceUID","ImageCount"'
LOST = answer(500, b"Server was not able to process your request")


@pytest.fixture(name="nlst")
def _nlst() -> Iterator[Site]:
    """A host of its own for NLST."""
    site = Site()
    yield site
    site.close()


def make_uids(count: int) -> list[str]:
    """So many different UIDs."""
    return [f"1.2.{number}" for number in range(1, count + 1)]


def table(
    *, gone: tuple[str, ...] = (), bad: tuple[str, ...] = (), poison: tuple[str, ...] = (), hidden: int = 0
) -> Step:
    """The table of what is asked for; `gone` is not in it, `bad` has an unreadable row, `poison` fails the whole call.

    `hidden`: in answers of more rows than that, the last row is missing.
    """

    def step(handler: Handler, asked: Asked) -> None:
        uids = asked.params["list"].split(",")
        if set(poison) & set(uids):
            LOST(handler, asked)
            return
        lines = [
            f'","{uid}","7"' if uid in bad and len(uid) % 2 else f'"P","{uid}"' if uid in bad else f'"P","{uid}","7"'
            for uid in uids
            if uid not in gone
        ]
        lines = lines[:-1] if hidden and len(lines) > hidden else lines
        answer(200, "\n".join([HEAD, *lines, ""]).encode() if lines else b"", Content_Type="text/csv")(handler, asked)

    return step


def single(*, gone: tuple[str, ...] = ()) -> Step:
    """v1's answer for one series; `gone` is not known."""

    def step(handler: Handler, asked: Asked) -> None:
        uid = asked.params["SeriesInstanceUID"]
        step = answer(204) if uid in gone else rows({"Series UID": uid, "Subject ID": "v1"})
        step(handler, asked)

    return step


def found_by(site: Site, uids: list[str], **options: object) -> dict[str, str | None]:
    """PatientIDs of what was found: `P` by v4, `v1` by v1."""
    with client(site, **options) as tcia:
        return {row.SeriesInstanceUID: row.PatientID for row in tcia.series_metadata(uids)}


@pytest.mark.parametrize("place", [0, 1, 499, 777, 999])
def test_one_poisonous_uid_costs_itself(site: Site, place: int) -> None:
    """A UID at which the batched call fails is asked of the other version; the rest comes in a few more batches."""
    uids = make_uids(1000)
    site.on(POST, table(poison=(uids[place],)))
    site.on(SINGLE, single())
    found = found_by(site, uids)
    assert list(found) == uids
    assert {uid for uid, by in found.items() if by == "v1"} == {uids[place]}
    assert len(site.asked) < 60


def test_a_poisonous_uid_that_no_version_knows_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Where every call for one series fails, the others come and that one is told with what was said."""
    uids = make_uids(10)
    site.on(POST, table(poison=(uids[3],)))
    site.on(SINGLE, LOST)
    assert list(found_by(site, uids)) == [*uids[:3], *uids[4:]]
    assert uids[3] in caplog.text
    assert "500" in caplog.text
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert list(looked.unanswered) == [uids[3]]
    assert "Server was not able" in looked.unanswered[uids[3]]
    assert looked.unknown == {}


def test_a_call_that_always_fails_is_given_up_after_few(site: Site) -> None:
    """Where v4 fails for each, v1 answers for up to 200 series; more are an error that says so, soon."""
    site.on(POST, LOST)
    site.on(SINGLE, single())
    uids = make_uids(200)
    assert set(found_by(site, uids).values()) == {"v1"}
    assert site.paths().count(POST) < 12
    site.asked.clear()
    with pytest.raises(SiteUnavailableError, match=r"500.*201 series.*\(200 "):
        found_by(site, make_uids(201))
    assert len(site.asked) < 12


def test_too_many_poisonous_uids_are_an_error(site: Site) -> None:
    """The number of calls is bounded, however many series fail."""
    uids = make_uids(1000)
    site.on(POST, table(poison=tuple(uids[1:-1:3])))
    site.on(SINGLE, single())
    with pytest.raises(SiteUnavailableError, match="500"):
        found_by(site, uids)
    assert len(site.asked) < 150


def test_a_site_that_is_down_is_no_unknown_series(site: Site) -> None:
    """When all calls fail, the error is the first one's, and nothing is called unknown."""
    for path in (POST, SINGLE):
        site.on(path, LOST)
    for count in (1, 2, 3, 30, 1500):
        with pytest.raises(SiteUnavailableError, match=r"getSeriesMetadata.*500"):
            found_by(site, make_uids(count))
    for api in ("v4", "v1"):
        with client(site, api=api) as tcia, pytest.raises(SiteUnavailableError, match="500"):
            tcia.series_metadata(make_uids(5))


def test_one_version_alone(site: Site) -> None:
    """v1 alone is asked for each series, however many; a failing one is told and the others come."""
    uids = make_uids(300)
    site.on(POST, answer(404))
    site.on(SINGLE, single())
    assert list(found_by(site, uids, api="v1")) == uids
    assert site.paths() == [SINGLE] * 300
    site.on(SINGLE, rows({"Series UID": "1.2.1"}), LOST)
    with client(site, api="v1", refresh=True) as tcia:
        looked = tcia.look_up().ask(uids[:2])
    assert (len(looked.rows), list(looked.unanswered)) == (1, ["1.2.2"])


def test_a_bad_row_costs_only_itself(site: Site) -> None:
    """A row of too few cells, or with a quote too many, is asked for again, and of the other version."""
    uids = ["1.2.1", "1.2.2", "1.2.33", "1.2.4"]
    site.on(POST, table(bad=(uids[1], uids[2])))
    site.on(SINGLE, single())
    assert found_by(site, uids) == {"1.2.1": "P", "1.2.2": "v1", "1.2.33": "v1", "1.2.4": "P"}


def test_what_an_answer_leaves_out_is_asked_again(site: Site) -> None:
    """A row that is missing in a large answer and not in a small one is found."""
    uids = make_uids(20)
    site.on(POST, table(hidden=5))
    assert list(found_by(site, uids)) == uids
    assert [len(asked.params["list"].split(",")) for asked in site.asked] == [20, 1]


def test_what_stays_left_out_is_unknown(site: Site) -> None:
    """Twice not in an answer of v4, and not known to v1, is what the site does not have; with its words if any."""
    uids = make_uids(20)
    site.on(POST, table(gone=(uids[4], uids[5])))
    site.on(SINGLE, single(gone=(uids[4], uids[5])))
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert [row.SeriesInstanceUID for row in looked.rows] == [*uids[:4], *uids[6:]]
    assert (looked.unknown, looked.unanswered) == ({uids[4]: "", uids[5]: ""}, {})
    site.on(SINGLE, answer(400, b"Image with given SeriesInstanceUID,1.2.5, is not in public domain."))
    with client(site, refresh=True) as tcia:
        looked = tcia.look_up().ask(uids)
    assert "not in public domain" in looked.unknown[uids[4]]


def test_many_left_out_cost_few_calls(site: Site) -> None:
    """Hundreds of withdrawn series are not asked for one by one: some of them, spread over the list, stand for all."""
    uids = make_uids(1000)
    site.on(POST, table(gone=tuple(uids[::2])))
    site.on(SINGLE, single(gone=tuple(uids[::2])))
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert [row.SeriesInstanceUID for row in looked.rows] == uids[1::2]
    assert (set(looked.unknown), looked.unanswered) == (set(uids[::2]), {})
    assert len(site.asked) < 50
    alone = [int(asked.params["SeriesInstanceUID"][4:]) for asked in site.asked if asked.path == SINGLE]
    assert (min(alone), max(alone)) == (1, 999)


@pytest.mark.parametrize("hidden", [21, 60])
def test_many_rows_that_v4_alone_leaves_out_come(site: Site, hidden: int) -> None:
    """More rows that v4 leaves out than are asked for as a sample are found with the other version, not called gone."""
    uids = make_uids(300)
    site.on(POST, table(gone=tuple(uids[5 : 5 + hidden])))
    site.on(SINGLE, single())
    assert list(found_by(site, uids)) == uids


def test_very_many_rows_that_v4_leaves_out_are_unanswered(site: Site) -> None:
    """Where there are too many to ask for each, those that were not asked are told as such, in bounded calls."""
    uids = make_uids(1000)
    site.on(POST, table(gone=tuple(uids[::2])))
    site.on(SINGLE, single())
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert looked.unknown == {}
    assert len(looked.rows) + len(looked.unanswered) == 1000
    assert len(looked.rows) >= 700
    assert all("v4" in said and "v1" in said for said in looked.unanswered.values())
    assert site.paths().count(SINGLE) <= 220
    assert len(site.asked) < 300


def test_what_v4_leaves_out_and_v1_cannot_tell_of_is_unanswered(site: Site) -> None:
    """A missing row is no withdrawn series while the other version fails."""
    uids = make_uids(30)
    site.on(POST, table(gone=tuple(uids[:25])))
    site.on(SINGLE, LOST)
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert (looked.unknown, set(looked.unanswered)) == ({}, set(uids[:25]))
    assert all("500" in said for said in looked.unanswered.values())
    assert "v4 has no row of it" in looked.unanswered[uids[10]]
    assert site.paths().count(SINGLE) < 8


def empty_of(gone: str, count: int) -> Step:
    """v4 says nothing to batches of more than `count`; of those it answers, `gone` is not in the table."""

    def step(handler: Handler, asked: Asked) -> None:
        many = asked.params["list"].count(",") >= count
        (EMPTY if many else table(gone=(gone,)))(handler, asked)

    return step


@pytest.mark.parametrize(("size", "most"), [(10, 1), (1000, 600), (1000, 300)])
def test_an_empty_batch_is_not_believed_for_its_first_series(site: Site, size: int, most: int) -> None:
    """Nothing for a whole batch, whose first series is withdrawn, is probed elsewhere in it; the others come."""
    uids = make_uids(size)
    site.on(POST, empty_of(uids[0], most))
    site.on("/v4/getCollectionValues", COLLECTIONS)
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
    site.on(SINGLE, single(gone=(uids[0],)))
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert [row.SeriesInstanceUID for row in looked.rows] == uids[1:]
    assert (looked.unknown, looked.unanswered) == ({uids[0]: ""}, {})


@pytest.mark.parametrize("fault", ["empty", "lost"])
def test_a_batch_that_stays_empty_is_unanswered(site: Site, fault: str) -> None:
    """Where v4 says nothing however it is asked, and v1 has series or fails, only what v1 denies is unknown."""
    uids = make_uids(1000)
    site.on(POST, EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
    site.on(SINGLE, single(gone=(uids[0],)) if fault == "empty" else LOST)
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert looked.unanswered
    assert set(looked.unknown) == ({uids[0]} if fault == "empty" else set())
    assert len(looked.rows) == len(uids) - len(looked.unanswered) - len(looked.unknown)
    assert len(site.asked) < 350


def test_an_empty_batch_that_is_withdrawn_is_unknown(site: Site) -> None:
    """Where every probe says so too, a whole batch is not at the site."""
    uids = make_uids(1000)
    site.on(POST, EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
    site.on(SINGLE, single(gone=tuple(uids)))
    with client(site) as tcia:
        looked = tcia.look_up().ask(uids)
    assert (set(looked.unknown), looked.rows, looked.unanswered) == (set(uids), [], {})
    assert len(site.asked) < 60


def test_samples_of_many_batches_leave_the_budget_for_failures(site: Site) -> None:
    """Withdrawn series in each of many batches do not use up the calls for a series at which v4 fails later."""
    uids = make_uids(10_000)
    gone = tuple(uids[5::40])
    site.on(POST, table(gone=gone, poison=(uids[9_500],)))
    site.on(SINGLE, single(gone=gone))
    found = found_by(site, uids)
    assert found[uids[9_500]] == "v1"
    assert len(found) == len(uids) - len(gone)


@pytest.mark.parametrize("seconds", [60.0, 300.0])
def test_a_hanging_v4_leaves_time_for_v1(site: Site, seconds: float) -> None:
    """A v4 whose call says nothing until it is given up gets a share of the time, and no probes; then v1 is asked."""
    now = [0.0]

    def hang(handler: Handler, _: Asked) -> None:
        now[0] += seconds
        handler.close_connection = True

    runtime = Runtime(clock=lambda: now[0], random=lambda: 0.5, wait=lambda *_: None)
    site.on(POST, hang)
    site.on(SINGLE, single())
    policy = Policy(attempts=5, deadline=600.0)
    found = found_by(site, make_uids(20), policy=policy, runtime=runtime)
    assert set(found.values()) == {"v1"}
    assert len(found) == 20
    assert site.paths().count(POST) <= 5


def test_an_empty_answer_that_the_list_contradicts(site: Site) -> None:
    """Nothing at all of series that getSeries lists is asked of v1, and else the site's failure."""
    site.on(POST, EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    site.on("/v4/getSeries", rows({"SeriesInstanceUID": "1.2.1"}))
    site.on(SINGLE, single())
    assert found_by(site, ["1.2.1"]) == {"1.2.1": "v1"}
    site.on(SINGLE, EMPTY)
    with pytest.raises(SiteUnavailableError, match="although getSeries lists"):
        found_by(site, ["1.2.1"], refresh=True)


def down(handler: Handler, _: Asked) -> None:
    """No answer: the connection ends."""
    handler.close_connection = True


@pytest.mark.parametrize("fault", [down, LOST], ids=["down", "failing"])
def test_the_host_of_nlst_being_down_costs_its_series(
    site: Site, nlst: Site, fault: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """Series of the main host come; what it does not have, and NLST's host may, is told with the reason."""
    site.on(POST, table(gone=("1.2.9",)))
    site.on(SINGLE, single(gone=("1.2.9",)))
    for path in (POST, SINGLE):
        nlst.on(path, fault)
    uids = ["1.2.1", "1.2.9", "1.2.2"]
    assert list(found_by(site, uids, nlst_url=nlst.root)) == ["1.2.1", "1.2.2"]
    assert "host of NLST" in caplog.text
    with client(site, nlst_url=nlst.root) as tcia:
        looked = tcia.look_up().ask(uids)
        assert list(looked.unanswered) == ["1.2.9"]
        assert "host of NLST" in looked.unanswered["1.2.9"]
        before = len(nlst.asked)
        looked = tcia.look_up().ask(uids, elsewhere={"1.2.9"})
        assert (looked.unanswered, looked.unknown) == ({}, {"1.2.9": ""})
        assert len(nlst.asked) == before


def test_only_series_of_nlst_and_its_host_down(site: Site, nlst: Site) -> None:
    """When nothing else was asked for, the host of NLST being down is an error."""
    site.on(POST, EMPTY)
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    nlst.on(POST, down)
    with pytest.raises(SiteUnavailableError, match="host of NLST"):
        found_by(site, ["1.2.9"], nlst_url=nlst.root)


def test_the_host_of_nlst_is_asked_for_what_is_left(site: Site, nlst: Site) -> None:
    """It is asked only for what the main host does not have, and its rows count."""
    site.on(POST, table(gone=("1.2.9",)))
    site.on(SINGLE, single(gone=("1.2.9",)))
    nlst.on(POST, table())
    assert list(found_by(site, ["1.2.1", "1.2.9"], nlst_url=nlst.root)) == ["1.2.1", "1.2.9"]
    assert [asked.params for asked in nlst.asked] == [{"list": "1.2.9"}]
    with client(site, nlst_url=nlst.root) as tcia:
        assert [row.collection for row in tcia.series_metadata(["1.2.1", "1.2.9"])] == [None, "NLST"]


def test_a_host_that_is_down_is_not_waited_for_twice(site: Site, nlst: Site) -> None:
    """After NLST's host gave no answer, the next batch and the next patient do not wait for it again."""
    site.on(POST, table(gone=("1.2.9", "1.2.8")))
    site.on(SINGLE, single(gone=("1.2.9", "1.2.8")))
    nlst.on(POST, down)
    nlst.on("/v4/getSeries", down)
    for version in ("v4", "v1"):
        site.on(f"/{version}/getSeries", EMPTY)
    site.on("/v4/getCollectionValues", COLLECTIONS)
    with client(site, nlst_url=nlst.root) as tcia:
        look = tcia.look_up()
        look.ask(["1.2.1", "1.2.9"])
        before = len(nlst.asked)
        assert list(look.ask(["1.2.1", "1.2.8"]).unanswered) == ["1.2.8"]
        with pytest.raises(SiteUnavailableError, match="host of NLST"):
            tcia.series(patient="P")
    assert len(nlst.asked) == before


def garbled(handler: Handler, asked: Asked) -> None:
    """A table in which no row can be read."""
    lines = [HEAD, *(f'"{uid}"' for uid in asked.params["list"].split(","))]
    answer(200, "\n".join(lines).encode(), Content_Type="text/csv")(handler, asked)


def test_a_table_without_a_usable_row_is_no_empty_one(site: Site) -> None:
    """Where every row is bad the answer is a wrong one, and the other version is asked."""
    site.on(POST, garbled)
    site.on(SINGLE, single())
    assert set(found_by(site, make_uids(4)).values()) == {"v1"}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"Series UID": "1.2.1"}, {}, {"Modality": "CT"}, 7, {"Series UID": "1.2.2"}]).encode(),
        b'"SeriesInstanceUID","d"\n"1.2.1","a\nb"\n"1.2.3","x"y"\n\n"1.2.2",""\n',
        b'SeriesInstanceUID,d\n1.2.1,"a ""b"""\n1.2.3,"x\n1.2.2,y\n',
        b'"SeriesInstanceUID","d"\n"1.2.1","a"\n"1.2.2","b"\n"1.2.3","cut o',
    ],
)
def test_rows_that_can_be_read_are_read(site: Site, body: bytes) -> None:
    """Empty rows, rows without a UID and rows of broken quotes are passed over, whatever comes after them."""
    site.on(POST, answer(200, body), EMPTY)
    site.on(SINGLE, single())
    found: Callable[[str], str | None] = found_by(site, ["1.2.1", "1.2.2", "1.2.3"]).get
    assert [found("1.2.1"), found("1.2.2"), found("1.2.3")] == [None, None, "v1"]
