"""Room on scratch for series from NBIA: one that is larger than there is fails alone, and others keep their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbia_kit import FILES, UID, V1, V4, ZIP, Bench, haul, one, refuse, soon
from run_kit import make_dicom, make_item
from zip_kit import make_series_zip

from pipeline.errors import ItemError
from pipeline.model import NbiaLocation
from pipeline.sizes import entry_bytes
from pipeline.sources.tcia_calls import FREE_SHARE, MAX_BYTES, plan_limits
from pipeline.sources.tcia_held import Store
from tests.transport.server import answer, chunked

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench with a site of its own."""
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is free on scratch: as much as the test says."""
    said = {"bytes": 64 << 30}
    monkeypatch.setattr(Store, "free", lambda self: said["bytes"])
    return said


def test_a_small_zip_of_more_images_than_scratch_has_room_for_fails_alone(bench, free):
    """Where no size is stated, what a zip inflates to is bounded by what is free; it is asked for once."""
    free["bytes"] = 20 * MIB
    blown = dict(FILES)
    blown["1-1.dcm"] += bytes(40 * MIB)
    bench.server.on(V4, chunked(make_series_zip(blown)))
    bench.server.on(V1, answer(404))
    unknown = msgspec.structs.replace(bench.item, bytes=-1)
    error = refuse(bench, unknown)
    assert (error.reason, error.transient, bench.asked()) == ("size", True, [V4])
    assert "scratch" in str(error)
    bench.server.on(V4, chunked(ZIP))
    assert len(haul(bench, bench.fetcher(), one(unknown))) == 3


def test_zip_and_images_together_keep_to_the_share(bench, free):
    """Both lie on scratch at one time, so that neither may take the whole share."""
    files = {"1-1.dcm": make_dicom(UID, f"{UID}.1", 30_000)}  # noise: its zip is as large
    made = make_series_zip(files)
    images = len(files["1-1.dcm"])
    bench.server.on(V4, chunked(made))
    unknown = msgspec.structs.replace(bench.make_item(files), files=-1, bytes=-1)
    free["bytes"] = 2 * (len(made) + images) - 2
    assert entry_bytes(one(unknown)) > free["bytes"]
    fetcher = bench.fetcher()
    with pytest.raises(ItemError, match="scratch"):
        haul(bench, fetcher, one(unknown))
    free["bytes"] += 2
    assert len(haul(bench, fetcher, one(unknown))) == 1


@pytest.mark.parametrize("stated", [True, False])
def test_what_is_yet_to_be_written_is_promised_until_the_entry_is_done(bench, free, stated):
    """Another series is not given the room of images that still lie in a zip."""
    bench.server.on(V4, chunked(ZIP))
    fetcher = bench.fetcher()
    item = bench.item if stated else msgspec.structs.replace(bench.item, bytes=-1)
    images = sum(map(len, FILES.values()))
    entry = one(item, 0, 1)
    fetcher.list_bodies(entry, soon())
    assert fetcher.room.promised == (0 if stated else images)  # of stated ones, the images are written at once
    fetcher.release(entry)
    assert fetcher.room.promised == 0
    first = one(item, 0, 3)
    bodies = fetcher.list_bodies(first, soon())
    assert fetcher.room.promised == sum(body.file.size for body in bodies)
    fetcher.release(first)
    assert fetcher.room.promised == 0


def test_while_a_series_comes_its_room_is_promised(bench, free, monkeypatch):
    """As much as was planned where its size is stated; a failure gives it back."""
    seen = []

    def stream(*_: object, **__: object) -> None:
        seen.append(fetcher.room.promised)
        raise ItemError("checksum", "no")

    fetcher = bench.fetcher()
    monkeypatch.setattr(bench.transport, "stream", stream)
    with pytest.raises(ItemError):
        fetcher.list_bodies(one(bench.item), soon())
    assert seen == [entry_bytes(one(bench.item))]
    assert fetcher.room.promised == 0


def test_a_series_that_alone_needs_more_than_there_is_fails_without_being_asked_for(bench, free):
    """Its reason is `size`, and a resume on a larger scratch may have it; others come."""
    free["bytes"] = 10 << 30
    bench.server.on(V4, chunked(ZIP))
    huge = msgspec.structs.replace(bench.item, bytes=100 * 10**9)
    error = refuse(bench, huge)
    assert (error.reason, bench.asked()) == ("size", [])
    assert "task.scratch" in str(error)
    assert len(haul(bench, bench.fetcher(), one(bench.item))) == 3


@given(files=st.integers(-1, 300_000), free=st.integers(0, 1 << 50), promised=st.integers(0, 1 << 51))
def test_no_limit_is_more_than_the_share_of_what_is_free(files: int, free: int, promised: int) -> None:
    """Of unstated sizes; and nobody is promised so much that another may not have what it was planned with."""
    item = make_item(0, files, -1, location=NbiaLocation("x"))
    limit, images = plan_limits(item, free, promised)
    assert 0 <= limit == images <= min(MAX_BYTES, int(free * FREE_SHARE))
    assert limit >= min(entry_bytes(one(item)), int(free * FREE_SHARE), MAX_BYTES)
