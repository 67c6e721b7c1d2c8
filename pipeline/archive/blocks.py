"""From tar bytes to xz blocks: where blocks are cut (pure), and how one is encoded and decoded."""

from __future__ import annotations

import hashlib
import lzma
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from pipeline.archive.chains import FILTERS, filter_flags, portable_chain, probe_chain
from pipeline.archive.xz import (
    CHECK_BYTES,
    BlockSize,
    XzFormatError,
    block_header,
    padded,
    stream_header,
    stream_tail,
)

# A member above this many block sizes is cut inside; below it, blocks end where members end.
HUGE_MEMBER_BLOCKS = 2
# A block that holds less than this takes members of another class in, rather than end.
MIN_CLASS_BYTES = 256 << 10
STORED_CHUNK = 1 << 16
# Four times what the chains need: a damaged or hostile block header may ask for a dictionary of 4 GiB.
DECODER_MEMORY = 64 << 20


class Sink(Protocol):
    """Whatever bytes can be written to."""

    def write(self, data: bytes | memoryview, /) -> int: ...


class BlockCut(NamedTuple):
    """Tar bytes `start` to `end` of a frame become one block, with a chain of class `chain`."""

    start: int
    end: int
    chain: str


class EncodedBlock(NamedTuple):
    """A block as it stands in the archive, padding included."""

    data: bytes
    size: BlockSize


def plan_blocks(members: Iterable[tuple[int, str]], block_bytes: int) -> list[BlockCut]:
    """Cut a frame's members, given as (tar bytes, chain class), into blocks of about `block_bytes`.

    A block's class is the one of most of its bytes (of equals, the first in alphabet), so that the cut depends on
    nothing but the members.
    """
    cuts: list[BlockCut] = []
    start = position = 0
    held: dict[str, int] = {}

    def close() -> None:
        nonlocal start, held
        if position > start:
            cuts.append(BlockCut(start, position, min(held, key=lambda name: (-held[name], name))))
        start, held = position, {}

    for size, chain in members:
        if held and chain not in held and position - start >= MIN_CLASS_BYTES:
            close()
        if size > HUGE_MEMBER_BLOCKS * block_bytes:
            close()
            end = position + size
            while position < end:
                position = min(end, position + block_bytes)
                held = {chain: position - start}
                close()
            continue
        position += size
        held[chain] = held.get(chain, 0) + size
        if position - start >= block_bytes:
            close()
    close()
    return cuts


def encode_block(data: bytes, chain: str, *, portable: bool, verify: bool) -> EncodedBlock:
    """Compress one block with a chain of the given class; releases the interpreter lock while it works.

    `verify` decodes the result and compares it: a fault of memory or of the encoder never reaches the archive.
    """
    name = probe_chain(chain, data[: 1 << 20])
    name = portable_chain(name) if portable else name
    if name == "S":
        body = b"".join(stored_chunks(data))
    else:
        body = lzma.compress(data, format=lzma.FORMAT_RAW, filters=FILTERS[name])
    if len(body) >= len(data) + 3 * (len(data) // STORED_CHUNK + 1) + 1:
        name, body = "S", b"".join(stored_chunks(data))
    flags = filter_flags(name)
    header = block_header(len(body), len(data), flags, len(FILTERS[name]))
    size = BlockSize(len(header) + len(body) + CHECK_BYTES, len(data))
    check = hashlib.sha256(data).digest()
    block = b"".join((header, body, bytes(padded(len(body)) - len(body)), check))
    if verify and decode_block(block, size) != data:
        raise RuntimeError("a block does not decode to what was encoded: faulty memory, processor or liblzma")
    return EncodedBlock(block, size)


def decode_block(block: bytes | memoryview, size: BlockSize) -> bytes:
    """The content of one block of the stated size, its SHA-256 checked by liblzma.

    Raises
    ------
    XzFormatError
        When the block is damaged or not of that size.
    """
    stream = b"".join((stream_header(), block, stream_tail([size], 1)))
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=DECODER_MEMORY)
    try:
        # The bound keeps a hostile block from growing; the second call takes in the check, the index and the footer.
        data = decoder.decompress(stream, size.uncompressed)
        rest = b"" if decoder.eof else decoder.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as error:
        raise XzFormatError(f"damaged block: {error}") from None
    if rest or not decoder.eof or len(data) != size.uncompressed:
        raise XzFormatError("damaged block: not of the stated size")
    return data


def stored_chunks(data: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """LZMA2 chunks that hold `data` uncompressed, and the end marker: no encoder needed, any xz reader takes them."""
    view = memoryview(data)
    for start in range(0, len(view), STORED_CHUNK):
        chunk = view[start : start + STORED_CHUNK]
        yield struct.pack(">BH", 1 if start == 0 else 2, len(chunk) - 1)
        yield chunk
    yield b"\x00"


def write_stored_block(out: Sink, content: Sequence[BinaryIO], size: int) -> BlockSize:
    """Write `size` bytes read from `content` (files, one after another) as one stored block, in bounded memory."""
    compressed = size + 3 * -(-size // STORED_CHUNK) + 1
    header = block_header(compressed, size, filter_flags("S"), len(FILTERS["S"]))
    out.write(header)
    digest = hashlib.sha256()
    files = list(content)
    for start in range(0, size, STORED_CHUNK):
        chunk = read_joined(files, min(STORED_CHUNK, size - start))
        out.write(struct.pack(">BH", 1 if start == 0 else 2, len(chunk) - 1))
        out.write(chunk)
        digest.update(chunk)
    out.write(b"\x00" + bytes(padded(compressed) - compressed) + digest.digest())
    return BlockSize(len(header) + compressed + CHECK_BYTES, size)


def read_joined(files: list[BinaryIO], count: int) -> bytes:
    """Read exactly `count` bytes from `files` as from one; files that are at their end leave the list."""
    parts = []
    while count:
        data = files[0].read(count)
        if not data:
            files.pop(0)
            continue
        parts.append(data)
        count -= len(data)
    return b"".join(parts)
