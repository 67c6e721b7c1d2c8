"""Extraction: what is written, kept or refused in the destination."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from build import Built
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.destination import Destination, OccupiedError
from pipeline.archive.extract import Outcome, Selection, choose_files, extract_files, nearest_ids
from pipeline.archive.index import FrameLine
from pipeline.archive.reader import ArchiveReader
from pipeline.errors import StorageError, UsageError

EVERYTHING = Selection()


def extract(path: Path, folder: Path, selection: Selection = EVERYTHING, *, force: bool = False) -> list[Outcome]:
    """Extract into a folder; what became of every file."""
    with ArchiveReader(path, workers=2) as reader, Destination(folder) as destination:
        return list(extract_files(reader, selection, destination, force=force))


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def test_everything_is_extracted(varied: Built, tmp_path: Path) -> None:
    """Without a selection every file is written, and nothing else stands in the folder."""
    outcomes = extract(varied.path, tmp_path)
    assert {outcome.state for outcome in outcomes} == {"written"}
    assert read_folder(tmp_path) == varied.content


def test_files_have_mode_644_less_the_umask(tiny: Built, tmp_path: Path) -> None:
    """Files are made as the user's umask asks."""
    before = os.umask(0o027)
    try:
        extract(tiny.path, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c" / "1.2" / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("items", "paths", "expected"),
    [
        ({"1.3"}, (), ["c/patient/MR_1.3/9.8.0.dcm", "c/patient/MR_1.3/9.8.3.dcm"]),
        ({"1.5"}, (), ["c/q/pät/big.dcm", "c/q/pät/zz.dcm"]),
        (set(), ("*/9.8.[12].dcm",), ["c/patient/MR_1.3/9.8.1.dcm", "c/patient/MR_1.3/9.8.2.dcm"]),
        (set(), ("c/q",), ["c/q/pät/big.dcm", "c/q/pät/zz.dcm"]),
        (set(), ("c/q/",), ["c/q/pät/big.dcm", "c/q/pät/zz.dcm"]),
        ({"1.2", "1.3"}, ("*.0.dcm",), ["c/patient/CT_1.2/1.2.0.dcm", "c/patient/MR_1.3/9.8.0.dcm"]),
    ],
)
def test_selection(varied: Built, tmp_path: Path, items: set[str], paths: tuple[str, ...], expected: list[str]) -> None:
    """Items and patterns must both hold; a folder stands for what is below it; a cut item comes whole."""
    selection = Selection(frozenset(items), paths)
    written = [outcome.path for outcome in extract(varied.path, tmp_path, selection)]
    assert (written[0], written[-1]) == (expected[0], expected[1])
    assert read_folder(tmp_path) == {path: varied.content[path] for path in written}
    with ArchiveReader(varied.path) as reader:
        chosen = choose_files(reader, selection)
    assert (chosen.files, chosen.bytes) == (len(written), sum(len(varied.content[path]) for path in written))


def test_unknown_item_names_near_ones(varied: Built) -> None:
    """An item that is not there is a mistake of usage that names similar ids, or why the item failed."""
    with ArchiveReader(varied.path) as reader:
        with pytest.raises(UsageError, match=r"item 1\.22 is not in it") as caught:
            choose_files(reader, Selection(frozenset({"1.2", "1.22"})))
        assert "did you mean 1.2" in caught.value.hint
        with pytest.raises(UsageError, match=r"1\.6 is not in it: it failed: withdrawn"):
            choose_files(reader, Selection(frozenset({"1.6"})))
        with pytest.raises(UsageError, match="no file matches"):
            choose_files(reader, Selection(paths=("*.nii",)))


@given(st.lists(st.text("0123456789.", min_size=8, max_size=30), min_size=1, max_size=30), st.data())
def test_near_ids_are_found(ids: list[str], data: st.DataObject) -> None:
    """One wrong character does not hide an id."""
    wanted = data.draw(st.sampled_from(ids))
    position = data.draw(st.integers(0, len(wanted) - 1))
    assert nearest_ids(ids, wanted[:position] + "x" + wanted[position + 1 :])


def test_same_files_are_kept(varied: Built, tmp_path: Path) -> None:
    """A second extraction keeps what is there, reads no block, and changes no file."""
    extract(varied.path, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {outcome.state for outcome in extract(varied.path, tmp_path)} == {"kept"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_files_stay_unless_forced(tiny: Built, tmp_path: Path) -> None:
    """A file with other content fails that file alone; with force it is replaced. A folder is never replaced."""
    other = tmp_path / "c" / "1.2" / "a"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"b" * 600)
    (tmp_path / "c" / "1.3" / "c").mkdir(parents=True)
    states = {outcome.path: outcome.state for outcome in extract(tiny.path, tmp_path)}
    assert states == {"c/1.2/a": "failed", "c/1.2/b": "written", "c/1.3/c": "failed", "c/1.4/d": "written"}
    assert other.read_bytes() == b"b" * 600
    states = {outcome.path: outcome.state for outcome in extract(tiny.path, tmp_path, force=True)}
    assert states == {"c/1.2/a": "written", "c/1.2/b": "kept", "c/1.3/c": "failed", "c/1.4/d": "kept"}
    assert other.read_bytes() == b"a" * 600


def test_file_in_place_of_a_folder(tiny: Built, tmp_path: Path) -> None:
    """A file where a folder should be fails what would lie in it, and stays."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.2").write_text("mine")
    states = [outcome.state for outcome in extract(tiny.path, tmp_path, force=True)]
    assert states == ["failed", "failed", "written", "written"]
    assert (tmp_path / "c" / "1.2").read_text() == "mine"


def test_damaged_files_leave_nothing(varied: Built, tmp_path: Path) -> None:
    """Files in a damaged block are reported and absent; all others are there; no temporary file is left."""
    path = tmp_path / "damaged.tar.xz"
    shutil.copy(varied.path, path)
    frame = next(line for line in varied.lines if isinstance(line, FrameLine))
    with path.open("r+b") as out:
        out.seek(frame.offset + frame.length - 5000)
        out.write(b"damage")
    outcomes = extract(path, tmp_path / "out")
    failed = {outcome.path for outcome in outcomes if outcome.state == "failed"}
    assert failed
    assert all(outcome.problem for outcome in outcomes if outcome.state == "failed")
    good = {path: data for path, data in varied.content.items() if path not in failed}
    assert read_folder(tmp_path / "out") == good


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    """Whatever stops the content, no file and no part of one is left."""

    def broken() -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise KeyboardInterrupt

    with Destination(tmp_path) as destination, pytest.raises(KeyboardInterrupt):
        destination.write(["a", "b"], broken())
    assert read_folder(tmp_path) == {}


def test_destination_must_be_a_folder(tmp_path: Path) -> None:
    """A file is no destination; a link to a folder is the user's own choice."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        Destination(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with Destination(tmp_path / "link") as destination:
        destination.write(["a"], iter([memoryview(b"1")]))
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_destination(tmp_path: Path) -> None:
    """A folder that may not be written is an error of storage that names the path."""
    (tmp_path / "locked").mkdir(mode=0o555)
    with Destination(tmp_path / "locked") as destination, pytest.raises(StorageError, match="locked"):
        destination.write(["a"], iter([memoryview(b"1")]))


def test_folder_has_the_name(tmp_path: Path) -> None:
    """A folder in a file's place is said to be there."""
    (tmp_path / "a").mkdir()
    with Destination(tmp_path) as destination:
        with pytest.raises(OccupiedError):
            destination.holds(["a"], 0, "")
        with pytest.raises(OccupiedError, match="folder"):
            destination.write(["a"], iter(()))
