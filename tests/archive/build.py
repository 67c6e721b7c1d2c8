"""Builds small whole archives with the writing side, for the tests of the reading side."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.archive.blocks import encode_block
from pipeline.archive.frames import Member, cut_frame, place_members, read_blocks
from pipeline.archive.index import (
    FORMAT,
    ArchiveLine,
    FailedLine,
    FileLine,
    FrameLine,
    ItemLine,
    Line,
    content_only,
    write_lines,
)
from pipeline.archive.join import ArchiveWriter
from pipeline.archive.liblzma import liblzma_version
from pipeline.manifest import file_sha256


class File(NamedTuple):
    """A file to archive."""

    name: str
    data: bytes
    chain: str = "A0"


class Item(NamedTuple):
    """An item, or a piece of one, to archive."""

    id: str
    path: str
    files: list[File]
    piece: int = 0
    pieces: int = 1


class Built(NamedTuple):
    """An archive that was built: its path, its content by path, and the lines beside it."""

    path: Path
    content: dict[str, bytes]
    lines: list[Line]


def noise(size: int, seed: int = 1) -> bytes:
    """`size` bytes that do not compress, the same for the same seed."""
    return hashlib.shake_128(f"noise {seed}".encode()).digest(size)


def smooth(size: int, seed: int = 1) -> bytes:
    """`size` bytes that compress somewhat, like 16-bit pixels."""
    steps = noise(size // 2 + 1, seed)
    out, value = bytearray(), 1000
    for step in steps:
        value = (value + step % 7 - 3) & 0xFFF
        out += value.to_bytes(2, "little")
    return bytes(out[:size])


def build_archive(
    folder: Path,
    frames: list[list[Item]],
    *,
    name: str = "small",
    block_bytes: int = 64 << 10,
    failed: tuple[FailedLine, ...] = (),
    portable: bool = False,
    threads: int = 2,
    beside: bool = False,
) -> Built:
    """Write `NAME.tar.xz` into `folder`, and the index beside it when `beside`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tar.xz"
    content: dict[str, bytes] = {}
    lines: list[Line] = []
    with path.open("wb") as out:
        writer = ArchiveWriter(out)
        for number, items in enumerate(frames):
            lines += _write_frame(writer, folder, number, items, content, block_bytes, portable, threads)
        every = [line for line in lines if isinstance(line, ItemLine)]
        head = ArchiveLine(
            format=FORMAT, name=name, items=sum(line.piece == 0 for line in every) + len(failed), failed=len(failed),
            files=len(content), bytes=sum(map(len, content.values())), frames=len(frames), tar_bytes=writer.tar_bytes,
            path="{SeriesInstanceUID}/{SOPInstanceUID}.dcm", block_bytes=block_bytes, group_bytes=1 << 20,
            cut_bytes=1 << 30, portable=portable, liblzma=liblzma_version(),
        )  # fmt: skip
        lines = [head, *failed, *lines]
        finish(writer, name, lines)
    state = "partial" if failed else "complete"
    beside_head = msgspec.structs.replace(head, state=state, sha256=file_sha256(path), size=writer.size)
    built = Built(path, content, [beside_head, *lines[1:]])
    if beside:
        write_beside(built)
    return built


def finish(writer: ArchiveWriter, name: str, lines: list[Line]) -> None:
    """Write the catalogue of these lines and the end of the archive."""
    catalogue = BytesIO()
    write_lines(catalogue, map(content_only, lines))
    size = catalogue.tell()
    catalogue.seek(0)
    writer.finish(name, catalogue, size)


def write_beside(built: Built) -> Path:
    """Write the index beside the archive."""
    path = built.path.with_name(built.path.name + ".index.jsonl.zst")
    with path.open("wb") as out:
        write_lines(out, built.lines)
    return path


def rewrite_catalogue(built: Built, lines: list[Line], name: str = "small") -> Path:
    """Write an archive with the same frames but other lines in its catalogue: what a hostile author can do."""
    frames = [line for line in built.lines if isinstance(line, FrameLine)]
    hostile = built.path.with_name("hostile.tar.xz")
    with built.path.open("rb") as part, hostile.open("wb") as out:
        writer = ArchiveWriter(out)
        for frame in frames:
            writer.copy_frame(part.fileno(), frame.offset, frame.length, frame.sha256, frame.blocks)
        finish(writer, name, lines)
    return hostile


def _write_frame(
    writer: ArchiveWriter,
    folder: Path,
    number: int,
    items: list[Item],
    content: dict[str, bytes],
    block_bytes: int,
    portable: bool,
    threads: int,
) -> list[Line]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    members = []
    for item in items:
        for file in item.files:
            path = f"{item.path}/{file.name}"
            content[path] = file.data
            local = scratch / f"{number}-{len(members)}"
            local.write_bytes(file.data)
            digest = hashlib.sha256(file.data).hexdigest()
            members.append(Member(path, str(local), len(file.data), digest, file.chain))
    placed, tar_bytes = place_members(members)
    cuts = cut_frame(placed, block_bytes)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(encode_block, data, cut.chain, portable=portable, verify=True)
            for data, cut in zip(read_blocks(placed, cuts), cuts, strict=True)
        ]
        blocks = [job.result() for job in jobs]
    part = scratch / f"{number}.part"
    data = b"".join(block.data for block in blocks)
    part.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    sizes = [tuple(block.size) for block in blocks]
    tar_offset = writer.tar_bytes
    descriptor = os.open(part, os.O_RDONLY)
    try:
        offset = writer.copy_frame(descriptor, 0, len(data), digest, sizes)
    finally:
        os.close(descriptor)
    lines: list[Line] = [
        FrameLine(
            frame=number, offset=offset, length=len(data), sha256=digest, tar_offset=tar_offset, tar_bytes=tar_bytes,
            blocks=sizes,
        )
    ]  # fmt: skip
    rest = iter(placed)
    for item in items:
        lines.append(
            ItemLine(
                id=item.id, path=item.path, licence="CC BY 4.0", files=len(item.files),
                bytes=sum(len(file.data) for file in item.files), piece=item.piece, pieces=item.pieces,
            )
        )  # fmt: skip
        for file in item.files:
            place = next(rest)
            lines.append(
                FileLine(
                    name=file.name, size=len(file.data), sha256=place.member.sha256, offset=tar_offset + place.offset,
                    key=f"key/{file.name}", evidence=["md5", "size"], route="http://127.0.0.1",
                )
            )  # fmt: skip
    return lines
