"""Which way a series comes, and the licence text at the start of a zip."""

from __future__ import annotations

import contextlib
import io
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import build_nbia
from pipeline.errors import ItemError
from pipeline.sources.tcia_licence import MAX_TEXT, LicenceReader, fetch_licence
from pipeline.sources.tcia_route import Choice, Stated, choose_route
from pipeline.transport.pool import ConnectionPool

S = Stated


@pytest.mark.parametrize(
    ("nbia", "idc", "wanted"),
    [
        (S(3, 30), None, Choice("nbia", "only-nbia")),
        (None, S(3, 30), Choice("idc", "only-idc")),
        (S(3, 30), S(3, 30), Choice("idc", "same")),
        (S(4, 30), S(3, 40), Choice("nbia", "more-files")),
        (S(3, 40), S(4, 30), Choice("idc", "more-files")),
        (S(3, 40), S(3, 30), Choice("nbia", "other-bytes")),
        (S(-1, -1), S(3, 30), Choice("idc", "unstated")),
        (S(3, -1), S(3, 30), Choice("idc", "unstated")),
        (S(-1, 30), S(3, 30), Choice("idc", "unstated")),
        (S(-1, 31), S(3, 30), Choice("nbia", "other-bytes")),
        (None, None, None),
    ],
)
def test_the_rule(nbia: Stated | None, idc: Stated | None, wanted: Choice | None) -> None:
    """What each side states decides, as the module says."""
    assert choose_route("auto", nbia, idc) == wanted


sides = st.none() | st.builds(Stated, st.integers(-1, 5), st.integers(-1, 5))


@given(nbia=sides, idc=sides)
def test_a_forced_route_is_taken_or_none(nbia: Stated | None, idc: Stated | None) -> None:
    """A forced route is never another one, and no series comes from where it is not."""
    assert choose_route("idc", nbia, idc) == (Choice("idc", "forced") if idc else None)
    assert choose_route("nbia", nbia, idc) == (Choice("nbia", "forced") if nbia else None)
    choice = choose_route("auto", nbia, idc)
    assert (choice is None) == (nbia is None and idc is None)
    assert choice is None or (idc if choice.way == "idc" else nbia) is not None


def make_zip(*members: tuple[str, bytes], stored: bool = False) -> bytes:
    """A zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as made:
        for name, data in members:
            made.writestr(name, data)
    return out.getvalue()


@given(
    step=st.integers(1, 60),
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200).filter(str.strip),
)
def test_a_licence_is_read_however_its_bytes_come(step: int, text: str) -> None:
    """The text of the first member comes out, whatever pieces the zip arrives in, and nothing of the rest is needed."""
    for stored in (False, True):
        data = make_zip(("LICENSE", text.encode()), ("1-1.dcm", b"x" * 5000), stored=stored)
        reader = LicenceReader()
        for begin in range(0, len(data), step):
            reader.feed(data[begin : begin + step])
            if reader.text is not None:
                break
        assert reader.text == text.strip()


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        make_zip(("1-1.dcm", b"x")),
        make_zip(),
        make_zip(("LICENSE", b"a" * (MAX_TEXT + 10))),
        make_zip(("LICENSE", b""), ("1-1.dcm", b"x")),
        make_zip(("LICENSE", b" \r\n"), ("1-1.dcm", b"x"), stored=True),
        b"PK\x03\x04\x14\0\x08" + make_zip(("LICENSE", b"x"), stored=True)[7:],
        make_zip(("LICENSE", b"text" * 50))[:37] + b"\xff" * 50,
        b"PK\x03\x04" + b"\xff" * 200_000,
    ],
    ids=[
        "page",
        "images",
        "nothing",
        "bomb",
        "empty",
        "blank",
        "lying",
        "broken",
        "garbage",
    ],  # zips hold the time: no names for tests
)
def test_what_is_no_licence_is_refused(data: bytes) -> None:
    """Pages, zips of images, empty zips, bombs and broken ones are an error, not a text."""
    with pytest.raises(ValueError, match=r".+"):
        LicenceReader().feed(data)


def test_endless_bytes_are_not_waited_for() -> None:
    """After a megabyte without the end of a licence it is enough."""
    head = make_zip(("LICENSE", b""))[:37]
    empty_blocks = b"\0\0\0\xff\xff" * 13_000  # of deflate: they go on for ever and unpack to nothing
    reader = LicenceReader()
    reader.feed(head)
    for _ in range(16):
        reader.feed(empty_blocks)
    with pytest.raises(ValueError, match="no licence in the first"):
        reader.feed(empty_blocks)


@given(data=st.binary(max_size=200))
def test_any_bytes_end_in_a_text_or_a_value_error(data: bytes) -> None:
    """No bytes make the reader fail in another way."""
    for start in (b"", b"PK\x03\x04", make_zip(("LICENSE", b"text"))[:37]):
        with contextlib.suppress(ValueError):
            LicenceReader().feed(start + data)


def test_the_site_sends_the_licence_first(tmp_path: Path) -> None:
    """One request brings the text; a refusal, a broken answer and a stalled one are an `ItemError` in time."""
    demo = build_nbia(tmp_path, "tiny")
    uid = demo.named["single"]
    pool = ConnectionPool(limit=1)
    with NbiaSite(demo.archive) as site:
        url = f"{site.url}/nbia-api/services"
        text = fetch_licence(pool, url, uid, 20.0, threading.Event())
        assert "Demo NBIA Only" in text
        assert "CC BY 3.0" in text
        assert site.calls() == {"v4/getImage": 1}
        for fault in ("error-500", "hangup", "html", "empty", "stall", "zip-empty"):
            site.faults.set("nbia/*", Fault(kind=fault))
            begun = time.monotonic()
            with pytest.raises(ItemError, match=uid):
                fetch_licence(pool, url, uid, 1.0, threading.Event())
            assert time.monotonic() - begun < 10
        site.faults.clear()
        with pytest.raises(ItemError, match="400"):
            fetch_licence(pool, url, demo.named["restricted"], 5.0, threading.Event())
    pool.close()
