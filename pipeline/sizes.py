"""The bytes that items are planned with, also where the source states none, and their room on scratch. Pure.

Plan, task and doctor all ask here, so that they say the same. An assumption is of the manifest's item alone: nothing
that a run meets changes it. It decides frames, so another one would be other bytes of the archives of such items.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.model import Entry, IsicLocation, Item, NbiaLocation

# A photograph of the ISIC Archive: 0.4 MB on average in its training set of 2019, seldom more than a few MB.
IMAGE_BYTES = 1 << 20
# Each further file of an image is a thumbnail of at most 256 x 256 pixels.
FURTHER_BYTES = 64 << 10
# A DICOM instance: a slice of CT, 512 x 512 pixels of 16 bits. MR has smaller ones mostly, radiographs larger.
DICOM_BYTES = 512 << 10
# Instances of a series of which not even their number is stated.
SERIES_FILES = 100
# Of a zip, for each image: its name, twice, its headers, and its row in the list of MD5s. For all: list and licence.
ZIP_EACH = 2048
ZIP_FIXED = 64 << 10


def assume_bytes(files: int, *, image: bool = False) -> int:
    """Bytes of an item that its source does not state: of so many files, of a photograph or of a DICOM series."""
    if image:
        return IMAGE_BYTES + FURTHER_BYTES * (max(1, files) - 1)
    return DICOM_BYTES * (files if files > 0 else SERIES_FILES)


def item_bytes(item: Item) -> int:
    """Bytes that an item is planned with: as stated, else as assumed; more than 0."""
    if item.bytes > 0:
        return item.bytes
    return assume_bytes(item.files, image=isinstance(item.location, IsicLocation))


def zip_bytes(item: Item) -> int:
    """Bytes of the zip that an item comes in, which lies on scratch beside its images; 0 where it comes as files.

    As much as the images: those that are compressed already, as with JPEG, do not become smaller.
    """
    if not isinstance(item.location, NbiaLocation):
        return 0
    total = item_bytes(item)
    files = item.files if item.files > 0 else SERIES_FILES
    return total + (total >> 10) + ZIP_EACH * files + ZIP_FIXED


def entry_bytes(entry: Entry) -> int:
    """Bytes that an entry is planned to take on scratch: its files, and the zip that they come in.

    The zip of a series comes whole, also where the series is cut.
    """
    return item_bytes(entry.item) // entry.pieces + zip_bytes(entry.item)


def least_scratch(frames: Iterable[Iterable[Entry]], free: int | None = None) -> int:
    """Bytes of scratch without which frames cannot be done: twice the largest one.

    With `free`: of what can be done with so many free bytes at all. An entry from NBIA that needs more does not count:
    its fetcher refuses it, or bounds it by what is free, so that it keeps nobody else from being had.
    """
    sums = (sum(entry_bytes(each) for each in entries if not _is_too_large(each, free)) for entries in frames)
    return 2 * max(sums, default=0)


def _is_too_large(entry: Entry, free: int | None) -> bool:
    return free is not None and isinstance(entry.item.location, NbiaLocation) and 2 * entry_bytes(entry) > free


def scratch_bounds(allowed: int, largest_frame: int, largest_shard: int) -> tuple[int, int]:
    """Bytes of scratch without which a task does not start, and those that it uses at most, of `allowed` ones.

    Twice the largest frame: one may be packed while the next is fetched.
    """
    least = 2 * largest_frame
    return least, max(least, min(allowed, largest_shard))
