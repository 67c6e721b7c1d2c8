"""The rule that classes files for compression."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.archive.chains import CLASSES
from pipeline.dicom.choose import choose_chain
from pipeline.dicom.header import DEFLATED_LE, EXPLICIT_LE, IMPLICIT_LE, RLE, DicomHeader

HEADER = DicomHeader(
    sop_instance_uid="1.2.3",
    series_instance_uid="1.2",
    study_instance_uid="1",
    patient_id="P",
    modality="CT",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    transfer_syntax_uid=EXPLICIT_LE,
    rows=512,
    columns=512,
    frames=1,
    samples_per_pixel=1,
    bits_allocated=16,
    pixel_length=524_288,
    encapsulated=False,
)
JPEG = "1.2.840.10008.1.2.4."


def changed(**fields: object) -> DicomHeader:
    """`HEADER` with other values."""
    return msgspec.structs.replace(HEADER, **fields)


@pytest.mark.parametrize(
    ("fields", "chain"),
    [
        ({}, "A2"),
        ({"transfer_syntax_uid": IMPLICIT_LE}, "A2"),
        ({"transfer_syntax_uid": "1.2.840.10008.1.2.2"}, "A2"),
        ({"bits_allocated": 8}, "A0"),
        ({"bits_allocated": 1}, "A0"),
        ({"bits_allocated": 32}, "A0"),
        ({"bits_allocated": 8, "samples_per_pixel": 3}, "RGB"),
        ({"bits_allocated": 16, "samples_per_pixel": 3}, "A0"),
        ({"pixel_length": 0}, "A0"),
        ({"transfer_syntax_uid": DEFLATED_LE}, "J"),
    ],
)
def test_native_files_are_classed_by_their_pixels(fields, chain):
    """Sixteen-bit grey takes the delta chain, eight-bit colour is probed, all else takes plain LZMA2."""
    assert choose_chain(changed(**fields), ".dcm") == chain


@pytest.mark.parametrize(
    ("syntax", "chain"),
    [
        (RLE, "A0"),
        *((JPEG + end, "J") for end in ("50", "51", "57", "70")),
        *((JPEG + end, "S") for end in ("80", "81", "90", "91", "201", "203", "102", "103.1", "108")),
        ("1.2.3.4.5", "J"),
    ],
)
def test_encapsulated_files_are_classed_by_their_coder(syntax, chain):
    """Wavelet, arithmetic and video coders are stored, Huffman coders probed, run lengths compressed."""
    header = changed(transfer_syntax_uid=syntax, encapsulated=True, pixel_length=0)
    assert choose_chain(header, ".dcm") == chain


@pytest.mark.parametrize(
    ("suffix", "chain"), [(".jpg", "J"), (".JPEG", "J"), ("png", "S"), (".csv", "A0"), ("", "A0"), (".json", "A0")]
)
def test_other_files_are_classed_by_suffix(suffix, chain):
    """Without a DICOM header the suffix decides, in any case."""
    assert choose_chain(None, suffix) == chain


def test_every_class_is_known_to_the_archive():
    """The rule names nothing that the archive could not encode."""
    syntaxes = [EXPLICIT_LE, DEFLATED_LE, RLE, JPEG + "50", JPEG + "90", "9.9"]
    headers = [
        changed(transfer_syntax_uid=syntax, bits_allocated=bits, samples_per_pixel=samples, encapsulated=wrapped)
        for syntax in syntaxes
        for bits in (1, 8, 16, 32)
        for samples in (1, 3)
        for wrapped in (False, True)
    ]
    assert {choose_chain(header, "") for header in headers} == {"A0", "A2", "J", "RGB", "S"}
    assert {"A0", "A2", "J", "RGB", "S"} <= CLASSES
