"""Whole archives: what the writing side writes, our reader and everybody else's read."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from build import Built, File, Item, build_archive, noise, smooth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.archive.index import FrameLine, catalogue_path
from pipeline.archive.reader import ArchiveReader
from pipeline.archive.tar import END_OF_ARCHIVE
from pipeline.archive.verify import verify_archive
from pipeline.archive.xz import FOOTER_BYTES, parse_footer, parse_index


def read_all(path: Path) -> dict[str, bytes]:
    """Every file of an archive by its path, through the reader."""
    found = {}
    with ArchiveReader(path, workers=2) as reader:
        for frame, item, files in reader.items():
            for file, content in reader.read_files(frame, list(files)):
                found[f"{item.path}/{file.name}"] = b"".join(content)
    return found


def test_reader_reads_what_was_written(varied: Built) -> None:
    """Every file comes back with its bytes, and nothing else."""
    assert read_all(varied.path) == varied.content


def test_archive_is_fine(varied: Built) -> None:
    """A sound archive has no problems, and the counts and hashes of its index."""
    result = verify_archive(varied.path, workers=2)
    assert result.problems == []
    assert result.fine
    assert result.index
    assert (result.items, result.failed, result.files) == (5, 1, len(varied.content))
    assert result.sha256 == hashlib.sha256(varied.path.read_bytes()).hexdigest()


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120).filter(
    lambda name: name not in {".", ".."}
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    frames=st.lists(
        st.dictionaries(
            names,
            st.tuples(
                st.one_of(st.integers(0, 1500), st.sampled_from([511, 512, 513, 20_000])),
                st.sampled_from(["A0", "A2", "S"]),
            ),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_small_archive(tmp_path_factory: pytest.TempPathFactory, frames: list[dict[str, tuple[int, str]]]) -> None:
    """Whatever the names and sizes, an archive is fine, read back whole, and read by Python's tarfile alike."""
    folder = tmp_path_factory.mktemp("any")
    items = [
        [Item(f"1.{n}", f"c{n}", [File(name, smooth(size, n), chain) for name, (size, chain) in frame.items()])]
        for n, frame in enumerate(frames)
    ]
    built = build_archive(folder, items, block_bytes=4096)
    assert verify_archive(built.path, workers=2).problems == []
    assert read_all(built.path) == built.content
    assert list_tarfile(built, "r:xz") == built.content
    shutil.rmtree(folder)


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bytes_for_any_threads(tmp_path: Path, threads: int) -> None:
    """How many threads compress leaves no trace in the bytes."""
    frames = [[Item("1.2", "c/1.2", [File(f"{n}", smooth(50_000, n), "A2") for n in range(20)])]]
    one = build_archive(tmp_path / "one", frames, threads=1)
    other = build_archive(tmp_path / "other", frames, threads=threads)
    assert one.path.read_bytes() == other.path.read_bytes()


def test_no_block_belongs_to_two_frames(varied: Built) -> None:
    """The xz index lists the frames' blocks in order, then the catalogue's and the end of archive."""
    data = varied.path.read_bytes()
    length = parse_footer(data[-FOOTER_BYTES:])
    listed = parse_index(data[-FOOTER_BYTES - length : -FOOTER_BYTES])
    blocks = [tuple(block) for line in varied.lines if isinstance(line, FrameLine) for block in line.blocks]
    assert [tuple(size) for size in listed[:-2]] == blocks
    assert listed[-1].uncompressed == len(END_OF_ARCHIVE)


def test_member_count_and_order(varied: Built) -> None:
    """The tar has every file once, in index order, then the catalogue, and headers that tell nothing else."""
    with tarfile.open(varied.path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [*varied.content, catalogue_path("small")]
    for member in members:
        assert (member.mode, member.uid, member.gid, member.uname, member.gname, member.mtime) == (
            0o644,
            0,
            0,
            "",
            "",
            0,
        )
        assert member.isreg()


def list_tarfile(built: Built, mode: str) -> dict[str, bytes]:
    """Files by path, as Python's tarfile reads them; the catalogue left out."""
    found = {}
    with tarfile.open(built.path, mode) as tar:  # type: ignore[call-overload]
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    found.pop(catalogue_path("small"))
    return found


@pytest.mark.parametrize("mode", ["r:xz", "r|xz"])
def test_tarfile_reads_it(varied: Built, mode: str) -> None:
    """Python's tarfile reads every file, seeking and streaming."""
    assert list_tarfile(varied, mode) == varied.content


def test_lzma_reads_it(varied: Built) -> None:
    """Python's lzma decompresses it as one stream, to a whole number of tar blocks."""
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    data = decoder.decompress(varied.path.read_bytes())
    assert decoder.eof
    assert decoder.unused_data == b""
    assert decoder.check == lzma.CHECK_SHA256
    assert data.endswith(END_OF_ARCHIVE)
    assert len(data) % 512 == 0


def run(*command: str | Path) -> bytes:
    """Run a program that the machine must have; its output."""
    program = str(command[0])
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def list_folder(folder: Path) -> dict[str, bytes]:
    """Files by path below a folder, the catalogue left out."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop(catalogue_path("small"), None) is not None
    return files


@pytest.mark.external
@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_tar_programs_unpack_it(varied: Built, tmp_path: Path, program: str) -> None:
    """GNU tar and bsdtar unpack exactly the files, without a warning that fails them."""
    run(program, "-xJf", varied.path, "-C", tmp_path)
    assert list_folder(tmp_path) == varied.content


@pytest.mark.external
def test_7zip_unpacks_it(varied: Built, tmp_path: Path) -> None:
    """7-Zip unpacks the .xz to the same tar as xz, and the tar to exactly the files."""
    program = next((name for name in ("7zz", "7z", "7za") if shutil.which(name)), None)
    if program is None:
        pytest.skip("none of 7zz, 7z, 7za is installed")
    run(program, "t", varied.path)
    run(program, "x", f"-o{tmp_path}", varied.path)
    tar = tmp_path / "small.tar"
    assert tar.read_bytes() == lzma.decompress(varied.path.read_bytes())
    run(program, "x", f"-o{tmp_path / 'out'}", tar)
    assert list_folder(tmp_path / "out") == varied.content


@pytest.mark.external
def test_xz_reads_it(varied: Built) -> None:
    """`xz` finds it whole, decodes it with many threads to the same bytes, and every block states both sizes."""
    run("xz", "-t", varied.path)
    assert run("xz", "-T0", "-dc", varied.path) == lzma.decompress(varied.path.read_bytes())
    listing = run("xz", "--robot", "-lvv", varied.path).decode().splitlines()
    blocks = [line.split("\t") for line in listing if line.startswith("block\t")]
    data = varied.path.read_bytes()
    listed = parse_index(data[-FOOTER_BYTES - parse_footer(data[-FOOTER_BYTES:]) : -FOOTER_BYTES])
    assert len(blocks) == len(listed)
    assert {line[12] for line in blocks} == {"cu"}
    assert {line[9] for line in blocks} == {"SHA-256"}


@pytest.mark.external
def test_pixz_reads_it(varied: Built, tmp_path: Path) -> None:
    """`pixz` decompresses it to the same tar."""
    run("pixz", "-d", "-t", varied.path, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == lzma.decompress(varied.path.read_bytes())


@pytest.mark.external
def test_busybox_reads_portable_archives(tmp_path: Path) -> None:
    """Without the delta filter busybox unpacks it."""
    frames = [[Item("1.2", "c/1.2", [File("a", smooth(100_000), "A2"), File("b", noise(70_000), "J")])]]
    built = build_archive(tmp_path / "in", frames, portable=True)
    out = tmp_path / "out"
    out.mkdir()
    run("busybox", "tar", "-xJf", built.path, "-C", out)
    assert list_folder(out) == built.content


@pytest.mark.external
def test_part_of_it_is_readable_as_a_stream(varied: Built) -> None:
    """`tar -t` from a pipe lists every member once."""
    data = io.BytesIO(run("tar", "-tJf", varied.path, "--quoting-style=literal"))
    assert data.read().decode().splitlines() == [*varied.content, catalogue_path("small")]
