"""The demo site for a config: `sources.idc.s3_endpoint = "demo"` starts it when it is needed.

Data and server belong to the run's storage root: `<storage.root>/.demo-site/`. The server listens on 127.0.0.1 only and
ends by itself after `LIFETIME` seconds; the next command that needs it starts it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from pipeline.config import Config, Sources
from pipeline.demo.data import build_demo
from pipeline.demo.site import STATS_PATH
from pipeline.errors import SiteUnavailableError

LIFETIME = 1800
START_SECONDS = 60.0


def resolve_demo(config: Config) -> Config:
    """Return the config with the demo site's address and index in place of the word `demo`; others unchanged.

    Raises
    ------
    SiteUnavailableError
        When the site does not start.
    """
    if config.sources.idc.s3_endpoint != "demo":
        return config
    folder = Path(config.storage.root) / ".demo-site"
    url = ensure_site(folder)
    idc = msgspec.structs.replace(
        config.sources.idc, index=str(folder / "data" / "idc_index.parquet"), s3_endpoint=url, mirror_endpoint=""
    )
    return msgspec.structs.replace(config, sources=Sources(idc=idc))


def ensure_site(folder: Path) -> str:
    """Return the URL of the site that serves `folder`, starting it if it does not answer."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # commands of one machine; the demo is not for clusters
        port_file = folder / "port"
        if (port := _answering(port_file)) is not None:
            return f"http://127.0.0.1:{port}"
        data = folder / "data"
        if not (data / "idc_index.parquet").exists():
            fresh = folder / "data.new"
            shutil.rmtree(fresh, ignore_errors=True)
            build_demo(fresh)
            fresh.rename(data)
        port_file.unlink(missing_ok=True)
        _start(data / "buckets", port_file, folder / "site.log")
        end = time.monotonic() + START_SECONDS
        while (port := _answering(port_file)) is None:
            if time.monotonic() > end:
                raise SiteUnavailableError("the demo site does not start", hint=f"see {folder / 'site.log'}")
            time.sleep(0.05)
        return f"http://127.0.0.1:{port}"


def stop_site(folder: Path) -> None:
    """End the site of `folder`, if it runs."""
    pid_file = folder / "pid"
    if _answering(folder / "port") is not None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), 15)


def _start(buckets: Path, port_file: Path, log: Path) -> None:
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    with log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "pipeline.demo", str(buckets), "--port-file", str(port_file),
                "--parent-pid", "1", "--lifetime", str(LIFETIME),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    port_file.with_name("pid").write_text(str(process.pid))


def _answering(port_file: Path) -> int | None:
    """The port in the file, if a demo site answers there."""
    try:
        port = int(port_file.read_text())
    except (OSError, ValueError):
        return None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", STATS_PATH)
        return port if connection.getresponse().status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
