"""Demo DICOM must be DICOM: read by pydicom without force, with the UIDs and pixels it promises, always the same."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo import encode, phantom
from pipeline.demo.dicoms import KINDS, choose_area, make_fitting_series, make_series, plan_sizes
from pipeline.demo.kinds import LIKENESS, SEG_FRAMES
from pipeline.demo.samples import SAMPLES, read_sample

SERIES = "1.3.6.1.4.1.14519.5.2.1.6834.5010.155488857019753544209698582121"
STUDY = "1.3.6.1.4.1.14519.5.2.1.6834.5010.117291650651265592494655001035"


def read(data: bytes) -> pydicom.FileDataset:
    """Read DICOM that must have its preamble."""
    return pydicom.dcmread(io.BytesIO(data), force=False)


def digest(files: list[bytes]) -> str:
    """SHA-256 of files, one after the other."""
    return hashlib.sha256(b"".join(files)).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_series_are_sound_dicom(kind):
    """Files read without force; UIDs agree, are valid, of root 2.25 and distinct; pixels are as long as described."""
    shape, files = KINDS[kind], [read(data) for data in make_series(kind, 5, 3)]
    assert len({ds.SOPInstanceUID for ds in files}) == 3
    assert len({(ds.StudyInstanceUID, ds.SeriesInstanceUID) for ds in files}) == 1
    for number, ds in enumerate(files, 1):
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID == shape.sop_class
        assert ds.file_meta.TransferSyntaxUID == shape.syntax
        assert (ds.Modality, ds.InstanceNumber) == (shape.modality, number)
        assert not ds.SOPClassUID.is_private
        for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID):
            assert uid.is_valid
            assert uid.startswith("2.25.")
        if shape.rows and shape.syntax == encode.EXPLICIT_LE:
            bits = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated * int(ds.get("NumberOfFrames", 1))
            assert len(ds.PixelData) == bits // 8


@pytest.mark.parametrize("kind", [kind for kind, shape in KINDS.items() if shape.rows])
def test_pixels_decode(kind):
    """The pixels decode into an image of the stated size that is neither flat nor beyond its stored bits."""
    pytest.importorskip("numpy", reason="pydicom decodes pixels with NumPy")
    shape, ds = KINDS[kind], read(make_series(kind, 5, 3)[1] if kind != "SEG" else make_series(kind, 5)[0])
    image = ds.pixel_array
    assert image.shape[-2:] == (shape.rows, shape.columns) or image.shape == (shape.rows, shape.columns, 3)
    assert image.max() > image.min()
    assert image.max() < 1 << shape.stored
    if kind == "SEG":
        assert image.shape[0] == SEG_FRAMES


def test_rle_decodes_to_what_was_encoded():
    """The RLE frame, decoded by pydicom, is the phantom that went in."""
    numpy = pytest.importorskip("numpy", reason="pydicom decodes pixels with NumPy")
    pixels = phantom.make_grey16(phantom.HEAD, 24, 40, 0.5, "s", 2)
    frame = encode.encode_rle_frame((pixels[1::2], pixels[0::2]), 40)
    ds = read(make_series("RLE", 1, 1)[0])
    ds.Rows, ds.Columns = 24, 40
    ds.PixelData = pydicom.encaps.encapsulate([frame])
    assert ds.pixel_array.tolist() == numpy.frombuffer(pixels, "<u2").reshape(24, 40).tolist()


def test_same_seed_same_bytes():
    """The same arguments give the same bytes in another process with other hash seeds; each argument changes them."""
    program = (
        "import hashlib; from pipeline.demo.dicoms import KINDS, make_series, make_fitting_series as f\n"
        "made = [x for k in KINDS for x in make_series(k, 3, 2)] + f('1.2', '1.3', 'p', 'CT', 2, 9001, 3)\n"
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    source = str(Path(encode.__file__).parents[2])
    environ = {**os.environ, "PYTHONHASHSEED": "42", "PYTHONPATH": source}
    said = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    made = [data for kind in KINDS for data in make_series(kind, 3, 2)]
    assert said.stdout.strip() == digest(made + make_fitting_series("1.2", "1.3", "p", "CT", 2, 9001, 3))
    base = digest(make_series("PT", 3, 2))
    others = [make_series("PT", 4, 2), make_series("PT", 3, 2, "other"), make_series("PT", 3, 2, patient="P")]
    others += [make_series("PT", 3, 2, study=2), make_series("PT", 3, 2, number=2)]
    assert len({base, *map(digest, others)}) == 6


def test_bytes_are_pinned():
    """The bytes of a series are those of every version so far: hashes in tests and docs may rely on them."""
    assert digest(make_series("MR", 1, 2)) == "45fda92ba5e970c41b780cd2a05d6c87b0c82e0ac2a41c6c22fa8b235bf2dd3d"
    assert digest(make_series("RLE", 1, 1)) == "1d7791a909797fa5b5a6938e7d8f8a9196998420f093ac4332ec0683b3dc1c02"


def test_uids_belong_together():
    """Series of one patient and study share their StudyInstanceUID, of another they do not."""
    ct, seg, other = (read(make_series(k, 1, 1, study=s)[0]) for k, s in (("CT", 1), ("SEG", 1), ("CT", 2)))
    assert ct.StudyInstanceUID == seg.StudyInstanceUID != other.StudyInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == ct.SeriesInstanceUID
    assert uuid.UUID(int=int(ct.SeriesInstanceUID.removeprefix("2.25."))).variant == uuid.RFC_4122


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*LIKENESS, "XA", "ZZ"]),
    st.integers(1, 5),
    st.integers(900, 200_000),
    st.integers(0, 9),
)
def test_fitting_series_fit(modality, files, each, odd):
    """A fitting series has the asked UIDs, number of files and bytes, odd totals too, and pixels as described."""
    total = files * each + odd
    made = make_fitting_series(SERIES, STUDY, "100_HM10395", modality, files, total, 1)
    assert (len(made), sum(map(len, made))) == (files, total)
    assert sum(len(data) % 2 for data in made) == total % 2
    instances = set()
    for data in made:
        ds = read(data)
        assert (ds.SeriesInstanceUID, ds.StudyInstanceUID) == (SERIES, STUDY)
        assert (ds.PatientID, ds.Modality) == ("100_HM10395", modality)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        instances.add(ds.SOPInstanceUID)
        if "PixelData" in ds:
            assert len(ds.PixelData) == ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    assert len(instances) == files


def test_real_rows_fit():
    """Rows as the real index has them are fitted: the least of a file, a CT of 50 slices, one of 40 MB."""
    for modality, files, total in (("PR", 1, 1266), ("CT", 50, 26_405_988), ("SM", 2, 41_000_002)):
        made = make_fitting_series(SERIES, STUDY, "p", modality, files, total, 2)
        assert sum(map(len, made)) == total
    assert read(made[0]).Rows > 1000


def test_what_cannot_fit_is_refused():
    """Fewer bytes than headers need, or bytes without files, are a ValueError."""
    for files, total in ((1, 500), (100, 50_000), (0, 10)):
        with pytest.raises(ValueError):
            make_fitting_series(SERIES, STUDY, "p", "CT", files, total, 1)


@given(st.integers(1, 50), st.integers(0, 10**12))
def test_sizes_share_all_bytes(files, total):
    """The planned sizes add up to the total, are even but for one of an odd total, and near to each other."""
    sizes = plan_sizes(files, total)
    assert (len(sizes), sum(sizes)) == (files, total)
    assert sum(size % 2 for size in sizes) == total % 2
    assert max(sizes) - min(sizes) <= 3


@given(st.integers(-5, 5_000_000_000), st.sampled_from([1, 2, 3]))
def test_areas_fit_their_room(room, cell):
    """The chosen rows and columns are legal, even in bytes, and leave nothing or enough for a padding element."""
    rows, columns = choose_area(room, cell)
    used = rows * columns * cell
    assert 0 <= rows <= 65535
    assert used % 2 == 0
    if rows:
        assert used == room or room - used >= encode.ELEMENT_HEAD
    else:
        assert room < 64


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_real_samples_are_whole(sample):
    """Each real sample is one series of distinct instances whose file meta agrees with the data set."""
    files = [read(data) for data in read_sample(sample.name)]
    assert len({(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.get("PatientID")) for ds in files}) == 1
    assert len({ds.SOPInstanceUID for ds in files}) == len(sample.files)
    for ds in files:
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
        assert ds.StudyInstanceUID.is_valid
        assert ds.Modality


def test_samples_hold_every_family_of_pixels():
    """The samples cover native, RLE, JPEG, lossless JPEG, JPEG-LS, JPEG 2000, deflated, 1-bit, frames and no pixels."""
    files = [read(data) for sample in SAMPLES for data in read_sample(sample.name)]
    tails = {ds.file_meta.TransferSyntaxUID.removeprefix("1.2.840.10008.1.2") for ds in files}
    assert tails >= {".1", ".5", ".1.99", ".4.50", ".4.51", ".4.70", ".4.80", ".4.90"}
    assert {ds.get("BitsAllocated") for ds in files} >= {None, 1, 8, 16, 32}
    assert max(int(ds.get("NumberOfFrames", 1)) for ds in files) == 30
