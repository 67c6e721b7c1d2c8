"""What the commands tell people to type works in the shell that they type it in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.cli.common import render_command


def test_commands_are_told_by_name_where_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `medhaul` on PATH its name is enough; paths are quoted."""
    program = tmp_path / "medhaul"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert render_command("medhaul", "status", "a b") == "medhaul status 'a b'"


def test_commands_are_told_by_path_where_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout's own environment is seldom on PATH: what is told must work all the same."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/medhaul"])
    assert render_command("medhaul", "status", "run") == f"{tmp_path}/bin/medhaul status run"
