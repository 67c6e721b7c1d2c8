"""The demo site for a config: `sources.idc.s3_endpoint = "demo"` starts it when it is needed.

`sources.tcia.base_url = "demo"` starts one that is NBIA too; the IDC that goes with it is its own, unless the config
names another. `sources.isic.base_url = "demo"` starts one that is the ISIC Archive. Data and server belong to the run's
storage root: `<storage.root>/.demo-site/`, `.demo-tcia/` or `.demo-isic/`. The server listens on 127.0.0.1 only and
ends by itself after `LIFETIME` seconds; the next command that needs it starts it again. Planning needs the IDC's index
only, and NBIA or ISIC from a server within the planning process; a dry run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.demo.data import build_demo
from pipeline.demo.site import STATS_PATH
from pipeline.demo.workers import environment
from pipeline.errors import SiteUnavailableError, StorageError
from pipeline.settings import Config, SourceIdc

LIFETIME = 1800
START_SECONDS = 60.0
INDEX = "idc_index.parquet"
_SERVICES = "/nbia-api/services"
_API_V2 = "/api/v2"
Kind = Literal["idc", "nbia", "isic"]
_FOLDERS: dict[Kind, str] = {"idc": ".demo-site", "nbia": ".demo-tcia", "isic": ".demo-isic"}


def resolve_demo(config: Config) -> Config:
    """Return the config with the demo site's address and index in place of the word `demo`; others unchanged.

    Raises
    ------
    SiteUnavailableError
        When the site does not start.
    StorageError
        When its folder cannot be made or written.
    """
    kind = choose_kind(config)
    if kind is None:
        return config
    folder = Path(config.storage.root) / _FOLDERS[kind]
    return _replace(config, folder / "data", ensure_site(folder, kind), kind)


@contextlib.contextmanager
def plan_demo(config: Config, *, dry_run: bool) -> Iterator[Config]:
    """Yield the config with the demo's index to plan from; `dry_run` leaves no file behind.

    Of the IDC nothing is served; NBIA and ISIC, which planning has to ask, from threads of this process.

    Raises
    ------
    StorageError
        When the index cannot be written.
    """
    kind = choose_kind(config)
    if kind is None:
        yield config
        return
    data = Path(config.storage.root) / _FOLDERS[kind] / "data"
    with contextlib.ExitStack() as stack:
        if dry_run and not data.exists():
            with _storage_errors(Path(tempfile.tempdir or "temporary files")):
                data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medhaul-demo-"))) / "data"
                _build(data, kind)
        elif not dry_run:
            with _locked(data.parent):
                _ensure_data(data, kind)
        if kind == "nbia":
            from pipeline.demo.nbia import NbiaSite
            from pipeline.demo.nbia_records import load_archive

            yield _replace(config, data, stack.enter_context(NbiaSite(load_archive(data))).url, kind)
        elif kind == "isic":
            from pipeline.demo.isic import IsicSite
            from pipeline.demo.isic_data import load_isic

            yield _replace(config, data, stack.enter_context(IsicSite(load_isic(data))).url, kind)
        else:
            yield _replace(config, data, config.sources.idc.s3_endpoint, kind)


def ensure_site(folder: Path, kind: Kind = "idc") -> str:
    """Return the URL of the site that serves `folder`, starting it if it does not answer. Raises as `resolve_demo`."""
    with _locked(folder):
        port_file = folder / "port"
        if (port := _answering(port_file)) is not None:
            return f"http://127.0.0.1:{port}"
        data = folder / "data"
        _ensure_data(data, kind)
        with _storage_errors(folder):
            port_file.unlink(missing_ok=True)
            module = "pipeline.demo" if kind == "idc" else f"pipeline.demo.{kind}_process"
            root = data / "buckets" if kind == "idc" else data
            _start(module, root, port_file, folder / "site.log")
        end = time.monotonic() + START_SECONDS
        while (port := _answering(port_file)) is None:
            if time.monotonic() > end:
                raise SiteUnavailableError("the demo site does not start", hint=f"see {folder / 'site.log'}")
            time.sleep(0.05)
        return f"http://127.0.0.1:{port}"


def choose_kind(config: Config) -> Kind | None:
    """Choose which demo site a config needs, if any. Pure."""
    if config.select.isic is not None:
        return "isic" if config.sources.isic.base_url == "demo" else None
    if config.select.tcia is not None and config.sources.tcia.base_url == "demo":
        return "nbia"
    return "idc" if config.sources.idc.s3_endpoint == "demo" else None


def _replace(config: Config, data: Path, url: str, kind: Kind) -> Config:
    """The config with the site's addresses; an IDC that it names itself stays."""
    idc, tcia, default = config.sources.idc, config.sources.tcia, SourceIdc()
    if kind == "isic":
        isic = msgspec.structs.replace(config.sources.isic, base_url=url + _API_V2)
        return msgspec.structs.replace(config, sources=msgspec.structs.replace(config.sources, isic=isic))
    nbia = kind == "nbia"
    if nbia:
        tcia = msgspec.structs.replace(tcia, base_url=url + _SERVICES, nlst_base_url="")
    if idc.s3_endpoint == "demo" or (idc.s3_endpoint == default.s3_endpoint and idc.index == default.index):
        index = str((data / "idc" if nbia else data) / INDEX)
        idc = msgspec.structs.replace(idc, index=index, s3_endpoint=url, mirror_endpoint="")
    return msgspec.structs.replace(config, sources=msgspec.structs.replace(config.sources, idc=idc, tcia=tcia))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: among commands of one machine, since the demo is not for clusters."""
    with contextlib.ExitStack() as stack:
        with _storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ensure_data(data: Path, kind: Kind) -> None:
    if data.exists():  # whole or not at all
        return
    fresh = data.with_name("data.new")
    with _storage_errors(data):
        shutil.rmtree(fresh, ignore_errors=True)
        _build(fresh, kind)
        fresh.rename(data)


def _build(data: Path, kind: Kind) -> None:
    if kind == "nbia":
        from pipeline.demo.nbia_data import build_nbia

        build_nbia(data)
    elif kind == "isic":
        from pipeline.demo.isic_data import build_isic

        build_isic(data)
    else:
        build_demo(data)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Every failure of the operating system here is one of storage."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise StorageError(
            f"{where}: {error.strerror}", hint="the demo needs a folder that can be written and some 100 MB"
        ) from error


def stop_site(folder: Path) -> None:
    """End the site of `folder`, if it runs."""
    pid_file = folder / "pid"
    if _answering(folder / "port") is not None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), 15)


def _start(module: str, root: Path, port_file: Path, log: Path) -> None:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", module, str(root), "--port-file", str(port_file),
                "--parent-pid", "1", "--lifetime", str(LIFETIME),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/",
            env=environment(),
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
