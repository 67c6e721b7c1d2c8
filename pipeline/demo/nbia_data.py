"""The demo data as TCIA would hold them: what the demo IDC has, what only one of the two has, and what is awkward.

Collections carry names as TCIA spells them; the files of shared series are those of the demo IDC, byte for byte.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.demo import encode, phantom
from pipeline.demo.data import DemoData, DemoSeries, build_demo, build_series
from pipeline.demo.dicoms import make_fitting_series
from pipeline.demo.encode import make_uid
from pipeline.demo.kinds import KINDS, describe_instance, describe_pixels
from pipeline.demo.nbia_records import (
    NbiaArchive,
    NbiaCart,
    NbiaCollection,
    NbiaLicence,
    NbiaSeries,
    describe_nbia_series,
    write_archive,
)
from pipeline.demo.rows import LICENCES, make_doi

# TCIA's spelling of the demo IDC's collections, and of two that the demo IDC has not.
NAMES = {"demo_ct_mr": "DEMO-CT-MR", "demo_mixed": "Demo Mixed Modalities", "demo_nc": "DEMO-NC"}
_IDS = {name: identifier for identifier, name in NAMES.items()}
ONLY_NBIA = "Demo NBIA Only"
RESTRICTED = "Demo-Restricted"
CART = "nbia-demo-shared-cart"
SHARED_DATE, ONLY_DATE = dt.date(2021, 3, 4), dt.date(2024, 5, 6)
TAIL = "54321"  # of the two UIDs that end alike
_SEED = 21  # of all: a patient's sex, age and dates agree
_DESCRIPTION, _BODY_PART = 0x0008103E, 0x00180015
_DATES = (0x00080020, 0x00080021)


class Places(msgspec.Struct, frozen=True):
    """SeriesInstanceUIDs by where they are.

    `both` have the same files in IDC and NBIA; of `older` the NBIA has an earlier revision with fewer files;
    `restricted` are in NBIA but denied to everybody.
    """

    both: frozenset[str]
    older: frozenset[str]
    idc_only: frozenset[str]
    nbia_only: frozenset[str]
    restricted: frozenset[str]


class NbiaDemo(msgspec.Struct, frozen=True):
    """What was built: the demo IDC, and the archive for an `NbiaSite`; `named` are series that tests ask for.

    `named` has `no-description`, `tail-a`, `tail-b` (UIDs that share their last five digits, in one study),
    `acquisitions` (two of them, of two thicknesses, with the same instance numbers), `no-instance-numbers`, `single`,
    `extra` (of a collection that IDC has too), `older`, `restricted`.
    """

    idc: DemoData
    archive: NbiaArchive
    places: Places
    named: dict[str, str]


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A series that only NBIA has; `drop` are tags that its files lack."""

    name: str
    collection: str = ONLY_NBIA
    patient: str = "NBIA-001"
    kind: str = "CT"
    slices: int = 3
    number: int = 1
    uid: str = ""
    drop: tuple[int, ...] = ()
    acquisitions: int = 1
    licence: str = "CC BY 3.0"
    restricted: bool = False


_ONLY = (
    _Plan(name="no-description", drop=(_DESCRIPTION, *_DATES, _BODY_PART), slices=4),
    _Plan(name="tail-a", number=2, uid=f"2.25.70031{TAIL}", slices=2),
    _Plan(name="tail-b", number=2, uid=f"2.25.70032{TAIL}", slices=3),
    _Plan(name="acquisitions", number=3, kind="MR", slices=12, acquisitions=2),
    _Plan(name="no-instance-numbers", patient="NBIA 002", kind="PT", slices=11, drop=(0x00200013,)),
    _Plan(name="single", patient="NBIA 002", kind="MR", slices=1, number=2),
    _Plan(name="extra", collection=NAMES["demo_ct_mr"], patient="DEMO-003", kind="MR", licence="CC BY 4.0"),
    _Plan(name="restricted", collection=RESTRICTED, patient="SECRET-1", restricted=True),
)


def build_nbia(root: Path, scale: str = "small") -> NbiaDemo:
    """Build the demo IDC below `root/idc` and the NBIA that goes with it; its catalogue is `root/nbia.json`.

    Same scale, same bytes.

    Raises
    ------
    KeyError
        When the scale is unknown.
    """
    idc = build_demo(root / "idc", scale)
    idc_only = {one.uid for one in idc.series if _is_only_in_idc(one)}
    older = next(one.uid for one in idc.series if one.row.series_revised_idc_version == 4)
    shared = [_share(root, one, older) for one in idc.series if one.uid not in idc_only]
    only = [_write(root, plan) for plan in _ONLY]
    named = {plan.name: one.uid for plan, one in zip(_ONLY, only, strict=True)} | {"older": older}
    restricted = frozenset(one.uid for one in only if one.restricted)
    places = Places(
        both=frozenset(one.uid for one in shared) - {older},
        older=frozenset({older}),
        idc_only=frozenset(idc_only),
        nbia_only=frozenset(one.uid for one in only) - restricted,
        restricted=restricted,
    )
    archive = make_archive(root, [*shared, *only])
    cart = NbiaCart(CART, "Series for demonstrations", f"https://doi.org/{shared[0].doi}", _choose_cart(archive, named))
    archive = msgspec.structs.replace(archive, carts=(cart,))
    write_archive(archive, root)
    return NbiaDemo(idc, archive, places, named)


def build_many(root: Path, series: int, *, files: int = 1, file_bytes: int = 4096, name: str = "Demo Many") -> NbiaDemo:
    """Build a collection of many like series, for tests of how calls grow and for measurements; of IDC, nothing.

    Same arguments, same bytes. Raises ValueError when a file is to be smaller than about 900 bytes.
    """
    made = []
    for number in range(series):
        uid, study = make_uid("series", name, number), make_uid("study", name, number // 4)
        patient = f"MANY-{number // 8:04d}"
        contents = make_fitting_series(uid, study, patient, "CT", files, files * file_bytes, number)
        described = _write_files(root, uid, contents)
        made.append(
            describe_nbia_series(
                described,
                collection=name,
                patient_id=patient,
                licence="CC BY 4.0",
                doi=make_doi(name.replace(" ", "-"), "CC BY 4.0"),
                submitted=ONLY_DATE,
            )
        )
    idc = build_series(root / "idc", [])
    archive = make_archive(root, made)
    write_archive(archive, root)
    uids = frozenset(one.uid for one in made)
    return NbiaDemo(idc, archive, Places(frozenset(), frozenset(), frozenset(), uids, frozenset()), {})


def make_archive(root: Path, series: Sequence[NbiaSeries]) -> NbiaArchive:
    """An archive of given series, whose files lie below `root`; collections and licences are made to fit."""
    names = dict.fromkeys(one.collection for one in series)
    return NbiaArchive(
        root=str(root),
        series=tuple(series),
        collections=tuple(
            _describe_collection(number, [one for one in series if one.collection == name])
            for number, name in enumerate(names, 1)
        ),
        licences=tuple(
            NbiaLicence(number, one.license_long_name, short, one.license_url, "NO" if "NC" in short else "YES")
            for number, (short, one) in enumerate(LICENCES.items(), 1)
        ),
    )


def _describe_collection(number: int, series: Sequence[NbiaSeries]) -> NbiaCollection:
    first = series[0]
    citation = f"medhaul ({first.submitted.year}). Demo images of {first.collection} [Data set]."
    link = f'<a href="https://doi.org/{first.doi}">https://doi.org/{first.doi}</a>'
    return NbiaCollection(
        id=number,
        name=first.collection,
        licence=first.licence,
        doi=first.doi,
        citation=f"{citation} https://doi.org/{first.doi}",
        description=f"<p>Made images &amp; samples.</p><p>{citation} {link}</p>",
        updated=max(one.submitted for one in series),
    )


def _is_only_in_idc(one: DemoSeries) -> bool:
    """The report that an analysis made, and the MR that never had a later revision."""
    row = one.row
    derived = row.analysis_result_id is not None and row.Modality == "SR"
    first = row.SeriesDescription == "T1 AX SE" and row.series_revised_idc_version == 1
    return row.collection_id == "demo_ct_mr" and (derived or first)


def _choose_cart(archive: NbiaArchive, named: dict[str, str]) -> tuple[str, ...]:
    small = sorted(archive.series, key=lambda one: (one.size, one.uid))[:3]
    return tuple(dict.fromkeys((named["tail-a"], named["no-description"], *(one.uid for one in small))))


def _share(root: Path, one: DemoSeries, older: str) -> NbiaSeries:
    """The record of a series of the demo IDC; of `older`, without its last instance."""
    folder = root / "idc" / "buckets" / one.bucket
    files = [
        (f"idc/buckets/{one.bucket}/{file.key}", (folder / file.key).read_bytes())
        for file in (one.files[:-1] if one.uid == older else one.files)
    ]
    row = one.row
    return describe_nbia_series(
        files,
        collection=NAMES[row.collection_id or ""],
        patient_id=row.PatientID or "",
        licence=row.license_short_name or "",
        doi=row.source_DOI or "",
        submitted=SHARED_DATE,
        third_party="YES" if row.analysis_result_id else "NO",
    )


def _write(root: Path, plan: _Plan) -> NbiaSeries:
    return describe_nbia_series(
        _write_files(root, plan.uid or plan.name, _make_files(plan)),
        collection=plan.collection,
        patient_id=plan.patient,
        licence=plan.licence,
        doi=make_doi(_IDS.get(plan.collection, plan.collection.replace(" ", "-")), plan.licence),
        submitted=ONLY_DATE,
        restricted=plan.restricted,
    )


def _write_files(root: Path, folder: str, contents: Sequence[bytes]) -> list[tuple[str, bytes]]:
    (root / "nbia" / folder).mkdir(parents=True, exist_ok=True)
    files = []
    for number, data in enumerate(contents):
        path = f"nbia/{folder}/{make_uid('file', folder, number)}.dcm"
        (root / path).write_bytes(data)
        files.append((path, data))
    return sorted(files)


def _make_files(plan: _Plan) -> list[bytes]:
    shape = KINDS[plan.kind]
    study = make_uid("study", plan.collection, plan.patient, 1)
    uid = plan.uid or make_uid("series", plan.collection, plan.patient, plan.name)
    files = []
    for n in range(plan.slices):
        attributes = describe_instance(shape, _SEED, n, plan.slices, (study, uid, plan.patient), plan.number)
        attributes |= describe_pixels(shape, 64, 64) | {0x00181030: ("LO", "Demo, protocol 1")}
        if plan.acquisitions > 1:
            acquisition, instance = divmod(n, plan.slices // plan.acquisitions)
            attributes |= {0x00200012: ("IS", str(acquisition + 1)), 0x00200013: ("IS", str(instance + 1))}
            attributes |= {0x00180050: ("DS", str(3 + acquisition))}
        kept = {tag: value for tag, value in attributes.items() if tag not in plan.drop}
        pixels = phantom.make_grey16(phantom.TORSO, 64, 64, (n + 0.5) / plan.slices, f"{uid}/{n}", 4)
        files.append(encode.encode_head(kept, shape.syntax) + encode.encode_native_pixels(pixels))
    return files
