"""The demo site as a process: it serves, tells what it was asked, and never outlives who started it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.demo import encode
from pipeline.demo.faults import Fault, FaultPlan, Rule
from pipeline.demo.process import main, start_site
from pipeline.errors import SiteUnavailableError

SOURCE = str(Path(encode.__file__).parents[2])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one object in one bucket."""
    (tmp_path / "root" / "idc-open-data" / "s").mkdir(parents=True)
    (tmp_path / "root" / "idc-open-data" / "s" / "i.dcm").write_bytes(b"x" * 1000)
    return tmp_path / "root"


def status_of(port: int, path: str) -> int:
    """The status that GET of a path is answered by."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_a_site_process_serves_and_counts(root):
    """The process serves the folder, takes new faults at once, counts requests, and has ended after the block."""
    with start_site(root, "--multipart-from", "500", "--part-size", "300") as site:
        assert status_of(site.port, "/idc-open-data/s/i.dcm") == 200
        site.set_faults(FaultPlan((Rule("s/*", Fault(kind="slow-down", times=1)),)))
        assert [status_of(site.port, "/idc-open-data/s/i.dcm") for _ in range(2)] == [503, 200]
        stats = site.stats()
        assert stats.keys == {"GET idc-open-data/s/i.dcm": 3}
        assert stats.faults == {"slow-down": 1}
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
        connection.request("HEAD", "/idc-open-data/s/i.dcm")
        assert connection.getresponse().headers["ETag"].endswith('-4"')
        connection.close()
    assert site.process.returncode == 0


def test_a_site_that_cannot_start_says_so(tmp_path):
    """A folder that is not there is an error of `start_site`, and exit code 73 with a hint from the command."""
    with pytest.raises(SiteUnavailableError), start_site(tmp_path / "nowhere"):
        pass
    assert main([str(tmp_path / "nowhere")]) == 73


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches the end of a process in /proc")
def test_a_site_ends_with_its_parent(root, tmp_path):
    """When the parent is killed the site ends by itself within seconds."""
    port_file = tmp_path / "port"
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'pipeline.demo', {str(root)!r}, '--port-file', "
        f"{str(port_file)!r}], stdout=subprocess.DEVNULL)\nprint(child.pid, flush=True)\ntime.sleep(60)"
    )
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        end = time.monotonic() + 20
        while not port_file.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert status_of(int(port_file.read_text()), "/idc-open-data/s/i.dcm") == 200
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def test_a_site_ends_after_its_lifetime(root):
    """A lifetime of a moment is over in a moment, with exit code 0."""
    command = [sys.executable, "-m", "pipeline.demo", str(root), "--lifetime", "0.1"]
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run(command, env=environ, capture_output=True, timeout=20, check=True)
    assert b"http://127.0.0.1:" in done.stdout


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
