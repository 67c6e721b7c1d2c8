"""Licence texts of TCIA's collections: one for each licence that a collection has, asked for as the settings say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipeline.config import parse_config
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NbiaDemo, build_nbia
from pipeline.errors import SiteUnavailableError
from pipeline.manifest import Manifest
from pipeline.plan.tcia import TciaPlanSource
from pipeline.reduce.tables import write_tables
from pipeline.sources.tcia_licence import fetch_texts, name_text
from tests.plan.test_plan_tcia import make_config, plan
from tests.transport.server import Server, answer

BOTH = "Two Licences"
BY3, BY4 = (f"Creative Commons Attribution {n}.0 " for n in ("3", "4"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data, with a collection of two licences that only NBIA has."""
    made = build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")
    public = [one for one in made.archive.series if one.uid in made.places.nbia_only and not one.restricted][:2]
    mixed = [
        msgspec.structs.replace(one, collection=BOTH, licence=licence)
        for one, licence in zip(public, ("CC BY 3.0", "CC BY 4.0"), strict=True)
    ]
    others = [one for one in made.archive.series if one.uid not in {each.uid for each in public}]
    return msgspec.structs.replace(made, archive=msgspec.structs.replace(made.archive, series=(*others, *mixed)))


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


@pytest.mark.parametrize("group", ["licence", "run"])
def test_an_archive_has_the_texts_of_its_items_licences(
    site: NbiaSite, demo: NbiaDemo, tmp_path: Path, group: str
) -> None:
    """Of a collection with two licences, series of one never lie beside the text of the other."""
    select = {"tcia": {"collections": [BOTH]}}
    made = plan(make_config(site, demo.idc.index, tmp_path, select=select, archive={"group_by": group}), tmp_path)
    assert made.run is not None
    names = sorted(made.run.read_licences())
    assert [name.startswith(f"{BOTH} / {licence}") for name, licence in zip(names, (BY3, BY4), strict=True)] == [
        True
    ] * 2
    made.run.archives.mkdir()
    for archive in made.archives:
        write_tables(made.run, Manifest(made.run), archive, [], {})
        text = (made.run.archives / f"{archive.name}.licence.txt").read_text()
        licences = (made.run.archives / f"{archive.name}.licences.csv").read_text()
        for long, short in ((BY3, "CC BY 3.0"), (BY4, "CC BY 4.0")):
            assert (long in licences) == (short in text) == (f"{BOTH} / {long}" in text)
    assert len(made.archives) == (2 if group == "licence" else 1)


def test_texts_end_in_time_and_name_what_is_missing() -> None:
    """Without time left nothing is asked for; a token that cannot be had costs its texts only."""
    wanted = [("A", "", "1.2"), ("B", "CC", "1.3")]

    def nobody(_: str) -> str:
        raise AssertionError

    texts, problems = fetch_texts(wanted, nobody, nobody, seconds=0, stop=threading.Event())
    assert (texts, [each.partition(":")[0] for each in problems]) == ({}, ["A", "B / CC"])

    def refuse(_: str) -> str:
        raise SiteUnavailableError("no token")

    _, problems = fetch_texts(wanted, lambda _: "http://127.0.0.1:9", refuse, seconds=5, stop=threading.Event())
    assert problems == ["A: no token", "B / CC: no token"]
    assert name_text("A", "") == "A"


def test_an_account_s_token_goes_with_the_question_to_trusted_hosts_only(
    demo: NbiaDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only an account may have has its text too; no host but those of the settings gets the token."""
    monkeypatch.setenv("MEDHAUL_TCIA_USERNAME", "somebody")
    monkeypatch.setenv("MEDHAUL_TCIA_PASSWORD", tmp_path.name)
    server, other = Server(), Server()
    try:
        server.on("/api/oauth/token", answer(200, b'{"access_token":"secret-1","expires_in":7200}', Connection="close"))
        for each in (server, other):
            each.on("/api/v4/getImage", answer(400, b"No secret-1 here"))
        config = parse_config(
            {
                "run": {"name": "r"}, "storage": {"root": str(tmp_path)}, "select": {"tcia": {"collections": ["A"]}},
                "sources": {
                    "tcia": {"base_url": f"{server.base}/api", "route": "nbia"},
                    "idc": {"index": str(demo.idc.index)},
                },
            },
            "test",
        )  # fmt: skip
        with TciaPlanSource(config, cache_dir=tmp_path / "cache") as source:
            texts, problems = fetch_texts(
                [("A", "CC", "1.2"), ("B", "CC", "1.3")],
                lambda name: f"{(server if name == 'A' else other).base}/api",
                source._bearer,
                seconds=20,
                stop=threading.Event(),
            )
    finally:
        server.close()
        other.close()
    assert texts == {}
    assert len(problems) == 2
    assert "secret-1" not in "".join(problems)
    (image,) = [one for one in server.requests if "getImage" in one.target]
    assert image.headers["authorization"] == "Bearer secret-1"
    assert ["authorization" in one.headers for one in other.requests] == [False]
