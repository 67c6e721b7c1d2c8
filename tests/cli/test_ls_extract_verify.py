"""`medhaul ls`, `extract` and `verify` as people and scripts call them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "archive"))  # the archives' builder is that room's helper

from build import Built, File, Item, build_archive, noise, smooth

from pipeline.archive.index import FailedLine, FrameLine
from pipeline.cli.main import run_cli
from pipeline.cli.progress import plain_progress, printable


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """An archive of three items, one of them failed, with an index beside."""
    frames = [
        [Item("1.2.3", "c/CT_1.2.3", [File(f"{n}.dcm", smooth(5000, n), "A2") for n in range(3)])],
        [Item("1.2.4", "c/MR_1.2.4", [File("0.dcm", noise(70_000))])],
    ]
    failed = (FailedLine(id="1.2.5", path="c/PT_1.2.5", reason="checksum", message="MD5 differs"),)
    return build_archive(tmp_path / "run" / "archives", frames, failed=failed, beside=True)


def damage(built: Built, frame: int) -> None:
    """Change a byte in the middle of a frame."""
    line = [line for line in built.lines if isinstance(line, FrameLine)][frame]
    data = bytearray(built.path.read_bytes())
    data[line.offset + line.length // 2] ^= 1
    built.path.write_bytes(data)


def test_ls_lists_items(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """Items come one a line with id and path, failed ones last with the reason."""
    assert run_cli(["ls", str(built.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["1.2.3  c/CT_1.2.3", "1.2.4  c/MR_1.2.4", "1.2.5  FAILED checksum: MD5 differs"]
    assert run_cli(["ls", "--long", str(built.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# small: 2 items, 1 failed, 4 files, 85 kB in ")
    assert "CC BY 4.0" in lines[1]


@pytest.mark.parametrize("kind", ["--items", "--files", "--frames"])
@pytest.mark.parametrize("long", [[], ["--long"]])
def test_ls_json_is_one_object_a_line(
    built: Built, capsys: pytest.CaptureFixture[str], kind: str, long: list[str]
) -> None:
    """With --json every line is an object with the fields that scripts need."""
    assert run_cli(["ls", kind, "--json", *long, str(built.path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if kind == "--items":
        assert [(row["id"], row["state"], row["files"]) for row in rows] == [
            ("1.2.3", "archived", 3),
            ("1.2.4", "archived", 1),
            ("1.2.5", "failed", 0),
        ]
    elif kind == "--files":
        assert [row["path"] for row in rows] == list(built.content)
        assert all(len(row["sha256"]) == 64 and row["evidence"] == ["md5", "size"] for row in rows)
    else:
        assert [(row["frame"], row["offset"] > 0) for row in rows] == [(0, True), (1, True)]


def test_ls_files_are_paths(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """Files are their paths, one a line; --long puts hash and size before."""
    assert run_cli(["ls", "--files", str(built.path)]) == 0
    assert capsys.readouterr().out.splitlines() == list(built.content)
    assert run_cli(["ls", "--files", "-l", str(built.path)]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:]] == list(built.content)


def test_extract_says_what_it_wrote(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One item is written, then kept; the summary counts both."""
    out = tmp_path / "out"
    assert run_cli(["extract", str(built.path), "--item", "1.2.3", str(out)]) == 0
    assert "wrote 3 of 3 files (15 kB)" in capsys.readouterr().out
    assert sorted(path.name for path in out.rglob("*.dcm")) == ["0.dcm", "1.dcm", "2.dcm"]
    assert run_cli(["extract", "-v", str(built.path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "wrote 1 of 4 files" in said
    assert "kept 3" in said
    assert "kept  c/CT_1.2.3/0.dcm" in said


def test_extract_of_nothing_is_a_mistake(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An id that is not there ends with 64, names the nearest, and makes no folder."""
    assert run_cli(["extract", str(built.path), "--item", "1.2.33", str(tmp_path / "out")]) == 64
    assert "did you mean 1.2.3" in capsys.readouterr().err
    assert run_cli(["extract", str(built.path), "--item", "1.2.5", str(tmp_path / "out")]) == 64
    assert "failed: checksum" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_extract_of_damaged_files(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged files are listed and absent, the others are there, and the command ends with 3."""
    damage(built, 1)
    assert run_cli(["extract", str(built.path), str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert "c/MR_1.2.4/0.dcm" in said.err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["0.dcm", "1.dcm", "2.dcm"]


def test_extract_force(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with other content fails with 3 and stays; --force replaces it."""
    other = tmp_path / "out" / "c" / "MR_1.2.4" / "0.dcm"
    other.parent.mkdir(parents=True)
    other.write_text("other")
    assert run_cli(["extract", str(built.path), str(tmp_path / "out")]) == 3
    assert "--force" in capsys.readouterr().err
    assert other.read_text() == "other"
    assert run_cli(["extract", "--force", str(built.path), str(tmp_path / "out")]) == 0
    assert other.read_bytes() == built.content["c/MR_1.2.4/0.dcm"]


def test_verify_fine(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound archive ends with 0 and tells its counts, failed items too."""
    assert run_cli(["verify", str(built.path)]) == 0
    said = capsys.readouterr().out
    assert "fine: 2 items, 4 files" in said
    assert "1 items of the manifest are not in it" in said


def test_verify_damaged(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged archive ends with 3 and names the item; as JSON too."""
    damage(built, 0)
    assert run_cli(["verify", str(built.path)]) == 3
    assert "1.2.3: c/CT_1.2.3/" in capsys.readouterr().out
    assert run_cli(["verify", "--json", str(built.path)]) == 3
    result = json.loads(capsys.readouterr().out)
    assert not result["fine"]
    assert "1.2.3" in {problem["item"] for problem in result["problems"]}


def test_verify_unreadable_goes_on(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unreadable archive ends with 78, but the others are verified first."""
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(built.path.read_bytes()[:1000])
    assert run_cli(["verify", str(cut), str(built.path)]) == 78
    said = capsys.readouterr()
    assert "CANNOT BE READ" in said.out
    assert "fine" in said.out
    assert "cut.tar.xz" in said.err


def test_verify_run(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run stands for all its archives; a run without any, and a folder that is no run, are mistakes."""
    run = tmp_path / "run"
    assert run_cli(["verify", str(run)]) == 64
    (run / "run.json").write_text("{}")
    shutil.copy(built.path, run / "archives" / "other.tar.xz")
    capsys.readouterr()
    assert run_cli(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("fine:") == 2
    shutil.rmtree(run / "archives")
    assert run_cli(["verify", str(run)]) == 64


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path where nothing is ends with 64 and a line that names it, for each command."""
    gone = str(tmp_path / "gone.tar.xz")
    for arguments in (["ls", gone], ["verify", gone], ["extract", gone, str(tmp_path)]):
        assert run_cli(arguments) == 64
        assert "gone.tar.xz: no such archive" in capsys.readouterr().err


def test_plain_progress_is_seldom() -> None:
    """Short work writes nothing; long work a line each ten seconds."""
    now = 0.0
    written: list[str] = []
    show = plain_progress("work", written.append, clock=lambda: now)
    for step in range(100):
        now = step / 4
        show(step, 100)
    assert written == ["work: 40 B of 100 B (40 %)", "work: 80 B of 100 B (80 %)"]


def test_control_characters_are_escaped() -> None:
    """A path cannot command the terminal that shows it."""
    assert printable("a\x1b[2J\nb\u202e é") == "a\\x1b[2J\\nb\\u202e é"
