"""A task's share of what NBIA may have: over all tasks at a time never more than is set, and at least one for each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_kit import make_item

from pipeline.cli import task as task_module
from pipeline.cli.main import run_cli
from pipeline.cli.plan import set_route
from pipeline.cli.submitting import nbia_share
from pipeline.cli.task import choose_share
from pipeline.config import read_config
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import ONLY_NBIA, build_nbia
from pipeline.model import Entry, IdcLocation, Location, NbiaLocation
from pipeline.settings import SourceTcia
from pipeline.sources.fetch import nbia_origins
from pipeline.transport.pool import Origin


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 1024))
def test_the_shares_of_all_tasks_are_within_the_bound(budget: int, tasks: int, bound: int) -> None:
    """Unless there are more tasks than the bound, each of which has one."""
    tasks = min(tasks, budget)
    connections = budget // tasks
    share = choose_share(connections, budget, bound)
    assert 1 <= share <= connections
    assert share * tasks <= max(bound, tasks)


@pytest.mark.parametrize(
    ("connections", "budget", "bound", "share"),
    [
        (16, 64, 16, 4),
        (64, 64, 16, 16),
        (4, 64, 16, 1),
        (1, 64, 16, 1),
        (8, 16, 16, 8),
        (4, 8, 16, 4),
        (33, 100, 16, 5),
    ],
)
def test_a_share_is_as_large_as_the_task_s_part_of_the_run(
    connections: int, budget: int, bound: int, share: int
) -> None:
    """Also of a task that was given more, since fewer run."""
    assert choose_share(connections, budget, bound) == share


def test_an_attempt_says_what_of_its_connections_may_be_to_nbia(tmp_path: Path, capsys, monkeypatch) -> None:
    """A run from TCIA names the smaller number, at a dry run and when it is submitted; one from elsewhere does not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    demo = build_nbia(tmp_path / "nbia", "tiny")
    config = tmp_path / "c.toml"
    with NbiaSite(demo.archive) as site:
        config.write_text(
            f'[run]\nname = "r"\n[storage]\nroot = "{tmp_path}/runs"\n[select.tcia]\ncollections = ["{ONLY_NBIA}"]\n'
            f'[sources.tcia]\nbase_url = "{site.url}/nbia-api/services"\nroute = "nbia"\nconnections = 3\n'
            f'[sources.idc]\nindex = "{demo.idc.index}"\n[limits]\ntasks = 2\n[shards]\ncount = 2\n'
        )
        words = ["submit", "--scheduler", "local", "--dry-run", str(config)]
        assert run_cli(words) == 0
        assert "1 at a time with 64 connections each (3 of them to NBIA), then" in capsys.readouterr().out
        assert run_cli(["plan", str(config)]) == 0
        assert run_cli(words) == 0
        assert "64 connections each (3 of them to NBIA), then" in capsys.readouterr().out
    parsed = read_config(config)
    assert nbia_share("idc", parsed, 32) == 0
    assert nbia_share("tcia", set_route(parsed, "idc"), 32) == 0
    assert [nbia_share("tcia", parsed, each) for each in (64, 32)] == [3, 1]


def entry(number: int, where: Location) -> Entry:
    """An entry that lies there."""
    return Entry(number, 0, 0, 1, msgspec.structs.replace(make_item(number), location=where))


def test_all_hosts_of_nbia_are_bounded_and_no_other() -> None:
    """Those of the settings, and those that the manifest names; the demo has an address only once it runs."""
    entries = [
        entry(0, NbiaLocation("http://old.example:8080/nbia-api/services")),
        entry(1, NbiaLocation("demo")),
        entry(2, IdcLocation("b", "u")),
    ]
    settings = SourceTcia(base_url="https://Nbia.example/nbia-api/services", nlst_base_url="")
    assert nbia_origins(settings, entries) == {
        Origin("https", "nbia.example", 443), Origin("http", "old.example", 8080)
    }  # fmt: skip
    both = nbia_origins(SourceTcia(), [])
    assert {each.host for each in both} == {"nbia.cancerimagingarchive.net", "nlst.cancerimagingarchive.net"}
    assert nbia_origins(SourceTcia(base_url="demo", nlst_base_url=""), entries[1:]) == frozenset()


def test_the_pool_of_a_task_knows_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of a run that may have two connections to NBIA makes its pool so."""
    from run_kit import make_plan

    from pipeline.task.shard import describe_life

    class SeenError(Exception):
        """The pool was made."""

    made: list[dict[str, object]] = []

    def note(**options: object) -> None:
        made.append(options)
        raise SeenError

    monkeypatch.setattr("pipeline.transport.pool.ConnectionPool", note)
    item = entry(0, NbiaLocation("http://127.0.0.1:9/s")).item
    sources = {"tcia": {"connections": 2, "base_url": "http://127.0.0.1:8/s", "nlst_base_url": ""}}
    plan = make_plan(tmp_path, [item], sources=sources, limits={"connections": 8, "tasks": 2})
    assert plan.run is not None
    for connections, budget, bound in ((0, 0, 1), (8, 8, 2), (4, 8, 1), (8, 16, 1)):
        with pytest.raises(SeenError):
            task_module.do_shard(plan.run, 0, describe_life(0, {}), connections, budget=budget)
        assert made[-1]["site_limit"] == bound
        assert made[-1]["site"] == {Origin("http", "127.0.0.1", 8), Origin("http", "127.0.0.1", 9)}
