"""A frame's tar bytes: which member lies where (pure), and reading them off the raw files block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from pipeline.archive.blocks import BlockCut, plan_blocks
from pipeline.archive.tar import member_header, member_padding


class Member(NamedTuple):
    """A file to archive: its path in the archive, the raw file, its size and SHA-256, and its chain class."""

    path: str
    local: str
    size: int
    sha256: str
    chain: str


class Placed(NamedTuple):
    """A member with its header bytes and the offset of its content in the frame's tar bytes."""

    member: Member
    header: bytes
    offset: int


class RawFileChangedError(Exception):
    """A raw file on scratch is no longer what was verified: `path` names it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: changed on scratch after it was verified")
        self.path = path


def place_members(members: Sequence[Member]) -> tuple[list[Placed], int]:
    """Lay members out as tar bytes: where each one's content lies, and the bytes in all. Pure."""
    placed = []
    position = 0
    for member in members:
        header = member_header(member.path, member.size)
        placed.append(Placed(member, header, position + len(header)))
        position += len(header) + member.size + member_padding(member.size)
    return placed, position


def cut_frame(placed: Sequence[Placed], block_bytes: int) -> list[BlockCut]:
    """Cut a frame's tar bytes into blocks. Pure."""
    sizes = ((len(p.header) + p.member.size + member_padding(p.member.size), p.member.chain) for p in placed)
    return plan_blocks(sizes, block_bytes)


def read_blocks(placed: Sequence[Placed], cuts: Sequence[BlockCut]) -> Iterator[bytes]:
    """Yield the tar bytes of each block in turn, reading every raw file once.

    Raises
    ------
    RawFileChangedError
        When a raw file is missing or has not the size and SHA-256 it was verified with.
    """
    pieces = _tar_bytes(placed)
    rest = memoryview(b"")
    for cut in cuts:
        wanted = cut.end - cut.start
        parts = []
        while wanted:
            if not rest:
                rest = memoryview(next(pieces))
            parts.append(rest[:wanted])
            rest = rest[wanted:]
            wanted -= len(parts[-1])
        yield b"".join(parts)
    for _ in pieces:  # runs the last file's checks
        raise AssertionError("blocks do not cover the frame")


_READ_BYTES = 1 << 20


def _tar_bytes(placed: Sequence[Placed]) -> Iterator[bytes]:
    for member, header, _ in placed:
        yield header
        try:
            with open(member.local, "rb", buffering=0) as file:
                yield from _checked_content(file, member)
        except OSError:
            raise RawFileChangedError(member.local) from None
        if padding := member_padding(member.size):
            yield bytes(padding)


def _checked_content(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yield a file's content, the last piece only after the whole has proved to be what was verified."""
    digest = hashlib.sha256()
    left = member.size
    while left:
        data = file.read(min(_READ_BYTES, left))
        left -= len(data)
        digest.update(data)
        if not data or (left == 0 and (file.read(1) or digest.hexdigest() != member.sha256)):
            raise RawFileChangedError(member.local)
        yield data
