"""`medhaul ls`, `extract` and `verify` as people and scripts call them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from pipeline.archive.index import ArchiveLine, FailedLine, FrameLine
from pipeline.cli.main import run_cli
from pipeline.cli.progress import plain_progress, printable
from pipeline.rundir import RunDir
from tests.archive.build import Built, File, Item, build_archive, noise, smooth, write_beside
from tests.schedulers.fake_run import SHA, write_run


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
    """Items come as a table of files, size, id and path, failed ones last with the reason."""
    assert run_cli(["ls", str(built.path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["files", "size", "item", "path"]
    assert [line.split(None, 4) for line in lines] == [
        ["3", "15", "kB", "1.2.3", "c/CT_1.2.3"],
        ["1", "70", "kB", "1.2.4", "c/MR_1.2.4"],
        ["FAILED", "-", "1.2.5", "c/PT_1.2.5", "checksum: MD5 differs"],
    ]
    assert run_cli(["ls", "--long", str(built.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# small: 2 items, 1 failed, 4 files, 85 kB in ")
    assert lines[1].split() == ["files", "size", "frame", "licence", "item", "path"]
    assert "CC BY 4.0" in lines[2]


@pytest.mark.parametrize("long", [[], ["--long"]])
@pytest.mark.parametrize("kind", ["--items", "--files", "--frames"])
def test_ls_aligns_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, long: list[str]) -> None:
    """Every cell begins, or every number ends, under its column's name, however long the values are."""
    frames = [
        [
            Item(
                "1.2." + "9" * length,
                f"c/CT_{length}",
                [File(f"{n}.dcm", noise(length * 99, n)) for n in range(length)],
            )
        ]
        for length in (1, 12, 30)
    ]
    path = build_archive(tmp_path / "archives", frames, beside=True).path
    assert run_cli(["ls", kind, *long, str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    if kind == "--files" and not long:
        return  # one path a line, for xargs
    for name in lines[0].split():
        begin = lines[0].index(name)
        end = begin + len(name)
        starts = all(line[begin - 1 : begin] in {"", " "} and line[begin] != " " for line in lines)
        ends = all(line[end - 1] != " " and line[end : end + 1] in {"", " "} for line in lines)
        assert starts or ends, (name, lines)


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
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]] == list(built.content)


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


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    """A run of two archives, a0 and a1, both complete, with their indexes, a table and SHA256SUMS."""
    run = write_run(tmp_path / "finished", 2, archives=2)
    for name in ("a0", "a1"):
        put_archive(run, name)
    (run.archives / "a0.metadata.csv").write_text("SeriesInstanceUID\n1.2.3\n")
    put_sums(run)
    return run


def put_archive(run: RunDir, name: str, *failed: FailedLine) -> None:
    """An archive of one item, and an index that vouches for it."""
    built = build_archive(
        run.archives, [[Item("1.2.3", "c/CT", [File("0.dcm", noise(900))])]], name=name, failed=failed
    )
    head = built.lines[0]
    assert isinstance(head, ArchiveLine)
    built.lines[0] = msgspec.structs.replace(head, manifest_sha256=SHA)
    write_beside(built)


def put_sums(run: RunDir) -> None:
    """SHA256SUMS over the files that are there."""
    paths = sorted(path for path in run.archives.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (run.archives / "SHA256SUMS").write_text("".join(lines))


def test_verify_run(finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run stands for all archives of its manifest; a folder that is no run is a mistake."""
    assert run_cli(["verify", str(finished.path)]) == 0
    assert capsys.readouterr().out.count("fine:") == 2
    assert run_cli(["verify", str(tmp_path)]) == 64


@pytest.mark.parametrize("gone", [["a1"], ["a0", "a1"]])
def test_verify_run_lists_missing_archives(
    finished: RunDir, capsys: pytest.CaptureFixture[str], gone: list[str]
) -> None:
    """An archive of the manifest that is not there is named, with how to get it, and ends with 3; JSON says it too."""
    for name in gone:
        (finished.archives / f"{name}.tar.xz").unlink()
    assert run_cli(["verify", str(finished.path)]) == 3
    said = capsys.readouterr()
    assert said.out.count("fine:") == 2 - len(gone)
    assert all(f"{name}.tar.xz: NOT COMPLETE: missing" in said.out and f"{name}.tar.xz" in said.err for name in gone)
    assert f"medhaul resume {finished.path}" in said.err
    assert run_cli(["verify", "--json", str(finished.path)]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["fine"] for row in rows] == [f"a{number}" not in gone for number in range(2)]


def test_verify_run_lists_partial_archives(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive without all items is told to be partial and ends with 3, although every byte of it is right."""
    put_archive(finished, "a1", FailedLine(id="1.2.5", path="c/PT", reason="checksum", message="differs"))
    put_sums(finished)
    assert run_cli(["verify", str(finished.path)]) == 3
    assert "a1.tar.xz: NOT COMPLETE: partial: 1 of 2 items" in capsys.readouterr().out
    assert run_cli(["verify", "--json", str(finished.path)]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["fine"], row["failed"]) for row in rows] == [(True, 0), (False, 1)]


def test_verify_run_needs_indexes(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that no index of this run vouches for was not finished: 3, as `status` and `reduce` see it."""
    (finished.archives / "a0.tar.xz.index.jsonl.zst").unlink()
    assert run_cli(["verify", str(finished.path)]) == 3
    assert "a0.tar.xz: NOT COMPLETE: no index beside it" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["table", "table gone", "archive's sum", "sum gone", "torn", "other name"])
def test_verify_run_compares_checksums(finished: RunDir, capsys: pytest.CaptureFixture[str], change: str) -> None:
    """What SHA256SUMS lists must be there with that hash, and every archive must be listed."""
    sums = finished.archives / "SHA256SUMS"
    table = finished.archives / "a0.metadata.csv"
    lines = sums.read_text().splitlines(keepends=True)
    if change == "table":
        table.write_text("changed")
    elif change == "table gone":
        table.unlink()
    elif change == "archive's sum":
        sums.write_text("".join("0" * 64 + line[64:] if line.endswith("a1.tar.xz\n") else line for line in lines))
    elif change == "sum gone":
        sums.write_text("".join(line for line in lines if not line.endswith("a1.tar.xz\n")))
    elif change == "torn":
        sums.write_text("".join(lines) + lines[0][:30])
    else:
        sums.write_text("".join(lines) + "0" * 64 + "  ../run.json\n")
    assert run_cli(["verify", str(finished.path)]) == 3
    assert capsys.readouterr().out.count("NOT COMPLETE") == 1


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
