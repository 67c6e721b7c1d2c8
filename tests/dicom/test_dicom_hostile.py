"""The DICOM check on files that are cut, damaged or hostile, and the limits of its two slow ways."""

from __future__ import annotations

import os
import struct
import tracemalloc

import dicom_bytes as db
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dicom import fallback
from pipeline.dicom.check import check_dicom
from pipeline.errors import ItemError

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", db.GOOD)
def test_no_proper_prefix_is_accepted(tmp_path, name):
    """A file cut at any byte is refused, and as nothing worse than cut once its identity has been read."""
    data, path = db.GOOD[name], tmp_path / "cut.dcm"
    path.write_bytes(data)
    for size in range(len(data) - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(ItemError) as caught:
            check_dicom(path, series_uid=db.SERIES)
        assert caught.value.reason == ("truncated" if size >= 132 else "not-dicom"), size


@relaxed
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, data):
    """Bytes overwritten anywhere lead to a header or to an ItemError, never to another exception."""
    file = bytearray(db.GOOD[data.draw(st.sampled_from(sorted(db.GOOD)))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(132, len(file) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\xfe\xff"]))
        file[at : at + len(patch)] = patch
    try:
        header = db.check(tmp_path, bytes(file))
    except ItemError:
        return
    assert header.series_instance_uid == db.SERIES


@relaxed
@given(st.binary(max_size=400), st.sampled_from([db.EXPLICIT, db.IMPLICIT, db.BIG, db.DEFLATED, db.JPEG, "", "9.9"]))
def test_random_data_sets_are_refused(tmp_path, noise, transfer_syntax):
    """Noise behind a valid file meta information is refused, whatever the transfer syntax."""
    db.refusal(tmp_path, db.part10(transfer_syntax, noise))


@pytest.mark.parametrize("syntax", [db.EXPLICIT, db.IMPLICIT])
@pytest.mark.parametrize("tail", [bytes(2**20), bytes(64) + b"\1"])
def test_a_hole_is_not_padding(tmp_path, syntax, tail):
    """A megabyte of zeros, or zeros with something behind them, are a hole in the file."""
    w = db.identity(db.writer_for(syntax), sop_class=db.BASIC_TEXT_SR)
    assert db.refusal(tmp_path, db.part10(syntax, bytes(w.out) + tail)).reason == "malformed"


def test_a_thousand_unknown_vrs_are_one_warning(tmp_path):
    """Warnings do not grow with a hostile file."""
    w = db.identity(db.Writer(), sop_class=db.BASIC_TEXT_SR)
    for n in range(1000):
        w.raw(struct.pack("<HH2sH", 0x0021, n, b"z%c" % (n % 250), 2) + b"ab")
    assert len(db.check(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).warnings) == 1


@pytest.mark.parametrize("explicit", [True, False])
def test_bottomless_nesting_is_malformed(tmp_path, explicit):
    """Sequences within sequences are followed to a limit, not to the interpreter's."""
    w = db.identity(db.Writer(explicit=explicit))
    for _ in range(20_000):
        w.head(0x00081140, "SQ", db.UNDEFINED).item(db.UNDEFINED)
    error = db.refusal(tmp_path, db.part10(db.EXPLICIT if explicit else db.IMPLICIT, bytes(w.out)))
    assert error.reason == "malformed"
    assert "64 sequences" in str(error)


@pytest.mark.parametrize("transfer_syntax", [db.EXPLICIT, db.IMPLICIT, db.BIG])
@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFE])
@pytest.mark.parametrize("tag", [0x00100020, 0x00280008, 0x00420011, 0x7FE00010, 0x00091001])
def test_hostile_lengths_cost_no_memory(tmp_path, transfer_syntax, length, tag):
    """A length of gigabytes in any element is refused without allocating for it."""
    w = db.identity(db.writer_for(transfer_syntax)).head(tag, "UN", length).raw(bytes(100))
    tracemalloc.start()
    try:
        assert db.refusal(tmp_path, db.part10(transfer_syntax, bytes(w.out))).reason == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_gigabytes_of_pixels_cost_no_memory(tmp_path):
    """A sparse 4 GB multi-frame file is checked in kilobytes."""
    length = 1000 * 1000 * 2 * 2000
    w = db.describe(db.identity(db.Writer()), rows=1000, columns=1000, frames=2000).head(0x7FE00010, "OW", length)
    data, path = db.part10(db.EXPLICIT, bytes(w.out)), tmp_path / "big.dcm"
    path.write_bytes(data)
    os.truncate(path, len(data) + length)
    tracemalloc.start()
    try:
        assert check_dicom(path, series_uid=db.SERIES).pixel_length == length
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_deflate_bomb_is_stopped(tmp_path, monkeypatch):
    """A deflated data set that grows past the limit is refused, and leaves nothing behind."""
    monkeypatch.setattr(fallback, "MAX_INFLATED", 100)
    error = db.refusal(tmp_path, db.GOOD["deflated"])
    assert error.reason == "malformed"
    assert [path.name for path in tmp_path.iterdir()] == ["x.dcm"]


def test_deflated_rubbish_is_malformed(tmp_path):
    """A data set that does not inflate is refused as such."""
    assert db.refusal(tmp_path, db.part10(db.DEFLATED, b"\xff" * 50)).reason == "malformed"
    assert db.refusal(tmp_path, db.part10(db.DEFLATED, b"\x03\x00")).reason == "truncated"


def odd_vr(pixels: int) -> bytes:
    """A file with an empty element of an invented VR and a 16-bit length, which only pydicom reads rightly."""
    w = db.identity(db.Writer()).raw(struct.pack("<HH2sH", 0x0021, 0x1001, b"XX", 0))
    db.describe(w).put(0x7FE00010, "OW", bytes(range(48)))
    return db.part10(db.EXPLICIT, bytes(w.out)[: len(w.out) - 48 + pixels])


def test_pydicom_gives_a_second_opinion(tmp_path):
    """Where the walk loses its way, pydicom's header is taken, said so, and the pixel data walked as ever."""
    header = db.check(tmp_path, odd_vr(48))
    assert (header.rows, header.columns, header.pixel_length, header.modality) == (4, 6, 48, "CT")
    assert any("pydicom" in warning for warning in header.warnings)
    assert db.refusal(tmp_path, odd_vr(46)).reason == "truncated"


def test_the_second_opinion_reads_no_more_than_its_share(tmp_path, monkeypatch):
    """The second parser is not let loose on a header larger than the limit."""
    monkeypatch.setattr(fallback._BoundedReader, "left", 200)
    assert db.refusal(tmp_path, odd_vr(48)).reason == "truncated"
