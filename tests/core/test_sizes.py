"""Sizes that items are planned with: as stated, or by one rule where nothing is stated; and the room of their zips."""

from __future__ import annotations

import io
import random
import zipfile

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.model import Entry, IdcLocation, IsicLocation, Item, Location, NbiaLocation
from pipeline.sizes import (
    DICOM_BYTES,
    FURTHER_BYTES,
    IMAGE_BYTES,
    SERIES_FILES,
    assume_bytes,
    entry_bytes,
    item_bytes,
    least_scratch,
    scratch_bounds,
    zip_bytes,
)

IDC, NBIA, ISIC = IdcLocation("b", "u"), NbiaLocation("http://h/s"), IsicLocation("http://h/api")


def make(where: Location, files: int, size: int) -> Item:
    """An item of which a source states so much."""
    return Item("i", "p", files, size, where, "")


@given(st.sampled_from([IDC, NBIA, ISIC]), st.integers(-1, 10**6), st.integers(-(2**62), 2**62))
def test_what_is_stated_stands_and_the_rest_is_assumed_from_kind_and_files(
    where: Location, files: int, size: int
) -> None:
    """No item is planned as nothing, and nothing but the manifest's item decides."""
    item = make(where, files, size)
    planned = item_bytes(item)
    assert planned == (size if size > 0 else assume_bytes(files, image=where is ISIC))
    assert planned > 0
    assert planned == item_bytes(msgspec.structs.replace(item, id="x", path="y", licence="z"))


@pytest.mark.parametrize(
    ("where", "files", "planned"),
    [
        (ISIC, 1, IMAGE_BYTES),
        (ISIC, 2, IMAGE_BYTES + FURTHER_BYTES),
        (ISIC, -1, IMAGE_BYTES),
        (NBIA, 40, 40 * DICOM_BYTES),
        (IDC, 1, DICOM_BYTES),
        (NBIA, -1, SERIES_FILES * DICOM_BYTES),
        (NBIA, 0, SERIES_FILES * DICOM_BYTES),
    ],
)
def test_an_assumed_size_is_by_kind_and_files(where: Location, files: int, planned: int) -> None:
    """An image with its thumbnail, or a series of so many instances; of an unstated number, as many as many have."""
    assert item_bytes(make(where, files, -1)) == item_bytes(make(where, files, 0)) == planned


@example(3, 200_000, False)
@example(3, 200_000, True)
@given(st.integers(1, 60), st.integers(0, 20_000), st.booleans())
def test_a_zip_of_what_does_not_compress_is_within_its_room(files: int, size: int, stored: bool) -> None:
    """Noise, as JPEG is: names, headers and a list of MD5s make the zip larger than the images, and still it fits."""
    noise = random.Random(files)
    out = io.BytesIO()
    names = [f"1.3.6.1.4.1.14519.5.2.1.{'9' * 30}.{number:06d}.dcm" for number in range(files)]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, noise.randbytes(size))
        archive.writestr("md5hashes.csv", "".join(f"{name},{noise.randbytes(16).hex()}\n" for name in names))
    item = make(NBIA, files, max(1, files * size))
    assert files * size <= len(out.getvalue()) <= zip_bytes(item)


def test_only_what_comes_as_a_zip_needs_room_for_one() -> None:
    """The other sources hand out files."""
    assert [zip_bytes(make(where, 3, 1000)) for where in (IDC, ISIC)] == [0, 0]
    assert zip_bytes(make(NBIA, -1, -1)) >= item_bytes(make(NBIA, -1, -1))


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_task_needs_twice_its_largest_frame_and_no_more_than_is_allowed(frame: int, shard: int, allowed: int) -> None:
    """It never uses more than its shard holds or it is allowed, unless a frame asks for it."""
    least, most = scratch_bounds(allowed, frame, shard)
    assert least == 2 * frame
    assert most == max(least, min(allowed, shard))


def test_what_is_too_large_for_scratch_does_not_count_where_its_fetcher_sees_to_it() -> None:
    """A series of NBIA that no scratch can hold keeps no other from being done; of other sources all must fit."""
    small, large, far = (
        Entry(0, 0, 0, 1, make(where, 5, size)) for where, size in ((NBIA, 10**6), (NBIA, 10**11), (IDC, 10**10))
    )
    assert least_scratch([[small, large], [small]]) == 2 * (entry_bytes(small) + entry_bytes(large))
    assert least_scratch([[small, large], [small, small]], 10**10) == 4 * entry_bytes(small)
    assert least_scratch([[small, large], [far]], 10**10) == 2 * 10**10
    assert least_scratch([[large]], 10**10) == least_scratch([]) == 0
    cut = Entry(0, 0, 0, 10, large.item)
    assert entry_bytes(cut) > 10**11
    assert least_scratch([[small, cut]], 2 * entry_bytes(cut)) == 2 * (entry_bytes(small) + entry_bytes(cut))
