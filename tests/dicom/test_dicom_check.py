"""The DICOM check on files made of bytes: what is accepted, what is refused and why."""

from __future__ import annotations

import struct

import dicom_bytes as db
import pytest

from pipeline.dicom.header import is_uid


@pytest.mark.parametrize("name", db.GOOD)
def test_whole_files_are_accepted_without_warning(tmp_path, name):
    """Every way of writing a whole image is accepted and its identity read alike."""
    header = db.check(tmp_path, db.GOOD[name])
    assert (header.sop_instance_uid, header.series_instance_uid) == (db.INSTANCE, db.SERIES)
    assert (header.study_instance_uid, header.patient_id, header.modality) == (db.STUDY, "P-1", "CT")
    assert header.rows in {3, 4}
    assert header.warnings == ()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE HTML><html><body>503 Service Unavailable</body></html>", "HTML"),
        (b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>" + bytes(200), "SlowDown"),
        (b'{"error": "no such series"}', "JSON"),
        (b"\x1f\x8b\x08\x00" + bytes(500), "gzip"),
        (bytes(4000), "DICM"),
    ],
)
def test_other_things_are_not_dicom(tmp_path, data, word):
    """What an error page, an empty body or another format is, is said in the message, with the file's name."""
    error = db.refusal(tmp_path, data)
    assert error.reason == "not-dicom"
    assert word in str(error)
    assert str(error).startswith("x.dcm: ")


def test_a_file_without_preamble_is_not_dicom(tmp_path):
    """A bare data set is refused: the archives always write Part 10 files."""
    assert db.refusal(tmp_path, db.GOOD["implicit"][132:]).reason == "not-dicom"


def test_another_series_is_refused(tmp_path):
    """The message names both UIDs when the file belongs to another series."""
    error = db.refusal(tmp_path, db.GOOD["explicit"], series="1.2.3.4")
    assert error.reason == "wrong-uid"
    assert "1.2.3.4" in str(error)
    assert db.SERIES in str(error)


@pytest.mark.parametrize("uid", ["", "1..2", "1.2.", ".1", "1.2.x", "1.2 .3", "../../etc", "1." + "2" * 63, "\uff11.2"])
def test_invalid_instance_uids_are_refused(tmp_path, uid):
    """A SOPInstanceUID becomes a file name, so one that breaks the UID syntax is refused."""
    w = db.describe(db.identity(db.Writer(), instance=uid)).put(0x7FE00010, "OW", bytes(48))
    assert not is_uid(uid)
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).reason == "wrong-uid"


def test_a_missing_instance_uid_is_refused(tmp_path):
    """A data set without SOPInstanceUID is refused even if the file meta information has one."""
    w = db.Writer().put(0x00080060, "CS", "SR").put(0x0020000E, "UI", db.SERIES)
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, bytes(w.out), sop_class=db.BASIC_TEXT_SR)).reason == "wrong-uid"


def test_padding_of_uids_is_stripped(tmp_path):
    """UIDs padded with spaces instead of NUL are the same UIDs."""
    w = db.describe(db.identity(db.Writer(), series=db.SERIES + "  ", instance=db.INSTANCE + " "))
    header = db.check(tmp_path, db.part10(db.EXPLICIT, bytes(w.put(0x7FE00010, "OW", bytes(48)).out)))
    assert (header.series_instance_uid, header.sop_instance_uid) == (db.SERIES, db.INSTANCE)


def test_a_stale_media_storage_uid_is_a_warning(tmp_path):
    """De-identified files often keep the old MediaStorageSOPInstanceUID: accepted, and said."""
    data_set = bytes(db.describe(db.identity(db.Writer())).put(0x7FE00010, "OW", bytes(48)).out)
    header = db.check(tmp_path, db.part10(db.EXPLICIT, data_set, instance="1.2.3.99"))
    assert header.sop_instance_uid == db.INSTANCE
    assert any("1.2.3.99" in warning for warning in header.warnings)


def test_frames_and_lengths_are_recorded(tmp_path):
    """A native multi-frame file tells its shape and the length of its pixel data."""
    header = db.check(tmp_path, db.native(db.EXPLICIT, rows=5, columns=7, frames=11))
    assert (header.rows, header.columns, header.frames, header.bits_allocated) == (5, 7, 11, 16)
    assert (header.pixel_length, header.encapsulated, header.samples_per_pixel) == (770, False, 1)


@pytest.mark.parametrize("shape", [{"frames": 5}, {"bits": 8, "samples": 3}, {"bits": 32}, {"rows": 3, "columns": 3}])
def test_short_native_pixel_data_is_malformed(tmp_path, shape):
    """Pixel data shorter than its description is refused although every element is whole."""
    whole = db.native(db.EXPLICIT, **shape)
    length = db.check(tmp_path, whole).pixel_length
    assert db.refusal(tmp_path, db.native(db.EXPLICIT, length=length - 2, **shape)).reason == "malformed"


def test_bits_are_packed_over_frames(tmp_path):
    """Seven frames of nine one-bit pixels take eight bytes, not seven times two; seven bytes are too few."""
    shape = {"rows": 3, "columns": 3, "bits": 1, "frames": 7, "sop_class": db.SEGMENTATION}
    assert db.check(tmp_path, db.native(db.EXPLICIT, length=8, **shape)).warnings == ()
    assert db.refusal(tmp_path, db.native(db.EXPLICIT, length=7, **shape)).reason == "malformed"


@pytest.mark.parametrize(("excess", "warned"), [(1, False), (2, True), (12, True)])
def test_excess_pixel_data_is_a_warning(tmp_path, excess, warned):
    """One byte of even padding is normal; more is kept as a warning and refuses nothing."""
    header = db.check(tmp_path, db.native(db.EXPLICIT, rows=3, columns=3, bits=8, length=9 + excess))
    assert any("more than described" in warning for warning in header.warnings) == warned


def test_chroma_subsampling_takes_two_thirds(tmp_path):
    """Native YBR_FULL_422 holds two bytes a pixel for three samples."""
    w = db.describe(db.identity(db.Writer(), sop_class=db.SECONDARY_CAPTURE), bits=8, samples=3)
    data = bytes(w.put(0x7FE00010, "OB", bytes(48)).out)
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, data)).reason == "malformed"
    half = data.replace(b"CS\x04\x00RGB ", b"CS\x0c\x00YBR_FULL_422")
    assert half != data
    assert db.check(tmp_path, db.part10(db.EXPLICIT, half)).pixel_length == 48


def test_float_pixel_data_is_pixel_data(tmp_path):
    """A parametric map may carry FloatPixelData instead; it must be as long as described."""
    w = db.describe(db.identity(db.Writer()), bits=32)
    for length, good in ((96, True), (92, False)):
        data = db.part10(db.EXPLICIT, bytes(w.out) + bytes(db.Writer().put(0x7FE00008, "OF", bytes(length)).out))
        if good:
            assert db.check(tmp_path, data).pixel_length == 96
        else:
            assert db.refusal(tmp_path, data).reason == "malformed"


def test_encapsulated_files_are_recorded_as_such(tmp_path):
    """Fragments make a header encapsulated, with no native length."""
    header = db.check(tmp_path, db.encapsulated())
    assert (header.encapsulated, header.pixel_length, header.frames) == (True, 0, 3)
    assert header.transfer_syntax_uid == db.JPEG


@pytest.mark.parametrize(
    ("value", "frames"), [("0", 1), ("", 1), (" 1 ", 1), ("1A", None), ("-1", None), ("9" * 13, None)]
)
def test_frame_numbers_are_read_with_care(tmp_path, value, frames):
    """No or zero frames count as one; what is no number is refused."""
    w = db.describe(db.identity(db.Writer())).put(0x00280008, "IS", value).put(0x7FE00010, "OW", bytes(48))
    data = db.part10(db.EXPLICIT, bytes(w.out))
    if frames is None:
        assert db.refusal(tmp_path, data).reason == "malformed"
    else:
        assert db.check(tmp_path, data).frames == frames


def test_numbers_of_odd_size_are_malformed(tmp_path):
    """Rows of six bytes are not guessed at."""
    w = db.describe(db.identity(db.Writer())).put(0x00280010, "US", b"\4\0" * 3).put(0x7FE00010, "OW", bytes(48))
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).reason == "malformed"


@pytest.mark.parametrize("tag", [0x7FE00008, 0x00420011, 0x00091001])
def test_plain_values_need_a_length(tmp_path, tag):
    """Only sequences and encapsulated pixel data may have an undefined length."""
    w = db.describe(db.identity(db.Writer())).head(tag, "OF", db.UNDEFINED).raw(bytes(60))
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).reason == "malformed"


def test_fragments_need_a_length(tmp_path):
    """A fragment of undefined length is refused."""
    w = db.describe(db.identity(db.Writer())).head(0x7FE00010, "OB", db.UNDEFINED).item(0).item(db.UNDEFINED)
    data = db.part10(db.JPEG, bytes(w.raw(b"abcd").end_item().end_sequence().out))
    assert db.refusal(tmp_path, data).reason == "malformed"


def test_an_implicit_file_meta_information_is_read(tmp_path):
    """Old writers put the file meta information in implicit VR; what it says is used all the same."""
    meta = db.Writer(explicit=False).put(0x00020010, "UI", db.EXPLICIT)
    data = bytes(128) + b"DICM" + bytes(meta.out) + db.GOOD["explicit"][len(db.part10(db.EXPLICIT, b"")) :]
    header = db.check(tmp_path, data)
    assert (header.transfer_syntax_uid, header.warnings) == (db.EXPLICIT, ())


def test_fewer_fragments_than_frames_are_malformed(tmp_path):
    """Each frame of an image coder needs a fragment; a video's frames share one."""
    assert db.refusal(tmp_path, db.encapsulated(fragments=2, frames=3)).reason == "malformed"
    assert db.refusal(tmp_path, db.encapsulated(db.MPEG4, fragments=0)).reason == "malformed"
    assert db.check(tmp_path, db.encapsulated(db.MPEG4, fragments=1, frames=3)).frames == 3


def test_undelimited_fragments_are_refused(tmp_path):
    """Without delimiter the fragments run into the end (truncated) or into another element (malformed)."""
    bare = db.encapsulated(close=False)
    assert db.refusal(tmp_path, bare).reason == "truncated"
    padding = bytes(db.Writer().put(0xFFFCFFFC, "OB", b"\0\0").out)
    assert db.refusal(tmp_path, bare + padding).reason == "malformed"


def test_elements_and_zeros_behind_the_pixel_data_are_fine(tmp_path):
    """Trailing padding element, digital signature groups and zero fill refuse nothing; the fill is said."""
    more = db.Writer().put(0xFFFCFFFC, "OB", b"\0" * 6)
    assert db.check(tmp_path, db.GOOD["explicit"] + bytes(more.out)).warnings == ()
    for name in ("explicit", "implicit", "encapsulated"):
        for zeros in (1, 7, 8, 500):
            assert "zero bytes" in db.check(tmp_path, db.GOOD[name] + bytes(zeros)).warnings[0]


def test_text_behind_the_pixel_data_is_refused(tmp_path):
    """A stray tail that is neither element nor padding is refused: it may be half an element."""
    assert db.refusal(tmp_path, db.GOOD["explicit"] + b"tail!").reason == "truncated"


def test_objects_without_pixels_are_accepted(tmp_path):
    """Reports and unknown classes without image description need no pixel data."""
    assert db.check(tmp_path, db.without_pixels()).rows == 0
    assert db.check(tmp_path, db.without_pixels(db.PRIVATE_CLASS)).encapsulated is False


@pytest.mark.parametrize("sop_class", [db.CT, db.SEGMENTATION, db.RT_DOSE, db.ENCAPSULATED_PDF])
def test_a_cut_between_elements_is_seen_by_the_class(tmp_path, sop_class):
    """A class that must have pixels, dose or a document is cut where it has none, even before its description."""
    assert db.refusal(tmp_path, db.without_pixels(sop_class)).reason == "truncated"


def test_a_cut_between_elements_is_seen_by_the_description(tmp_path):
    """Whatever the class: who describes pixels must have them, unless they lie at a provider's URL."""
    w = db.describe(db.identity(db.Writer(), sop_class=db.PRIVATE_CLASS))
    assert db.refusal(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).reason == "truncated"
    w.put(0x00287FE0, "UT", "http://jpip.example/1")
    assert db.check(tmp_path, db.part10(db.EXPLICIT, bytes(w.out))).pixel_length == 0


def test_group_lengths_and_odd_lengths_are_read(tmp_path):
    """Retired group length elements and values of odd length change nothing, in both VR forms."""
    for syntax in (db.EXPLICIT, db.IMPLICIT):
        w = db.writer_for(syntax).put(0x00080000, "UL", b"\1\2\3\4").put(0x00080008, "CS", b"ODD")
        db.describe(db.identity(w)).put(0x7FE00010, "OW", bytes(48))
        assert db.check(tmp_path, db.part10(syntax, bytes(w.out))).warnings == ()


@pytest.mark.parametrize(("stated", "written"), [(db.EXPLICIT, db.IMPLICIT), (db.IMPLICIT, db.EXPLICIT)])
def test_a_wrong_transfer_syntax_is_a_warning(tmp_path, stated, written):
    """A data set written with implicit VR under an explicit syntax, or the other way round, is still read."""
    data = db.native(written).replace(_stated(written), _stated(stated))
    header = db.check(tmp_path, data)
    assert header.rows == 4
    assert stated in header.warnings[0]


@pytest.mark.parametrize("written", [db.EXPLICIT, db.IMPLICIT, db.BIG])
def test_a_missing_transfer_syntax_is_guessed(tmp_path, written):
    """Without TransferSyntaxUID the first element tells how the data set is written."""
    header = db.check(tmp_path, db.native(written).replace(_stated(written), b""))
    assert header.transfer_syntax_uid == written
    assert "no transfer syntax" in header.warnings[0]


def _stated(uid: str) -> bytes:
    return bytes(db.Writer().put(0x00020010, "UI", uid).out)


def test_a_wrong_meta_group_length_is_not_believed(tmp_path):
    """The data set is found by its elements, not by (0002,0000)."""
    data = db.GOOD["explicit"]
    at = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    for length in (0, 7, 0xFFFFFFFF):
        assert db.check(tmp_path, data[:at] + struct.pack("<I", length) + data[at + 4 :]).rows == 4


def test_a_compressed_icon_is_not_the_image(tmp_path):
    """Fragments and rows inside an icon image sequence are stepped over."""
    w = db.identity(db.Writer()).head(0x00880200, "SQ", db.UNDEFINED).item(db.UNDEFINED)
    db.describe(w, rows=99).head(0x7FE00010, "OB", db.UNDEFINED).item(0).item(4, b"abcd").end_sequence()
    w.end_item().end_sequence()
    # Tags out of order on purpose: the image's own description comes last.
    db.describe(w).put(0x7FE00010, "OW", bytes(48))
    header = db.check(tmp_path, db.part10(db.EXPLICIT, bytes(w.out)))
    assert (header.rows, header.encapsulated) == (4, False)
