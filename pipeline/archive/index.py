"""The index of an archive: JSON lines in zstandard, the same inside the archive and beside it.

Inside, as the last member, it holds only what the content decides. Beside, it also tells how each file came and was
checked, and the archive's SHA-256. docs/format.md has the normative text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec

from pipeline.errors import ConfigError

FORMAT = 1
# A line is longest where a frame has many blocks: 16 MiB are 900 000 of them. Without a bound a few bytes of
# zstandard could grow into a line of any size.
MAX_LINE_BYTES = 16 << 20


class _Line(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    pass


class ArchiveLine(_Line, frozen=True, tag="archive"):
    """The first line. `state`, `sha256` and what follows stand only in the index beside the archive."""

    format: int
    name: str
    items: int
    failed: int
    files: int
    bytes: int
    frames: int
    tar_bytes: int
    path: str
    block_bytes: int
    group_bytes: int
    cut_bytes: int
    portable: bool
    liblzma: str
    cut_files: int = 0
    libzstd: str = ""
    state: str = ""
    sha256: str = ""
    size: int = 0
    manifest_sha256: str = ""
    run: str = ""
    source: str = ""
    release: str = ""
    medhaul: str = ""


class FrameLine(_Line, frozen=True, tag="frame"):
    """A frame: `length` compressed bytes at `offset` of the archive, `tar_bytes` bytes at `tar_offset` of the tar.

    `blocks` lists (unpadded size, uncompressed size); `sha256` is of the compressed bytes.
    """

    frame: int
    offset: int
    length: int
    sha256: str
    tar_offset: int
    tar_bytes: int
    blocks: list[tuple[int, int]]


class ItemLine(_Line, frozen=True, tag="item"):
    """An item, or a piece of one; its files follow. It lies in the frame whose line came last."""

    id: str
    path: str
    licence: str
    files: int
    bytes: int
    piece: int = 0
    pieces: int = 1


class FileLine(_Line, frozen=True, tag="file"):
    """A file of the item whose line came last; `offset` is where its content begins in the archive's tar bytes."""

    name: str
    size: int
    sha256: str
    offset: int
    key: str = ""
    evidence: list[str] = []
    route: str = ""
    etag: str = ""


class FailedLine(_Line, frozen=True, tag="failed"):
    """An item of the manifest that is not in the archive."""

    id: str
    path: str
    reason: str
    message: str = ""


Line = ArchiveLine | FrameLine | ItemLine | FileLine | FailedLine
_DECODER = msgspec.json.Decoder(Line)
_ENCODER = msgspec.json.Encoder()


def catalogue_path(name: str) -> str:
    """Path, in the archive, of the member that holds the index."""
    return f".medhaul/{name}.index.jsonl.zst"


def content_only(line: Line) -> Line:
    """The line without what depends on when, where or by which route. Pure."""
    if isinstance(line, FileLine):
        return FileLine(name=line.name, size=line.size, sha256=line.sha256, offset=line.offset)
    if isinstance(line, FailedLine):
        return FailedLine(id=line.id, path=line.path, reason=line.reason)
    if isinstance(line, ArchiveLine):
        return msgspec.structs.replace(
            line, state="", sha256="", size=0, manifest_sha256="", run="", source="", release="", medhaul=""
        )
    return line


def write_lines(out: BinaryIO, lines: Iterable[Line]) -> None:
    """Write index lines as one zstandard frame."""
    import zstandard

    # Long windows pay: paths and UIDs repeat over far more than the default window. One thread: same lines, same bytes.
    parameters = zstandard.ZstdCompressionParameters.from_level(9, write_checksum=1, threads=0)
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as writer:
        for line in lines:
            writer.write(_ENCODER.encode(line) + b"\n")


def read_lines(source: BinaryIO, name: str) -> Iterator[Line]:
    """Yield the lines of an index.

    Raises
    ------
    ConfigError
        When it is cut short, damaged or of another format; `name` is named.
    """
    import zstandard

    hint = "the index is damaged; `medhaul verify` the archive, whose own catalogue may be whole"
    rest = b""
    head: ArchiveLine | None = None
    files = frames = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(source, closefd=False) as reader:
            while chunk := reader.read(1 << 20):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                if len(rest) > MAX_LINE_BYTES:
                    raise ConfigError(f"{name}: a line is longer than any index has", hint=hint)
                for data in lines:
                    line = _DECODER.decode(data)
                    if head is None:
                        if not isinstance(line, ArchiveLine) or line.format != FORMAT:
                            raise ConfigError(f"{name}: not an archive index of format {FORMAT}", hint=hint)
                        head = line
                    files += isinstance(line, FileLine)
                    frames += isinstance(line, FrameLine)
                    yield line
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}", hint=hint) from None
    # A zstandard frame that is cut short ends without an error, so the counts must show it.
    if rest or head is None or (files, frames) != (head.files, head.frames):
        raise ConfigError(f"{name}: cut short", hint=hint)
