"""The demo ISIC Archive in processes of its own, and for a config whose base URL is `demo`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from test_isic_lists import Api

from pipeline.config import read_config
from pipeline.demo import embed
from pipeline.demo.faults import Fault, FaultPlan, Rule
from pipeline.demo.isic_bodies import make_body
from pipeline.demo.isic_data import IsicDemo, build_isic
from pipeline.demo.isic_process import IsicProcesses, main, start_isic
from pipeline.errors import ConfigError
from pipeline.sources.isic_client import IsicClient

SOURCE = str(Path(embed.__file__).parents[2])
CONFIG = """
[run]
name = "demo"
[storage]
root = "runs"
[select.isic]
collections = ["65"]
[sources.isic]
base_url = "demo"
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> IsicDemo:
    """The demo data of 20,000 images."""
    return build_isic(tmp_path_factory.mktemp("isic"), "many")


@pytest.fixture(scope="module")
def running(demo: IsicDemo) -> Iterator[IsicProcesses]:
    """Two processes that serve them."""
    with start_isic(demo.root, processes=2) as site:
        yield site
    assert [worker.returncode for worker in site.workers] == [0, 0]


def test_processes_serve_one_port(running, demo):
    """Lists and files come as from one process, and calls are counted over both."""
    api, images = Api(running.url), demo.archive.images[:60]
    page = api.get("images/").json
    assert (page["count"], page["results"][0]["isic_id"]) == (20_000, images[0].isic_id)
    before = running.calls().get("file", 0)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda row: api.ask("GET", row["files"]["full"]["url"]).body, page["results"][:60]))
    assert got == [make_body(image) for image in images]
    assert running.calls()["file"] - before == 60


def test_faults_reach_all_processes(running):
    """A plan of faults holds in each process."""
    running.set_faults(FaultPlan((Rule("isic/images", Fault(kind="error-502")),)))
    with ThreadPoolExecutor(8) as pool:
        assert {got.status for got in pool.map(lambda _: Api(running.url).get("images/", limit=1), range(40))} == {502}
    running.set_faults(FaultPlan())
    assert Api(running.url).get("images/", limit=1).status == 200


def test_latency(demo):
    """Every answer begins as late as asked for."""
    with start_isic(demo.root, latency=0.2) as site:
        start = time.monotonic()
        assert Api(site.url).get("images/", limit=1).status == 200
        assert Api(site.url).ask("GET", f"/isic-archive/{demo.archive.images[0].key}").status == 200
        assert time.monotonic() - start >= 0.4


def test_a_folder_without_a_catalogue(tmp_path):
    """Nothing to serve is an error of `start_isic`, and exit code 78 from the command."""
    with pytest.raises(ConfigError), start_isic(tmp_path):
        pass
    (tmp_path / "isic_archive.json").write_text("[]")
    assert main([str(tmp_path)]) == ConfigError.exit_code


def test_the_command_serves_and_ends(tmp_path):
    """The command makes the data, serves, obeys a faults file, and ends with 0 and its workers at SIGTERM."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "pipeline.demo.isic_process", str(tmp_path / "root"), "--build", "small"]
    command += ["--port-file", str(port_file), "--faults", str(tmp_path / "faults.json"), "--sizes", "absent"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCE}, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        api = Api(f"http://127.0.0.1:{int(port_file.read_text())}")
        assert {row["files"]["full"]["size"] for row in api.get("images/").json["results"]} == {None}
        plan = FaultPlan((Rule("isic/*", Fault(kind="error-504")),))
        (tmp_path / "faults.json").write_bytes(msgspec.json.encode(plan))
        assert api.get("stats/").status == 504
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        api.get("stats/")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config that asks for the demo ISIC."""
    path = tmp_path / "demo.toml"
    path.write_text(CONFIG)
    return path


def test_a_config_gets_a_running_site(config):
    """For the tasks the site answers at the address that takes the place of `demo`, once for all that ask."""
    settings = read_config(config)
    folder = Path(settings.storage.root) / ".demo-isic"
    try:
        resolved = embed.resolve_demo(settings).sources
        assert embed.resolve_demo(settings).sources == resolved
        with IsicClient(resolved.isic.base_url) as isic:
            assert isic.count(collections=[65]) == 30
        assert resolved.idc == settings.sources.idc
    finally:
        embed.stop_site(folder)


@pytest.mark.parametrize("dry_run", [True, False])
def test_planning_asks_a_site_of_its_own(config, dry_run):
    """While planning lasts the demo answers, no process is started, and a dry run leaves no file."""
    settings = read_config(config)
    before = sorted(config.parent.rglob("*"))
    with embed.plan_demo(settings, dry_run=dry_run) as planned:
        url = planned.sources.isic.base_url
        with IsicClient(url) as isic:
            assert len(list(isic.images(collections=[65]))) == 30
    with pytest.raises(ConnectionRefusedError):
        Api(url.removesuffix("/api/v2")).get("stats/")
    assert (sorted(config.parent.rglob("*")) == before) == dry_run
    assert not (Path(settings.storage.root) / ".demo-isic" / "port").exists()


def test_another_archive_stays(config):
    """A config that names an archive is left alone, whatever it says of the IDC."""
    text = CONFIG.replace('base_url = "demo"', 'base_url = "http://127.0.0.1:9/api/v2"')
    config.write_text(text + '[sources.idc]\ns3_endpoint = "demo"\n')
    settings = read_config(config)
    assert embed.resolve_demo(settings) == settings
