"""NBIA's image zips: names, order, licence and list of MD5s; also the zips that a failing server makes. Pure."""

from __future__ import annotations

import io
import itertools
import random
import zipfile
from collections.abc import Sequence
from typing import IO

import msgspec

from pipeline.demo.nbia_records import NbiaArchive, NbiaFile, NbiaSeries

MD5_LIST = "md5hashes.csv"
LICENCE = "LICENSE"
_DATE = (2025, 1, 1, 0, 0, 0)


class ZipOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint puts into its zip.

    Attributes
    ----------
    new_names
        `1-01.dcm` in the order of InstanceNumber; else `00000001.dcm` in the order of the database.
    licence
        LICENSE comes first.
    md5
        md5hashes.csv comes last.
    order
        Decides the order of the database and of the list of MD5s; another number, another order.
    """

    new_names: bool = False
    licence: bool = False
    md5: bool = False
    order: int = 0


class Entry(msgspec.Struct, frozen=True):
    """One image of a zip: its name, its content, and the MD5 that the database has of it."""

    name: str
    data: bytes
    md5: str


class ZipPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole content of a zip; `licence` and `listed` are None where the zip has no such member."""

    licence: str | None
    entries: tuple[Entry, ...]
    listed: tuple[tuple[str, str], ...] | None


def plan_zip(archive: NbiaArchive, series: NbiaSeries, options: ZipOptions) -> ZipPlan:
    """Choose names and order of the members; a file that is not there ends the zip, without a list of MD5s."""
    files = order_by_database(series, options.order)
    if options.new_names:
        # A stable sort by InstanceNumber over the order of the database; none counts as 0.
        files = sorted(files, key=lambda file: file.instance or 0)
        names = choose_new_names(files)
    else:
        names = [f"{number:08d}.dcm" for number in range(1, len(files) + 1)]
    entries, listed = [], options.md5
    for name, file in zip(names, files, strict=True):
        try:
            entries.append(Entry(name, archive.read(file), file.md5))
        except OSError:
            listed = False
            break
    return ZipPlan(
        licence=render_licence(archive, series) if options.licence else None,
        entries=tuple(entries),
        listed=shuffle_list(entries, series.uid, options.order) if listed else None,
    )


def order_by_database(series: NbiaSeries, order: int) -> list[NbiaFile]:
    """The files in an order of no meaning that depends on the series and a number."""
    files = sorted(series.files, key=lambda file: file.sop_instance_uid)
    random.Random(f"{series.uid}/{order}").shuffle(files)  # noqa: S311 - an order, not a secret
    return files


def shuffle_list(entries: Sequence[Entry], uid: str, order: int) -> tuple[tuple[str, str], ...]:
    """The rows of md5hashes.csv, in the order of a hash table."""
    rows = [(entry.name, entry.md5) for entry in entries]
    random.Random(f"{uid}/{order}/md5").shuffle(rows)  # noqa: S311
    return tuple(rows)


def choose_new_names(files: Sequence[NbiaFile]) -> list[str]:
    """Names of files in the order of their InstanceNumber: `<acquisition>-<instance>.dcm`, as counters that run.

    Each is padded to the digits of how often its number changes along the files.
    """
    acquisitions = [file.acquisition for file in files]
    instances = [file.instance for file in files]
    wide, long = _digits(acquisitions), _digits(instances)
    names = []
    acquisition, instance = 1, 0
    for n, number in enumerate(acquisitions):
        if n and number != acquisitions[n - 1]:
            acquisition, instance = acquisition + 1, 1
        else:
            instance += 1
        names.append(f"{acquisition:0{wide}}-{instance:0{long}}.dcm")
    return names


def _digits(numbers: Sequence[int | None]) -> int:
    changes = sum(one != other for one, other in itertools.pairwise(numbers))
    return len(str(changes + 1))


def render_licence(archive: NbiaArchive, series: NbiaSeries) -> str:
    """The text of LICENSE; empty when the series has no licence."""
    licence = next((one for one in archive.licences if one.short_name == series.licence), None)
    if licence is None:
        return ""
    return (
        f"This collection of images, {series.collection}, is made available under the licence {licence.short_name} "
        f"({licence.url}). Whoever uses the images must keep to its terms and cite the collection.\n"
    )


def render_list(rows: Sequence[tuple[str, str]]) -> str:
    """The text of md5hashes.csv."""
    return "Filename,MD5Hash\n" + "".join(f"{name},{md5}\n" for name, md5 in rows)


def write_zip(plan: ZipPlan, out: IO[bytes], level: int = 1) -> None:
    """Write a zip as a server writes it to a socket: flat, deflated, sizes and CRCs after each member."""
    with zipfile.ZipFile(_Stream(out), "w", zipfile.ZIP_DEFLATED, compresslevel=level) as made:

        def add(name: str, data: bytes) -> None:
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(member, data)

        if plan.licence is not None:
            add(LICENCE, plan.licence.encode())
        for entry in plan.entries:
            add(entry.name, entry.data)
        if plan.listed is not None:
            add(MD5_LIST, render_list(plan.listed).encode())


def render_zip(plan: ZipPlan, level: int = 1) -> bytes:
    """The bytes of a zip; see `write_zip`."""
    out = io.BytesIO()
    write_zip(plan, out, level)
    return out.getvalue()


class _Stream(io.RawIOBase):
    """A place to write to that cannot seek, so that zipfile writes data descriptors."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: object, /) -> int:
        return self._out.write(memoryview(data))  # type: ignore[arg-type]
