"""Planned items on their way: as JSON lines in a temporary file, with only their sizes in memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from pipeline.errors import ConfigError
from pipeline.model import Item, NbiaLocation
from pipeline.plan.source import EncodedItem, PlanSource
from pipeline.sizes import assume_bytes, item_bytes, zip_bytes


class Group(NamedTuple):
    """Items of one group, as positions in the plan: `first` to `first + length`."""

    name: str
    first: int
    length: int


class Spool:
    """Items in plan order, as JSON lines in a compressed temporary file, with their sizes in memory.

    Attributes
    ----------
    sizes, files
        Of each item: the bytes that it is planned with, above 0; its files as stated.
    zips
        Of each item, the bytes of the zip that it comes in.
    licences
        Items and planned bytes of each.
    unknown, assumed
        How many items are of unstated size, and the bytes that they are planned with.
    from_nbia
        How many items NBIA hands out.
    """

    def __init__(self) -> None:
        import zstandard

        self._file = tempfile.TemporaryFile(prefix="medhaul-plan-")  # noqa: SIM115 - closed by close()
        self._zstd = zstandard
        self.sizes = array("q")
        self.files = array("q")
        self.zips = array("q")
        self.groups: list[Group] = []
        self.licences: dict[str, tuple[int, int]] = {}
        self.unknown = self.assumed = self.from_nbia = 0

    def fill(self, source: PlanSource, on_progress: Callable[[int], None]) -> None:
        """Take in all items. Raises `ConfigError` when there are none, or two have one path."""
        encode = msgspec.json.Encoder().encode
        path = ""
        name, first = "", 0
        number = 0
        pending: list[bytes] = []
        totals: dict[str, list[int]] = {}
        put_size, put_files, put_zip = self.sizes.append, self.files.append, self.zips.append
        # One thread of its own for the compressor: it works while the next items are made.
        with self._zstd.ZstdCompressor(level=1, threads=1).stream_writer(self._file, closefd=False) as out:
            for group, item in source.select():
                if group != name:
                    if number:
                        self.groups.append(Group(name, first, number - first))
                    name, first, path = group, number, ""
                if item.path <= path:
                    raise _path_error(item, path)
                number += 1
                path, size = item.path, item.bytes
                if isinstance(item, EncodedItem):  # of the IDC, which hands out files
                    pending.append(item.json)
                    put_zip(0)
                else:
                    pending.append(encode(item))
                    put_zip(zip_bytes(item))
                    self.from_nbia += isinstance(item.location, NbiaLocation)
                if size <= 0:
                    size = assume_bytes(item.files) if isinstance(item, EncodedItem) else item_bytes(item)
                    self.unknown += 1
                    self.assumed += size
                put_size(size)
                put_files(item.files)
                total = totals.get(item.licence)
                if total is None:
                    total = totals[item.licence] = [0, 0]
                total[0] += 1
                total[1] += size
                if len(pending) == 4096:
                    out.write(b"\n".join(pending) + b"\n")
                    pending.clear()
                    on_progress(number)
            out.write(b"".join([line + b"\n" for line in pending]))
        if not number:
            raise ConfigError("nothing is selected", hint="loosen the conditions of [select]")
        self.licences = {licence: (count, size) for licence, (count, size) in totals.items()}
        self.groups.append(Group(name, first, len(self.sizes) - first))
        on_progress(len(self.sizes))

    def lines(self) -> Iterator[bytes]:
        """The items again, from the start."""
        self._file.seek(0)
        rest = b""
        with self._zstd.ZstdDecompressor().stream_reader(self._file, closefd=False) as reader:
            while chunk := reader.read(1 << 20):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                yield from lines

    def close(self) -> None:
        self._file.close()


def _path_error(item: Item | EncodedItem, before: str) -> Exception:
    if item.path == before:
        return ConfigError(
            f"two items would have the path {before} in the archive; one is {item.id}",
            hint="give archive.path more fields",
        )
    return RuntimeError(f"the source does not keep to the order of paths, at {item.path}")
