"""The demo data: collections of made and of real DICOM series, in buckets, with the index that describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from pipeline.demo.bucket import Store
from pipeline.demo.dicoms import make_series
from pipeline.demo.encode import make_uuid
from pipeline.demo.index import INDEX_ORDER, IndexRow, write_collections, write_index
from pipeline.demo.rows import describe_collections, describe_series, read_instance_uid
from pipeline.demo.samples import SAMPLES, read_sample

# Of 100 slices of the made series, how many a scale has.
SCALES = {"tiny": 10, "small": 100, "large": 1000}


class DemoFile(msgspec.Struct, frozen=True):
    """One object of the demo data; `md5` and `sha256` in hexadecimal."""

    key: str
    sop_instance_uid: str
    size: int
    md5: str
    sha256: str


class DemoSeries(msgspec.Struct, frozen=True):
    """One series: its row in the index, and its files in the order of their keys, as a listing gives them."""

    row: IndexRow
    files: tuple[DemoFile, ...]

    @property
    def uid(self) -> str:
        """Its SeriesInstanceUID."""
        return self.row.SeriesInstanceUID or ""

    @property
    def bucket(self) -> str:
        """The bucket it lies in."""
        return self.row.aws_bucket or ""


class DemoData(msgspec.Struct, frozen=True):
    """What was built, and where. `series` are in the order of the index."""

    root: Path
    site_root: Path
    index: Path
    collections_index: Path
    series: tuple[DemoSeries, ...]

    def store(self) -> Store:
        """The objects, to be served by a `DemoSite`."""
        return Store.from_folder(self.site_root)


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A series to be made: of a kind, or (`sample`) of real files."""

    collection: str
    patient: str = ""
    kind: str = ""
    sample: str = ""
    seed: int = 1
    slices: int = 0
    study: int = 1
    number: int = 1
    licence: str = "CC BY 4.0"
    analysis: str | None = None
    versions: tuple[int, int] = (1, 1)


BUCKETS = {"demo_ct_mr": "idc-open-data", "demo_mixed": "idc-open-data-two", "demo_nc": "idc-open-data-cr"}
_MADE = (
    _Plan(collection="demo_ct_mr", patient="DEMO-001", kind="CT", slices=40),
    _Plan(collection="demo_ct_mr", patient="DEMO-001", kind="SEG", number=2, analysis="demo_lungs", versions=(3, 5)),
    _Plan(collection="demo_ct_mr", patient="DEMO-001", kind="SR", number=3, analysis="demo_lungs", versions=(3, 3)),
    _Plan(collection="demo_ct_mr", patient="DEMO-002", kind="MR", slices=24, seed=2, versions=(1, 4)),
    _Plan(collection="demo_ct_mr", patient="DEMO-002", kind="MR", slices=12, seed=3, study=2),
    _Plan(collection="demo_ct_mr", patient="DEMO-002", kind="RLE", slices=6, seed=4, study=2, number=2),
    _Plan(collection="demo_mixed", patient="ZZ DEMO MR=3T 1", kind="PT", slices=48, seed=5, licence="CC BY 3.0"),
    _Plan(collection="demo_mixed", patient="DEMO-001", kind="US", slices=3, seed=6, licence="CC BY 3.0"),
    _Plan(collection="demo_mixed", patient="DEMO-004", kind="CT", slices=5, seed=7, licence="CC BY 3.0"),
    _Plan(collection="demo_nc", patient="DEMO-005", kind="MR", slices=6, seed=8, licence="CC BY-NC 4.0"),
)
_REAL = tuple(_Plan(collection="demo_mixed", sample=sample.name, licence="CC BY 4.0") for sample in SAMPLES)


def build_demo(root: Path, scale: str = "small") -> DemoData:
    """Build the demo data below `root`: `buckets/{bucket}/{key}`, `idc_index.parquet`, `collections_index.parquet`.

    Three collections lie in three buckets, with three licences; one holds series derived by an analysis. Of a
    scale `tiny` (9 MB) the made series are a tenth as long as of `small` (37 MB), of `large` (340 MB) ten times.
    Same scale, same bytes.

    Raises
    ------
    KeyError
        When the scale is unknown.
    """
    plans = [
        msgspec.structs.replace(plan, slices=max(2, plan.slices * SCALES[scale] // 100)) if plan.slices else plan
        for plan in _MADE
    ]
    return build_series(root, [_make(plan) for plan in (*plans, *_REAL)])


def build_series(root: Path, series: Iterable[tuple[IndexRow, Sequence[bytes]]]) -> DemoData:
    """Write series, given as a row and its files, below `root`, with an index that holds just those rows.

    What a row says of counts, sizes and UIDs is written as it is, so that it may also be wrong.

    Raises
    ------
    ValueError
        When a row has files but no bucket or folder to put them.
    """
    site_root = root / "buckets"
    site_root.mkdir(parents=True, exist_ok=True)
    written = []
    for row, files in series:
        if files and not (row.aws_bucket and row.crdc_series_uuid):
            raise ValueError(f"nowhere to put the files of series {row.SeriesInstanceUID}")
        described = [
            _write_file(site_root / (row.aws_bucket or ""), row.crdc_series_uuid or "", file) for file in files
        ]
        written.append(DemoSeries(row, tuple(sorted(described, key=lambda file: file.key))))
    written.sort(key=_index_order)
    write_index((one.row for one in written), root / "idc_index.parquet")
    write_collections(describe_collections([one.row for one in written]), root / "collections_index.parquet")
    return DemoData(root, site_root, root / "idc_index.parquet", root / "collections_index.parquet", tuple(written))


def _index_order(series: DemoSeries) -> tuple[tuple[bool, str], ...]:
    return tuple((getattr(series.row, name) is None, getattr(series.row, name) or "") for name in INDEX_ORDER)


def _make(plan: _Plan) -> tuple[IndexRow, list[bytes]]:
    if plan.sample:
        files = read_sample(plan.sample)
    else:
        files = make_series(
            plan.kind,
            plan.seed,
            plan.slices,
            plan.collection,
            plan.patient,
            study=plan.study,
            number=plan.number,
        )
    row = describe_series(
        files,
        collection_id=plan.collection,
        aws_bucket=BUCKETS[plan.collection],
        licence=plan.licence,
        analysis_result_id=plan.analysis,
        versions=plan.versions,
    )
    return row, files


def _write_file(bucket: Path, folder: str, data: bytes) -> DemoFile:
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{folder}/{make_uuid('instance', folder, sha256)}.dcm"
    path = bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return DemoFile(
        key=key,
        sop_instance_uid=read_instance_uid(data),
        size=len(data),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sha256=sha256,
    )
