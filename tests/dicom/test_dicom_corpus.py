"""The DICOM check against pydicom, on the test files in pydicom's own package."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dicom.check import check_dicom, check_image
from pipeline.dicom.header import DEFLATED_LE
from pipeline.errors import ItemError

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
# Files that are not whole images, reports or plans, with the reason for which each must be refused.
REFUSED = {
    "MR_truncated.dcm": "truncated",  # ends within its pixel data
    "rtplan_truncated.dcm": "truncated",  # ends within a sequence
    "UN_sequence.dcm": "truncated",  # an image without pixels
    "priv_SQ.dcm": "truncated",  # an image without pixels
    "no_meta_group_length.dcm": "truncated",  # an image without pixels
    "badVR.dcm": "malformed",  # NumberOfFrames is '1A'
    "meta_missing_tsyntax.dcm": "malformed",  # pixel data and nothing to describe it
    "nested_priv_SQ.dcm": "malformed",  # pixel data and nothing to describe it
    "empty_charset_LEI.dcm": "wrong-uid",  # has no UIDs
    "JPEGLSNearLossless_08.dcm": "wrong-uid",  # has no SeriesInstanceUID
    "JPEGLSNearLossless_16.dcm": "wrong-uid",  # has no SeriesInstanceUID
    "SC_rgb_jls_lossy_line.dcm": "wrong-uid",  # has no SeriesInstanceUID
    "SC_rgb_jls_lossy_sample.dcm": "wrong-uid",  # has no SeriesInstanceUID
}
FILES = sorted(p.name for p in FOLDER.glob("*.dcm") if p.read_bytes()[128:132] == b"DICM")
BARE = sorted(p.name for p in FOLDER.iterdir() if p.is_file() and p.read_bytes()[128:132] != b"DICM")


def series_of(name: str) -> str:
    """The SeriesInstanceUID as pydicom reads it."""
    return str(pydicom.dcmread(FOLDER / name, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", ""))


def ends_with_pixels(name: str) -> bool:
    """Whether nothing follows the pixel data, so that every cut can be seen."""
    dataset = pydicom.dcmread(FOLDER / name)
    return max(dataset.keys()) == 0x7FE00010


WHOLE = [name for name in FILES if name not in REFUSED]
# The deflated file has eight bytes behind its stream that nobody misses.
CUTTABLE = [name for name in WHOLE if ends_with_pixels(name) and name != "image_dfl.dcm"]


def test_the_corpus_is_there():
    """The package brings enough files for the other tests to mean something."""
    assert len(WHOLE) > 50
    assert len(CUTTABLE) > 40


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_check_agrees_with_pydicom(name):
    """UIDs, shape, transfer syntax and text of a whole file are those that pydicom reads."""
    dataset = pydicom.dcmread(FOLDER / name)
    header = check_dicom(FOLDER / name, series_uid=series_of(name))
    assert header.sop_instance_uid == dataset.SOPInstanceUID
    assert header.series_instance_uid == dataset.SeriesInstanceUID
    assert header.study_instance_uid == dataset.StudyInstanceUID
    assert header.sop_class_uid == dataset.SOPClassUID
    assert header.transfer_syntax_uid == dataset.file_meta.TransferSyntaxUID
    assert header.patient_id == str(dataset.get("PatientID", ""))
    assert header.modality == str(dataset.get("Modality", ""))
    assert header.rows == (dataset.get("Rows") or 0)
    assert header.columns == (dataset.get("Columns") or 0)
    assert header.bits_allocated == (dataset.get("BitsAllocated") or 0)
    assert header.samples_per_pixel == (dataset.get("SamplesPerPixel") or 0)
    assert header.frames == int(dataset.get("NumberOfFrames") or 1)
    pixels = dataset.get(0x7FE00010)
    assert header.encapsulated == (pixels is not None and pixels.is_undefined_length)
    if pixels is not None and not header.encapsulated:
        assert header.pixel_length == len(pixels.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_in_memory_have_the_verdict_of_their_file(name):
    """Or none: of files that are deflated, odd or wrong."""
    at_once = check_image((FOLDER / name).read_bytes(), series_uid=series_of(name))
    try:
        header = check_dicom(FOLDER / name, series_uid=series_of(name))
    except ItemError:
        header = None
    plain = header is not None and header.transfer_syntax_uid != DEFLATED_LE and not header.warnings
    assert at_once == header if plain else at_once in {None, header}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_known_odd_files_are_refused_for_their_reason(name):
    """Files known to be cut, stripped or contradictory are refused with the right word."""
    with pytest.raises(ItemError) as caught:
        check_dicom(FOLDER / name, series_uid=series_of(name))
    assert caught.value.reason == REFUSED[name]


@pytest.mark.parametrize("name", BARE)
def test_files_without_preamble_are_not_dicom(name):
    """Bare data sets, dumps, JSON and gzip files of the corpus are refused as not DICOM."""
    with pytest.raises(ItemError) as caught:
        check_dicom(FOLDER / name, series_uid="1.2")
    assert caught.value.reason == "not-dicom"


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(CUTTABLE), share=st.floats(0, 1, exclude_max=True), back=st.integers(1, 200))
def test_no_prefix_of_a_real_file_is_accepted(tmp_path, name, share, back):
    """A real file that ends with its pixel data is refused when it is cut anywhere, near its end above all."""
    data, path = (FOLDER / name).read_bytes(), tmp_path / "cut.dcm"
    series = series_of(name)
    path.write_bytes(data)
    for size in (max(len(data) - back, 0), int(share * len(data))):
        os.truncate(path, size)
        with pytest.raises(ItemError):
            check_dicom(path, series_uid=series)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), data=st.data())
def test_flipped_bits_raise_nothing_unforeseen(tmp_path, name, data):
    """Bits flipped in the header of a real file lead to a header or an ItemError; in memory, to no other verdict."""
    file = bytearray((FOLDER / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, min(len(file), 4000) - 1))
        file[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.dcm"
    path.write_bytes(file)
    at_once = check_image(bytes(file), series_uid=series_of(name))
    try:
        header = check_dicom(path, series_uid=series_of(name))
    except ItemError:
        assert at_once is None
        return
    assert header.series_instance_uid
    assert at_once in {None, header}
