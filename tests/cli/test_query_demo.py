"""Queries of the embedded demo sites, and a folder in the place of an archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import run_cli
from pipeline.demo.nbia_data import build_nbia


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, and small demo data."""
    monkeypatch.setattr("pipeline.demo.nbia_data.build_nbia", lambda root: build_nbia(root, "tiny"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDHAUL_TCIA_BASE_URL", raising=False)
    monkeypatch.delenv("MEDHAUL_ISIC_BASE_URL", raising=False)
    return tmp_path / "cache"


def test_tcia(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`demo` in the environment, or as --base-url, is answered by the embedded site; no answer of it is kept."""
    monkeypatch.setenv("MEDHAUL_TCIA_BASE_URL", "demo")
    assert run_cli(["query", "tcia", "collections", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert {"collection": "Demo NBIA Only"} in first
    monkeypatch.delenv("MEDHAUL_TCIA_BASE_URL")
    assert run_cli(["query", "tcia", "collections", "--base-url", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert not (cache / "medhaul" / "http").exists()


def test_isic(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """ISIC's demo answers queries and gives metadata too."""
    monkeypatch.setenv("MEDHAUL_ISIC_BASE_URL", "demo")
    assert run_cli(["query", "isic", "collections", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 1
    assert run_cli(["metadata", "isic", "--count", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert not (cache / "medhaul" / "http").exists()


def test_ls_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is no archive: one line says so, and one names the archives of the run, or what to do without any."""
    run = tmp_path / "my run"
    (run / "archives").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert run_cli(["ls", str(run)]) == 64
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"medhaul: {run}: the folder of a run, not an archive"
    assert said[1] == f"  -> it has no archive yet: see medhaul status '{run}'"
    for name in ("b", "a"):
        (run / "archives" / f"{name}.tar.xz").write_bytes(b"")
    assert run_cli(["ls", str(run)]) == 64
    said = capsys.readouterr().err.splitlines()
    assert said[1] == f"  -> it has a.tar.xz, b.tar.xz: medhaul ls '{run}/archives/a.tar.xz'"
    assert run_cli(["extract", str(run), str(tmp_path / "out")]) == 64
    assert capsys.readouterr().err.splitlines()[1].endswith(f": medhaul extract '{run}/archives/a.tar.xz'")
    assert run_cli(["ls", str(run / "archives")]) == 64
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("archives: a folder, not an archive")
    assert "a.tar.xz, b.tar.xz" in said[1]
    (tmp_path / "none").mkdir()
    assert run_cli(["ls", str(tmp_path / "none")]) == 64
    assert "name a .tar.xz file" in capsys.readouterr().err
