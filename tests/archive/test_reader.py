"""The reader: what is read for what is asked, from files and over HTTP."""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from build import Built, File, Item, build_archive, noise, smooth, write_beside
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.catalogue import catalogue_lines, read_tail
from pipeline.archive.decode import FrameLayout
from pipeline.archive.index import ArchiveLine, FileLine, FrameLine, ItemLine
from pipeline.archive.reader import ArchiveReader, DamagedFileError
from pipeline.archive.source import Range, Source, open_source
from pipeline.archive.verify import verify_archive
from pipeline.errors import ConfigError, SiteUnavailableError, UsageError


class CountingSource:
    """Counts the ranges that are asked of a source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name
        self.size = source.size
        self.ranges: list[tuple[int, int]] = []

    def open_range(self, offset: int, length: int) -> Range:
        self.ranges.append((offset, length))
        return self._source.open_range(offset, length)

    def close(self) -> None:
        self._source.close()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Eight series of two megabytes, a frame each, without an index beside."""
    frames = [
        [Item(f"1.{n}", f"c/1.{n}", [File(f"{k:03}", noise(100_000, 20 * n + k), "S") for k in range(20)])]
        for n in range(8)
    ]
    return build_archive(tmp_path_factory.mktemp("series"), frames)


def test_catalogue_is_found_in_three_reads(series: Built) -> None:
    """Footer, xz index, catalogue: three ranges, a small part of the archive."""
    counting = CountingSource(open_source(series.path))
    assert sum(1 for _ in catalogue_lines(counting, read_tail(counting))) == len(series.lines)
    assert len(counting.ranges) == 3
    assert sum(length for _, length in counting.ranges) < counting.size / 500


def test_one_file_reads_few_bytes(series: Built) -> None:
    """One file out of sixteen megabytes costs one range of the blocks that hold it."""
    with ArchiveReader(series.path) as reader:
        counting = reader.source = CountingSource(reader.source)
        for frame, item, files in reader.items():
            for file in files:
                if (item.id, file.name) == ("1.5", "007"):
                    counting.ranges.clear()
                    assert b"".join(reader.read_file(frame, file)) == series.content["c/1.5/007"]
                    assert len(counting.ranges) == 1
                    assert counting.ranges[0][1] < 400_000


def test_one_item_is_one_read(series: Built) -> None:
    """All files of a series come by one contiguous read of exactly its frame."""
    with ArchiveReader(series.path) as reader:
        counting = reader.source = CountingSource(reader.source)
        for frame, item, files in reader.items():
            if item.id == "1.3":
                group = list(files)
                counting.ranges.clear()
                for file, content in reader.read_files(frame, group):
                    assert b"".join(content) == series.content[f"c/1.3/{file.name}"]
                assert counting.ranges == [(frame.offset, frame.length)]


def test_files_not_taken_are_passed_over(series: Built) -> None:
    """Items come whole and in order although their files are left, or taken in part; so do contents."""
    with ArchiveReader(series.path) as reader:
        assert [item.id for _, item, _ in reader.items()] == [f"1.{n}" for n in range(8)]
        assert [next(files).name for _, _, files in reader.items()] == ["000"] * 8
        frame, _, files = next(reader.items())
        for file, content in reader.read_files(frame, list(files)):
            if file.name == "019":
                assert b"".join(content) == series.content["c/1.0/019"]


def test_damaged_file_raises_and_the_next_is_read(series: Built, tmp_path: Path) -> None:
    """A damaged block fails the files in it, before their last piece; the files behind it are read."""
    path = tmp_path / "damaged.tar.xz"
    shutil.copy(series.path, path)
    with ArchiveReader(path) as reader:
        frame, _, files = next(reader.items())
        group = list(files)
        with path.open("r+b") as out:
            out.seek(frame.offset + 5000)
            out.write(b"damage")
        states = {}
        for file, content in reader.read_files(frame, group):
            try:
                states[file.name] = b"".join(content) == series.content[f"c/1.0/{file.name}"]
            except DamagedFileError:
                states[file.name] = None
    assert states["000"] is None
    assert states["019"] is True
    assert False not in states.values()


def test_index_beside_is_preferred_when_it_belongs(varied: Built, tmp_path: Path) -> None:
    """The index beside the archive is read when its size agrees and it can be read; else the catalogue is."""
    path = tmp_path / "a.tar.xz"
    shutil.copy(varied.path, path)
    with ArchiveReader(path) as reader:
        assert reader.index is None
    beside = write_beside(varied._replace(path=path))
    with ArchiveReader(path) as reader:
        assert reader.index == beside
        assert reader.header() == varied.lines[0]
        assert next(files for _, _, files in reader.items()).__next__().evidence == ["md5", "size"]
    beside.write_bytes(beside.read_bytes()[:50])
    with ArchiveReader(path) as reader:
        assert reader.index is None
    write_beside(varied._replace(path=path))
    with path.open("ab") as out:
        out.write(b"more")
    with pytest.raises(ConfigError, match="footer"):
        ArchiveReader(path)


def test_named_index_must_belong(varied: Built, series: Built, tmp_path: Path) -> None:
    """An index that is named is read; one of another archive is refused."""
    named = write_beside(varied._replace(path=tmp_path / "elsewhere"))
    with ArchiveReader(varied.path, named) as reader:
        assert reader.index == named
    with pytest.raises(ConfigError, match="of an archive of"):
        ArchiveReader(series.path, named)


def test_failed_items_are_told(varied: Built) -> None:
    """Items that are not in the archive are listed with the reason."""
    with ArchiveReader(varied.path) as reader:
        assert [(line.id, line.reason) for line in reader.failed()] == [("1.6", "withdrawn")]


sizes = st.lists(st.tuples(st.integers(40, 10_000), st.integers(1, 5000)), min_size=1, max_size=20)


@given(sizes, st.data())
def test_planned_reads_cover_files_and_no_more(blocks: list[tuple[int, int]], data: st.DataObject) -> None:
    """Planned ranges hold every byte of the files, no block twice, and no block that holds nothing of them."""
    frame = FrameLine(
        frame=0, offset=12, length=0, sha256="", tar_offset=1000, tar_bytes=sum(b for _, b in blocks), blocks=blocks
    )
    layout = FrameLayout(frame)
    cuts = sorted(data.draw(st.lists(st.integers(1000, 1000 + frame.tar_bytes), max_size=12)))
    files = [
        FileLine(name=str(n), size=end - start, sha256="", offset=start)
        for n, (start, end) in enumerate(zip(cuts[::2], cuts[1::2], strict=False))
    ]
    plan = layout.plan_reads(files)
    assert [file for _, group in plan for file in group] == files
    bounds = [1000]
    for _, size in blocks:
        bounds.append(bounds[-1] + size)
    needed = {
        n
        for n in range(len(blocks))
        for file in files
        if file.size and bounds[n] < file.offset + file.size and file.offset < bounds[n + 1]
    }
    read = [n for covered, _ in plan for n in range(covered.first, covered.last)]
    assert sorted(needed) == read
    for covered, _ in plan:
        assert covered.tar_offset == bounds[covered.first]
        assert covered.length == sum(-(-size // 4) * 4 for size, _ in blocks[covered.first : covered.last])


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges, or as `mode` says."""

    content = b""
    mode = "ranges"
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.headers.get("Range", ""))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.mode == "whole" or match is None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            return
        if self.mode.isdigit():
            self.send_response(int(self.mode))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = int(match[1]), min(int(match[2]), len(self.content) - 1)
        self.send_response(206)
        changed = self.mode == "changes" and len(self.requests) > 2
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content) + changed}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"one"')
        self.end_headers()
        data = self.content[first : last + 1]
        if self.mode == "short" and len(data) > 100:
            self.close_connection = True
            data = data[:50]
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serve(path: Path, mode: str = "ranges") -> Iterator[tuple[str, list[str]]]:
    """Serve a file on this machine; yield its URL and the ranges asked for."""
    handler = type("Handler", (RangeHandler,), {"content": path.read_bytes(), "mode": mode, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/a.tar.xz?token=secret", handler.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_series_over_http_is_one_ranged_read(series: Built) -> None:
    """Out of a URL, a series costs one ranged request beside those that find the catalogue."""
    with serve(series.path) as (url, requests), ArchiveReader(url) as reader:
        for frame, item, files in reader.items():
            if item.id == "1.6":
                group = list(files)
                before = len(requests)
                content = {file.name: b"".join(data) for file, data in reader.read_files(frame, group)}
                assert requests[before:] == [f"bytes={frame.offset}-{frame.offset + frame.length - 1}"]
        assert content == {f"{k:03}": series.content[f"c/1.6/{k:03}"] for k in range(20)}
        assert "secret" not in reader.name
        assert "bytes=0-" not in {request.rstrip("0123456789") for request in requests[1:]}


def test_verify_over_http(tiny: Built) -> None:
    """A URL can be verified like a file."""
    with serve(tiny.path) as (url, _):
        assert verify_archive(url).fine


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("whole", UsageError),
        ("404", UsageError),
        ("403", UsageError),
        ("503", SiteUnavailableError),
        ("short", SiteUnavailableError),
        ("changes", ConfigError),
    ],
)
def test_http_faults_are_named(series: Built, mode: str, kind: type[Exception]) -> None:
    """A server that cannot or will not serve ranges, breaks off, or changes the file, is an error without secrets."""
    with serve(series.path, mode) as (url, _), pytest.raises(kind, match=r"127\.0\.0\.1") as caught:
        verify_archive(url)
    assert "secret" not in str(caught.value)


def test_nobody_listens() -> None:
    """A URL where no server is, is unavailable."""
    with pytest.raises(SiteUnavailableError):
        ArchiveReader("http://127.0.0.1:9/a.tar.xz")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of many blocks is read in pieces of a block."""
    built = build_archive(tmp_path, [[Item("1", "c", [File("big", smooth(4_000_000), "S")])]])
    with ArchiveReader(built.path, workers=1) as reader:
        frame, _, files = next(reader.items())
        pieces = [len(piece) for piece in reader.read_file(frame, next(files))]
    assert sum(pieces) == 4_000_000
    assert max(pieces) <= 64 << 10


def test_header_is_the_first_line(varied: Built) -> None:
    """The header tells counts and settings; items tell their frame and their number of files."""
    with ArchiveReader(varied.path) as reader:
        assert isinstance(reader.header(), ArchiveLine)
        listed = [(frame.frame, item.id, item.piece, len(list(files))) for frame, item, files in reader.items()]
        assert all(isinstance(item, ItemLine) for _, item, _ in reader.items())
    assert listed == [(0, "1.2", 0, 6), (0, "1.3", 0, 4), (1, "1.4", 0, 2), (2, "1.5", 0, 2), (3, "1.5", 1, 1)]
