"""The demo NBIA in several processes: one port, counts of all, faults in all, and no process left behind."""

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
from test_nbia_client import Api

from pipeline.demo import encode
from pipeline.demo.faults import Fault, FaultPlan, Rule
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NbiaDemo, build_nbia
from pipeline.demo.nbia_process import main, start_nbia
from pipeline.demo.nbia_zip import ZipOptions
from pipeline.demo.workers import Workers
from pipeline.errors import ConfigError

SOURCE = str(Path(encode.__file__).parents[2])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture(scope="module")
def running(demo: NbiaDemo) -> Iterator[Workers]:
    """Two processes that serve them."""
    with start_nbia(Path(demo.archive.root), processes=2) as site:
        yield site
    assert [worker.returncode for worker in site.workers] == [0, 0]


def test_processes_serve_one_port(running, demo):
    """Every series comes as from one process, token and all, objects too, and calls are counted over the processes."""
    uids = [one.uid for one in demo.archive.series if not one.restricted]
    api = Api(running.url)
    api.login()
    before = running.calls()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda uid: api.get("v2/getImageWithMD5Hash", SeriesInstanceUID=uid), uids * 3))
    assert {answer.status for answer in got} == {200}
    with NbiaSite(demo.archive) as alone:
        whole = [Api(alone.url).get("v1/getImageWithMD5Hash", SeriesInstanceUID=uid).body for uid in uids]
    assert [answer.body for answer in got] == whole * 3
    assert running.calls()["v2/getImageWithMD5Hash"] - before.get("v2/getImageWithMD5Hash", 0) == len(uids) * 3
    series = demo.idc.series[0]
    assert api.ask("GET", f"/{series.bucket}/{series.files[0].key}").status == 200


def test_faults_reach_all_processes(running):
    """A plan of faults holds in each process."""
    api = Api(running.url)
    running.set_faults(FaultPlan((Rule("nbia/v4/getSeries*", Fault(kind="error-502")),)))
    with ThreadPoolExecutor(8) as pool:
        assert {got.status for got in pool.map(lambda _: api.get("v4/getSeries"), range(40))} == {502}
    running.set_faults(FaultPlan())
    assert api.get("v4/getSeries").status == 200


def test_prebuilt_zips(demo, tmp_path):
    """Prebuilt zips are all there before anybody asks, and are what is served."""
    with NbiaSite(demo.archive, zips=tmp_path) as site:
        site.prebuild([ZipOptions(md5=True)])
        made = {path.name.partition(".001")[0]: path for path in tmp_path.iterdir()}
        assert set(made) == set(site.catalogue.series)
        uid = demo.named["single"]
        assert Api(site.url).get("v1/getImageWithMD5Hash", SeriesInstanceUID=uid).body == made[uid].read_bytes()
    assert list(tmp_path.iterdir())


def test_a_folder_without_a_catalogue(tmp_path):
    """Nothing to serve is an error of `start_nbia`, and exit code 78 from the command."""
    with pytest.raises(ConfigError), start_nbia(tmp_path):
        pass
    assert main([str(tmp_path)]) == ConfigError.exit_code


def test_the_command_serves_and_ends(tmp_path):
    """The command makes the data, serves, and ends with its workers at SIGTERM with exit code 0."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "pipeline.demo.nbia_process", str(tmp_path / "root"), "--build", "tiny"]
    command += ["--port-file", str(port_file), "--latency", "0.01", "--faults", str(tmp_path / "faults.json")]
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        port = int(port_file.read_text())
        assert len(Api(f"http://127.0.0.1:{port}").get("v4/getCollectionValues").rows) == 4
        plan = FaultPlan((Rule("nbia/*", Fault(kind="error-504")),))
        (tmp_path / "faults.json").write_bytes(msgspec.json.encode(plan))
        assert Api(f"http://127.0.0.1:{port}").get("v4/getCollectionValues").status == 504
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        Api(f"http://127.0.0.1:{port}").get("v4/getCollectionValues")
