"""The embedded site of a config: planning builds its index only, a dry run leaves nothing, its faults are storage's."""

from __future__ import annotations

import http.client
import tempfile
from pathlib import Path

import pytest

from pipeline.cli.main import run_cli
from pipeline.config import read_config
from pipeline.demo import embed
from pipeline.demo.data import DemoData, build_demo
from pipeline.errors import StorageError

CONFIG = """
[run]
name = "demo"
[storage]
root = "runs"
[select.idc]
content = "both"
[sources.idc]
s3_endpoint = "demo"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config that asks for the embedded site, which is small here; temporary files go below `tmp_path` too."""

    def build_tiny(root: Path) -> DemoData:
        return build_demo(root, "tiny")

    monkeypatch.setattr(embed, "build_demo", build_tiny)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = tmp_path / "demo.toml"
    path.write_text(CONFIG)
    return path


def test_dry_run_writes_nothing_and_starts_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run tells the plan; no file is left behind and no process was started."""
    started: list[object] = []
    monkeypatch.setattr(embed.subprocess, "Popen", lambda *words, **_: started.append(words))
    before = sorted(config.parent.rglob("*"))
    assert run_cli(["plan", "--dry-run", str(config)]) == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert sorted(config.parent.rglob("*")) == before
    assert started == []


def test_dry_run_plans_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest of the dry run is that of the plan, which starts no server either; then the data is used again."""

    def manifest() -> str:
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("manifest"))

    run_cli(["plan", "--dry-run", str(config)])
    dry = manifest()
    assert run_cli(["plan", str(config)]) == 0
    assert manifest() == dry
    site = config.parent / "runs" / ".demo-site"
    assert (site / "data" / "idc_index.parquet").is_file()
    assert not (site / "port").exists()
    run_cli(["plan", "--dry-run", str(config)])
    assert manifest() == dry


def test_site_serves_and_stops(config: Path) -> None:
    """For the tasks the site answers at the address that takes the place of `demo`, once for all that ask."""
    settings = read_config(config)
    folder = Path(settings.storage.root) / ".demo-site"
    resolved = embed.resolve_demo(settings).sources.idc
    try:
        assert embed.resolve_demo(settings).sources.idc == resolved
        connection = http.client.HTTPConnection(resolved.s3_endpoint.removeprefix("http://"), timeout=10)
        connection.request("GET", "/idc-open-data?list-type=2")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        embed.stop_site(folder)
    assert Path(resolved.index).is_file()


@pytest.mark.parametrize("words", [["plan"], ["submit", "--scheduler", "local"]])
def test_unusable_root_is_a_storage_error(config: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """A storage root that cannot be made ends with 73 and its name, not with a fault of medhaul."""
    (config.parent / "runs").write_text("a file is in the way")
    assert run_cli([*words, str(config)]) == 73
    assert str(config.parent / "runs") in capsys.readouterr().err
    with pytest.raises(StorageError):
        embed.resolve_demo(read_config(config))


def test_no_temporary_folder_is_a_storage_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run without anywhere to build the index ends with 73."""
    monkeypatch.setattr(tempfile, "tempdir", str(config / "nowhere"))
    assert run_cli(["plan", "--dry-run", str(config)]) == 73
    assert "nowhere" in capsys.readouterr().err


def test_demo_into_a_file_is_a_storage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`medhaul demo` to a folder that cannot be made ends with 73 and its name."""
    (tmp_path / "file").write_text("in the way")
    assert run_cli(["demo", str(tmp_path / "file" / "out")]) == 73
    assert "file" in capsys.readouterr().err
