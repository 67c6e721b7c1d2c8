"""Finished archives as other people's programs see them: each lists the same files, as many as the manifest says."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.archive.lines import member_path
from pipeline.archive.reader import ArchiveReader
from pipeline.demo.data import build_demo
from pipeline.demo.site import DemoSite
from tests.integration.haul import Haul

pytestmark = pytest.mark.external
Listing = list[tuple[str, int]]


@pytest.fixture(scope="module")
def haul(tmp_path_factory: pytest.TempPathFactory) -> Haul:
    """The tiny demo, planned, done in three tasks and joined, by real processes."""
    data = build_demo(tmp_path_factory.mktemp("demo"), "tiny")
    with DemoSite(data.store()) as site:
        made = Haul(tmp_path_factory.mktemp("haul"), data.index, site.url, shards=3)
        made.all()
    return made


def program(*names: str) -> str:
    """The first of these programs that is installed; the test skips where none is."""
    for name in names:
        if found := shutil.which(name):
            return found
    return pytest.skip(f"not installed: {' or '.join(names)}")


def call(*words: object, data: bytes | None = None) -> bytes:
    """What a program wrote to stdout; it must end well and complain of nothing."""
    done = subprocess.run([str(word) for word in words], input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stderr == b""
    return done.stdout


def with_tarfile(mode: str) -> Callable[[Path], Listing]:
    """Python's own tarfile."""

    def read(archive: Path) -> Listing:
        with tarfile.open(archive, mode) as tar:
            return [(member.name, member.size) for member in tar]

    return read


def with_gnu_tar(archive: Path) -> Listing:
    """GNU tar, with xz as its filter."""
    tar = program("tar")
    if b"GNU tar" not in subprocess.run([tar, "--version"], capture_output=True, check=True).stdout:
        pytest.skip("tar is not GNU tar")
    lines = call(tar, "--quoting-style=literal", "--full-time", "-tvJf", archive).decode().splitlines()
    return [(words[5], int(words[2])) for words in (line.split(None, 5) for line in lines)]


def with_bsdtar(archive: Path) -> Listing:
    """The tar of libarchive, which decodes by itself."""
    lines = call(program("bsdtar"), "-tvf", archive).decode().splitlines()
    return [(words[8], int(words[4])) for words in (line.split(None, 8) for line in lines)]


def with_seven_zip(archive: Path) -> Listing:
    """7-Zip, once for the .xz and once for the .tar."""
    seven = program("7zz", "7z")
    tar = call(seven, "x", "-so", archive)
    text = call(seven, "l", "-slt", "-ttar", "-si", data=tar).decode().partition("----------\n")[2]
    found = re.findall(r"^Path = (.*)\n(?:(?!Path = ).*\n)*?Size = (\d+)$", text, re.MULTILINE)
    return [(path, int(size)) for path, size in found]


def with_decoder(*command: str) -> Callable[[Path], Listing]:
    """A program that decodes the .xz to stdout; its tar is read by tarfile."""

    def read(archive: Path) -> Listing:
        tar = call(program(command[0]), *command[1:], archive)
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as file:
            return [(member.name, member.size) for member in file]

    return read


READERS: dict[str, Callable[[Path], Listing]] = {
    "tarfile-seek": with_tarfile("r:xz"),
    "tarfile-stream": with_tarfile("r|xz"),
    "gnu-tar": with_gnu_tar,
    "bsdtar": with_bsdtar,
    "7zip": with_seven_zip,
    "xz": with_decoder("xz", "-dc"),
    "xz-threads": with_decoder("xz", "-dc", "-T0"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_lists_the_same(haul: Haul, reader: str) -> None:
    """A reader finds the files of the manifest and one catalogue, with names and sizes as the index states them."""
    entries = haul.run.read_manifest_index().archives
    assert len(entries) == 3
    for entry in entries:
        archive = haul.run.archives / f"{entry.name}.tar.xz"
        found = READERS[reader](archive)
        assert len(found) == entry.files + 1
        catalogues = [path for path, _ in found if not path.endswith(".dcm")]
        assert len(catalogues) == 1
        with ArchiveReader(archive) as index:
            stated = [(member_path(item, file), file.size) for _, item, files in index.items() for file in files]
        assert sorted(each for each in found if each[0] not in catalogues) == sorted(stated)


@pytest.mark.parametrize("options", [["-t"], ["-t", "-T0"], ["-l"]])
def test_xz_finds_it_sound(haul: Haul, options: list[str]) -> None:
    """Xz tests every archive, with one thread and many, and lists it as one stream."""
    for archive in haul.archives():
        said = call(program("xz"), *options, archive).decode()
        if options == ["-l"]:
            assert said.splitlines()[1].split()[0] == "1"


def test_checksums_pass(haul: Haul) -> None:
    """`sha256sum -c SHA256SUMS` finds every file of the folder as stated, with none left out."""
    done = subprocess.run(
        [program("sha256sum"), "-c", "--strict", "SHA256SUMS"], cwd=haul.run.archives, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in haul.run.archives.iterdir()} - {"SHA256SUMS"}
    assert {line.rpartition(": ")[0] for line in done.stdout.decode().splitlines()} == names
