"""Plans from TCIA when a host is down or answers only in part: what is lost is told, and costs nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.plan.planner import Plan
from pipeline.plan.tcia import MOST_IMAGE_BYTES, MOST_IMAGES, read_stated
from pipeline.settings import Config
from pipeline.sources.tcia_route import Stated
from tests.plan.test_plan_tcia import make_config, plan, read_items


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """The URL of a host where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/nbia-api/services"


def with_nlst(config: Config, url: str) -> Config:
    """The config with NLST at a host of its own."""
    tcia = msgspec.structs.replace(config.sources.tcia, nlst_base_url=url)
    return msgspec.structs.replace(config, sources=msgspec.structs.replace(config.sources, tcia=tcia))


def unknown(made: Plan) -> str:
    """The file of what is not in a plan."""
    assert made.run is not None
    return (made.run.path / "unknown-series.txt").read_text()


def planned(made: Plan) -> set[str]:
    """SeriesInstanceUIDs of a plan."""
    return {item.id for item, _ in read_items(made)}


@pytest.mark.parametrize("key", ["manifest", "series"])
def test_the_host_of_nlst_being_down_costs_its_series(
    site: NbiaSite, demo: NbiaDemo, tmp_path: Path, nobody: str, key: str
) -> None:
    """Series of other collections are planned; what may be NLST's is listed with the reason, also in the file."""
    uids = [demo.named["single"], "1.2.840.113654.2.55.9", demo.named["tail-a"]]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(uids))
    select = {"tcia": {"manifest": str(listed)} if key == "manifest" else {"series": uids}}
    made = plan(with_nlst(make_config(site, demo.idc.index, tmp_path, select=select), nobody), tmp_path)
    assert planned(made) == {uids[0], uids[2]}
    assert made.missing == 1
    (note,) = [note for note in made.notes if "host of NLST" in note]
    assert "1 of 3 " in note
    assert uids[1] in note
    lines = unknown(made).splitlines()
    assert lines[-1] == uids[1]
    assert lines[-2].startswith("# ")
    assert "host of NLST" in lines[-2]


def test_what_the_index_has_does_not_wait_for_nlst(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, nobody: str) -> None:
    """Series that the index puts into another collection are not asked for there, and a plan of them has no doubt."""
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([demo.named["single"], *demo.places.idc_only]))
    config = make_config(site, demo.idc.index, tmp_path, select={"tcia": {"manifest": str(listed)}})
    made = plan(with_nlst(config, nobody), tmp_path)
    assert planned(made) == {demo.named["single"], *demo.places.idc_only}
    assert not any("NLST" in note for note in made.notes)


def test_nothing_but_nlst_and_its_host_down(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, nobody: str) -> None:
    """Where all that was asked for may be NLST's, its host being down ends the plan with 69, not with a wrong name."""
    for number, wanted in enumerate(
        (
            {"series": ["1.2.840.113654.2.55.9"]},
            {"patients": ["100012"]},
            {"collections": ["NLST"]},
        )
    ):
        config = make_config(site, demo.idc.index, tmp_path, select={"tcia": wanted})
        with pytest.raises(SiteUnavailableError, match="host of NLST"):
            plan(with_nlst(config, nobody), tmp_path / str(number))


def test_collections_and_patients_beside_nlst(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, nobody: str) -> None:
    """NLST's host being down costs NLST, or the patients who may be there, and not the other collections."""
    select = {"tcia": {"collections": ["nlst", ONLY_NBIA]}}
    made = plan(with_nlst(make_config(site, demo.idc.index, tmp_path, select=select), nobody), tmp_path)
    assert planned(made) == {one.uid for one in demo.archive.series if one.collection == ONLY_NBIA}
    assert any("collection nlst" in note.casefold() and "host of NLST" in note for note in made.notes)
    assert "collection NLST" in unknown(made)
    assert made.missing == 1
    select = {"tcia": {"patients": ["100012", "NBIA-001", "100013"]}}
    made = plan(with_nlst(make_config(site, demo.idc.index, tmp_path / "p", select=select), nobody), tmp_path / "p")
    assert planned(made) == {one.uid for one in demo.archive.series if one.patient_id == "NBIA-001"}
    assert {"patient 100012", "patient 100013"} < set(unknown(made).splitlines())


def test_a_row_that_the_site_leaves_out_is_found(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A series that is missing in the answer of v4 comes by v1."""
    uids = [demo.named["single"], demo.named["tail-a"]]
    site.faults.set("nbia/v4/getSeriesMetadata*", Fault(kind="hide-rows", names=(uids[1],)))
    made = plan(make_config(site, demo.idc.index, tmp_path, select={"tcia": {"series": uids}}), tmp_path)
    assert planned(made) == set(uids)
    assert made.missing == 0


def test_a_series_at_which_the_site_fails_is_listed(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """One that no answer has is planned without, and told with the site's words where it said any."""
    uids = [demo.named["single"], demo.named["tail-a"], demo.named["restricted"]]
    site.faults.set("nbia/v1/getSeriesMetaData*", Fault(kind="error-400"))
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(uids))
    made = plan(make_config(site, demo.idc.index, tmp_path, select={"tcia": {"manifest": str(listed)}}), tmp_path)
    assert planned(made) == set(uids[:2])
    assert any("1 of 3 listed series" in note and "400" in note and uids[2] in note for note in made.notes)
    assert uids[2] in unknown(made).splitlines()
    typed = make_config(site, demo.idc.index, tmp_path / "t", select={"tcia": {"series": uids}})
    with pytest.raises(ConfigError, match="1 of 3 not at TCIA"):
        plan(typed, tmp_path / "t")


def test_what_the_site_calls_a_series_and_is_none(demo: NbiaDemo, tmp_path: Path) -> None:
    """A row of the site's list whose series has no UID is left out and told at once: no task could fetch it."""
    bad = [
        msgspec.structs.replace(demo.archive.series[0], uid=uid, collection=NAMES["demo_ct_mr"])
        for uid in ("hello", "1." * 40 + "1")
    ]
    archive = msgspec.structs.replace(demo.archive, series=(*demo.archive.series, *bad))
    with NbiaSite(archive) as other:
        made = plan(make_config(other, demo.idc.index, tmp_path), tmp_path)
        assert not planned(made) & {"hello"}
        assert made.missing == 2
        assert any("2 series" in note and "no UID" in note and "'hello'" in note for note in made.notes)


@pytest.mark.parametrize("word", ["hello", "1" * 65, "1.2.x", "1..2", "12345"])
def test_rows_that_are_no_uids_end_the_plan(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, word: str) -> None:
    """A list with such a row is refused when it is planned, with file and line; so is such a `series`."""
    listed = tmp_path / "list.txt"
    listed.write_text(f"{demo.named['single']}\n{word}\n")
    with pytest.raises(ConfigError, match=r"list\.txt:2: .* is no UID"):
        plan(make_config(site, demo.idc.index, tmp_path, select={"tcia": {"manifest": str(listed)}}), tmp_path)
    with pytest.raises(ConfigError, match=r"select\.tcia\.series: .* is no UID"):
        plan(make_config(site, demo.idc.index, tmp_path, select={"tcia": {"series": [word]}}), tmp_path)
    assert site.calls() == {}


def test_a_size_that_no_series_has_is_as_none(demo: NbiaDemo, tmp_path: Path) -> None:
    """A FileSize of terabytes for a few images makes no shards that nothing can hold: it is told, and not planned."""
    first = next(one for one in demo.archive.series if one.collection == ONLY_NBIA and not one.restricted)
    huge = msgspec.structs.replace(first.files[0], size=len(first.files) * MOST_IMAGE_BYTES + 1)
    lying = msgspec.structs.replace(first, files=(huge, *first.files[1:]))
    archive = msgspec.structs.replace(
        demo.archive, series=tuple(lying if one is first else one for one in demo.archive.series)
    )
    with NbiaSite(archive) as other:
        config = make_config(other, demo.idc.index, tmp_path, select={"tcia": {"collections": [ONLY_NBIA]}})
        made = plan(config, tmp_path)
    (item,) = [item for item, _ in read_items(made) if item.id == first.uid]
    assert (item.files, item.bytes) == (len(first.files), -1)
    assert made.bytes < 1 << 30
    (note,) = [note for note in made.notes if "state what no series has" in note]
    assert f"1 series state what no series has, taken as not stated: {first.uid} ({len(first.files)} images, " in note


@given(st.none() | st.integers(-10, 1 << 62), st.none() | st.integers(-10, 1 << 62))
def test_what_is_stated_is_taken_where_a_series_may_have_it(count: int | None, size: int | None) -> None:
    """Nothing that is planned is negative but -1, 0, or more than images can have; only what is wrong is told."""
    stated, wrong = read_stated(count, size)
    assert stated.files == (count if count and 0 < count <= MOST_IMAGES else -1)
    assert stated.bytes in {size, -1}
    assert stated.bytes != 0
    assert stated.files < 0 or stated.bytes <= stated.files * MOST_IMAGE_BYTES
    assert wrong == (stated != Stated(*(each if each and each > 0 else -1 for each in (count, size))))
