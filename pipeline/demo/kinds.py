"""The kinds of series of the demo data, and the headers of their instances."""

from __future__ import annotations

import msgspec

from pipeline.demo import encode
from pipeline.demo.encode import Attributes, Value, make_uid


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What the series of one kind are like: geometry, pixel format and the words of their headers."""

    modality: str
    sop_class: str
    slices: int
    rows: int = 0
    columns: int = 0
    bits: int = 16
    stored: int = 16
    samples: int = 1
    photometric: str = "MONOCHROME2"
    syntax: str = encode.EXPLICIT_LE
    body: str = ""
    maker: str = "Demo Imaging"
    model: str = "Phantom One"
    description: str = ""


_STORAGE = "1.2.840.10008.5.1.4.1.1."
KINDS: dict[str, Kind] = {
    "CT": Kind(
        modality="CT",
        sop_class=_STORAGE + "2",
        slices=40,
        rows=512,
        columns=512,
        stored=12,
        body="CHEST",
        description="Thorax 1.0 B31f",
    ),
    "MR": Kind(
        modality="MR",
        sop_class=_STORAGE + "4",
        slices=24,
        rows=256,
        columns=256,
        stored=12,
        body="BRAIN",
        description="T1 AX SE",
    ),
    "PT": Kind(
        modality="PT",
        sop_class=_STORAGE + "128",
        slices=48,
        rows=128,
        columns=128,
        body="WHOLEBODY",
        description="PET WB corrected",
    ),
    "US": Kind(
        modality="US",
        sop_class=_STORAGE + "6.1",
        slices=3,
        rows=480,
        columns=640,
        bits=8,
        stored=8,
        samples=3,
        photometric="RGB",
        body="LIVER",
        description="Colour flow",
    ),
    "RLE": Kind(
        modality="MR",
        sop_class=_STORAGE + "4",
        slices=6,
        rows=192,
        columns=192,
        stored=12,
        body="BRAIN",
        description="FLAIR, RLE compressed",
        syntax=encode.RLE_LOSSLESS,
    ),
    "SEG": Kind(
        modality="SEG",
        sop_class=_STORAGE + "66.4",
        slices=1,
        rows=512,
        columns=512,
        bits=1,
        stored=1,
        body="CHEST",
        description="Lung mask",
        model="Segmenter",
    ),
    "SR": Kind(
        modality="SR",
        sop_class=_STORAGE + "88.33",
        slices=1,
        body="CHEST",
        description="Measurement report",
        model="Reporter",
    ),
}
SEG_FRAMES = 40


# How a fitting file looks, by modality; any other modality is a secondary capture, text has no pixels.
LIKENESS = {
    "CT": KINDS["CT"],
    "MR": KINDS["MR"],
    "PT": KINDS["PT"],
    "US": KINDS["US"],
    "SM": msgspec.structs.replace(KINDS["US"], sop_class=_STORAGE + "77.1.6"),
    "MG": msgspec.structs.replace(KINDS["CT"], sop_class=_STORAGE + "1.2"),
    "CR": msgspec.structs.replace(KINDS["CT"], sop_class=_STORAGE + "1"),
    "DX": msgspec.structs.replace(KINDS["CT"], sop_class=_STORAGE + "1.1"),
    "NM": msgspec.structs.replace(KINDS["PT"], sop_class=_STORAGE + "20"),
    "SEG": msgspec.structs.replace(KINDS["US"], sop_class=_STORAGE + "66.4", samples=1, photometric="MONOCHROME2"),
    "OT": msgspec.structs.replace(KINDS["US"], sop_class=_STORAGE + "7", samples=1, photometric="MONOCHROME2"),
    **{
        modality: Kind(modality=modality, sop_class=_STORAGE + tail, slices=1)
        for modality, tail in {
            "SR": "88.33",
            "PR": "11.1",
            "KO": "88.59",
            "RTSTRUCT": "481.3",
            "RTPLAN": "481.5",
            "ANN": "91.1",
            "REG": "66.1",
            "M3D": "104.1",
            "RWV": "67",
        }.items()
    },
}


def describe_briefly(shape: Kind, uids: tuple[str, str, str], seed: int, n: int) -> dict[int, Value]:
    """The attributes that every instance has: character set, class, UIDs, modality, patient and number.

    `uids` are StudyInstanceUID, SeriesInstanceUID and PatientID.
    """
    study_uid, series_uid, patient = uids
    return {
        0x00080005: ("CS", "ISO_IR 192"),
        0x00080016: ("UI", shape.sop_class),
        0x00080018: ("UI", make_uid("instance", series_uid, seed, n)),
        0x00080060: ("CS", shape.modality),
        0x00100020: ("LO", patient),
        0x0020000D: ("UI", study_uid),
        0x0020000E: ("UI", series_uid),
        0x00200013: ("IS", str(n + 1)),
    }


def describe_instance(
    shape: Kind, seed: int, n: int, count: int, uids: tuple[str, str, str], number: int
) -> dict[int, Value]:
    """All attributes of instance `n` of `count`, but for its pixels'."""
    study_uid, _, patient = uids
    date = f"20{seed % 20 + 1:02d}{seed % 12 + 1:02d}{seed % 28 + 1:02d}"
    attributes = describe_briefly(shape, uids, seed, n) | {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\AXIAL" if shape.modality not in {"SEG", "SR"} else "DERIVED\\PRIMARY"),
        0x00080020: ("DA", date),
        0x00080021: ("DA", date),
        0x00080030: ("TM", "101500"),
        0x00080050: ("SH", ""),
        0x00080070: ("LO", shape.maker),
        0x00080090: ("PN", ""),
        0x00081030: ("LO", f"{shape.body} study"),
        0x0008103E: ("LO", shape.description),
        0x00081090: ("LO", shape.model),
        0x00100010: ("PN", patient),
        0x00100030: ("DA", ""),
        0x00100040: ("CS", "MF"[seed % 2]),
        0x00101010: ("AS", f"{30 + seed % 50:03d}Y"),
        0x00120062: ("CS", "YES"),
        0x00120063: ("LO", "Synthetic phantom"),
        0x00180015: ("CS", shape.body),
        0x00200010: ("SH", "1"),
        0x00200011: ("IS", str(number)),
    }
    if shape.modality in {"CT", "MR", "PT"}:
        spacing = 360 / shape.columns
        attributes |= {
            0x00180050: ("DS", "3"),
            0x00200032: ("DS", f"-180\\-180\\{3 * (n - count // 2)}"),
            0x00200037: ("DS", "1\\0\\0\\0\\1\\0"),
            0x00200052: ("UI", make_uid("frame of reference", study_uid)),
            0x00201041: ("DS", str(3 * (n - count // 2))),
            0x00280030: ("DS", f"{spacing}\\{spacing}"),
            0x00281052: ("DS", "-1024" if shape.modality == "CT" else "0"),
            0x00281053: ("DS", "1"),
        }
    return attributes


def describe_pixels(shape: Kind, rows: int, columns: int) -> dict[int, Value]:
    """The image pixel module."""

    def short(number: int) -> Value:
        return "US", number.to_bytes(2, "little")

    attributes = {
        0x00280002: short(shape.samples),
        0x00280004: ("CS", shape.photometric),
        0x00280010: short(rows),
        0x00280011: short(columns),
        0x00280100: short(shape.bits),
        0x00280101: short(shape.stored),
        0x00280102: short(shape.stored - 1),
        0x00280103: short(0),
    }
    return attributes | ({0x00280006: short(0)} if shape.samples > 1 else {})


def describe_segmentation(series_uid: str) -> dict[int, Value]:
    """What makes an instance a segmentation, of the series it refers to."""
    segment: Attributes = {0x00620004: ("US", b"\1\0"), 0x00620005: ("LO", "Lung"), 0x00620008: ("CS", "AUTOMATIC")}
    return {
        0x00081115: ("SQ", encode.encode_sequence({0x0020000E: ("UI", series_uid)})),
        0x00280008: ("IS", str(SEG_FRAMES)),
        0x00620001: ("CS", "BINARY"),
        0x00620002: ("SQ", encode.encode_sequence(segment)),
    }


def describe_report(n: int) -> dict[int, Value]:
    """What makes an instance a structured report."""
    lines = [
        {0x0040A010: ("CS", "CONTAINS"), 0x0040A040: ("CS", "TEXT"), 0x0040A160: ("UT", f"Nodule {line}: {line} mm")}
        for line in range(n + 1, n + 41)
    ]
    return {
        0x0040A040: ("CS", "CONTAINER"),
        0x0040A050: ("CS", "SEPARATE"),
        0x0040A491: ("CS", "COMPLETE"),
        0x0040A493: ("CS", "UNVERIFIED"),
        0x0040A730: ("SQ", encode.encode_sequence(*lines)),
    }
