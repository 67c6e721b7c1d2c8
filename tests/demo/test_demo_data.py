"""The demo data: an index as the real one is, that tells the truth about what lies in the buckets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import pydicom
import pytest

from pipeline.demo import hostile
from pipeline.demo.data import BUCKETS, DemoData, build_demo, build_series
from pipeline.demo.dicoms import make_series
from pipeline.demo.rows import describe_series
from pipeline.dicom.check import check_dicom
from pipeline.errors import ItemError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The tiny demo data."""
    return build_demo(tmp_path_factory.mktemp("demo"), "tiny")


def names_and_types(path: Path | str) -> list[tuple[str, str]]:
    """Columns of a Parquet file."""
    return [row[:2] for row in duckdb.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]).fetchall()]


@pytest.mark.parametrize("name", ["idc_index", "collections_index"])
def test_columns_are_those_of_the_real_index(demo, name):
    """Names, order and types of the columns, nested ones too, equal those of idc-index-data."""
    real = pytest.importorskip("idc_index_data", reason="the real index to compare with comes with idc-index-data")
    mine = demo.index if name == "idc_index" else demo.collections_index
    path = real.INDEX_METADATA[name]["parquet_filepath"]
    assert names_and_types(mine) == names_and_types(path)


def test_the_index_tells_the_truth(demo):
    """Counts, byte totals, UIDs, places and URLs of every row agree with the files in the buckets."""
    rows = duckdb.execute("SELECT * FROM read_parquet(?)", [str(demo.index)])
    names = [column[0] for column in rows.description]
    rows = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    assert len(rows) == len(demo.series) == 26
    for row, series in zip(rows, demo.series, strict=True):
        folder = demo.site_root / row["aws_bucket"] / row["crdc_series_uuid"]
        files = sorted(folder.iterdir())
        assert row["SeriesInstanceUID"] == series.uid
        assert row["instanceCount"] == len(files) == len(series.files)
        assert round(row["series_size_MB"] * 1e6) == sum(path.stat().st_size for path in files)
        assert row["series_aws_url"] == f"s3://{row['aws_bucket']}/{row['crdc_series_uuid']}/*"
        assert row["aws_bucket"] == BUCKETS[row["collection_id"]]
        for path, file in zip(files, series.files, strict=True):
            data = path.read_bytes()
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            assert file.key == f"{folder.name}/{path.name}"
            assert (hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest()) == (file.md5, file.sha256)
            assert (ds.SeriesInstanceUID, ds.SOPInstanceUID) == (series.uid, file.sop_instance_uid)
            assert ds.StudyInstanceUID == row["StudyInstanceUID"]
            assert ds.file_meta.TransferSyntaxUID in row["TransferSyntaxUID"].split(",")


def test_the_index_is_sorted_and_complete(demo):
    """Rows stand in the real index's order, series are unique, and what is never NULL there is not NULL here."""
    order = duckdb.execute(
        "SELECT collection_id, PatientID, StudyInstanceUID, SeriesInstanceUID FROM read_parquet(?)", [str(demo.index)]
    ).fetchall()
    assert order == sorted(order)
    assert len({row[3] for row in order}) == len(order)
    never_null = "PatientID source_DOI license_short_name series_size_MB instanceCount aws_bucket TransferSyntaxUID"
    counts = ", ".join(f"count({name})" for name in never_null.split())
    assert set(duckdb.execute(f"SELECT {counts} FROM read_parquet(?)", [str(demo.index)]).fetchone()) == {26}


def test_the_demo_has_what_demos_need(demo):
    """Three buckets, three licences, a collection that mixes them, derived series, and a patient in two places."""
    rows = [series.row for series in demo.series]
    assert {row.aws_bucket for row in rows} == {"idc-open-data", "idc-open-data-two", "idc-open-data-cr"}
    assert {row.license_short_name for row in rows} == {"CC BY 4.0", "CC BY 3.0", "CC BY-NC 4.0"}
    assert {row.license_short_name for row in rows if row.collection_id == "demo_mixed"} == {"CC BY 4.0", "CC BY 3.0"}
    assert {row.Modality for row in rows if row.analysis_result_id} == {"SEG", "SR"}
    assert {"CT", "MR", "PT", "US", "SEG", "SR", "RTDOSE", "NM", "OT", "ECG"} <= {row.Modality for row in rows}
    assert len({row.collection_id for row in rows if row.PatientID == "DEMO-001"}) == 2


def test_sources_explain_every_doi(demo):
    """Every source_DOI of a collection is a source of it, with the licence of those series and a citation."""
    sources = duckdb.execute(
        "SELECT collection_id, s.source_doi, s.license.license_short_name, s.citation, s.source_type "
        "FROM (SELECT collection_id, unnest(sources) AS s FROM read_parquet(?))",
        [str(demo.collections_index)],
    ).fetchall()
    assert {row[:3] for row in sources} == {
        (series.row.collection_id, series.row.source_DOI, series.row.license_short_name) for series in demo.series
    }
    assert all(row[1] in row[3] for row in sources)
    assert [row[4] for row in sources].count("analysis_result") == 1


def test_building_twice_gives_the_same(demo, tmp_path):
    """A second build elsewhere has the same files and the same rows."""
    again = build_demo(tmp_path, "tiny")
    assert again.series == demo.series


def test_the_store_serves_what_was_built(demo):
    """The store has every file under its bucket and key, with its MD5 as ETag."""
    buckets = demo.store().buckets
    for series in demo.series:
        for file in series.files:
            assert buckets[series.bucket].objects[file.key].etag == file.md5
    assert sum(len(bucket.objects) for bucket in buckets.values()) == sum(len(s.files) for s in demo.series)


def test_hostile_names_reach_the_index(tmp_path):
    """Hostile PatientIDs stand in the index as they are, one series has no files, and NULLs are NULL."""
    made = hostile.build_hostile(tmp_path)
    patients = duckdb.execute("SELECT PatientID FROM read_parquet(?)", [str(made.index)]).fetchall()
    assert {row[0] for row in patients} == {*hostile.PATIENTS, "EMPTY", "NULLS"}
    empty = next(series for series in made.series if series.row.PatientID == "EMPTY")
    assert (empty.row.instanceCount, empty.files) == (0, ())
    assert not (made.site_root / empty.bucket / str(empty.row.crdc_series_uuid)).exists()
    nulls = duckdb.execute("SELECT * FROM read_parquet(?) WHERE PatientID = 'NULLS'", [str(made.index)]).fetchone()
    assert nulls.count(None) >= len(hostile.NULL_COLUMNS) - 1


def test_lying_rows_lie(tmp_path):
    """Of the lying rows each differs from its files in just what its name says."""
    made = {series.row.PatientID: series for series in hostile.build_lying(tmp_path).series}
    counts = {name: (series.row.instanceCount or 0) - len(series.files) for name, series in made.items()}
    excess = {
        name: round((series.row.series_size_MB or 0) * 1e6) - sum(file.size for file in series.files)
        for name, series in made.items()
    }
    assert counts == {"MORE": 1, "FEWER": -1, "BYTES": 0, "HONEST": 0}
    assert excess == {"MORE": 0, "FEWER": 0, "BYTES": 1000, "HONEST": 0}


def test_broken_files_are_broken_inside(tmp_path):
    """Broken series agree with their rows in count and bytes; only their third file, looked into, is wrong."""
    made = hostile.build_broken(tmp_path)
    assert {series.row.PatientID for series in made.series} == set(hostile.BREAKERS)
    for series in made.series:
        assert round((series.row.series_size_MB or 0) * 1e6) == sum(file.size for file in series.files)
        sound = 0
        for file in series.files:
            data = (made.site_root / series.bucket / file.key).read_bytes()
            if data[128:132] == b"DICM":
                ds = pydicom.dcmread(made.site_root / series.bucket / file.key)
                whole = ds.get("PixelData") and len(ds.PixelData) == ds.Rows * ds.Columns * ds.BitsAllocated // 8
                sound += bool(whole) and ds.SeriesInstanceUID == series.uid
        distinct = len({file.sop_instance_uid for file in series.files})
        assert (sound, distinct) in {(2, 3), (3, 2)}


def reasons_of(made: DemoData) -> dict[str, set[str]]:
    """What the DICOM check says against the files of each series, by PatientID."""
    reasons: dict[str, set[str]] = {}
    for series in made.series:
        found = reasons.setdefault(str(series.row.PatientID), set())
        for file in series.files:
            try:
                check_dicom(made.site_root / series.bucket / file.key, series_uid=series.uid)
            except ItemError as error:
                found.add(error.reason)
    return reasons


def test_the_demo_passes_the_check_of_every_task(demo, tmp_path):
    """All demo files pass the check that archives demand, and the broken ones fail it for the reason they name."""
    assert set().union(*reasons_of(demo).values()) == set()
    broken = reasons_of(hostile.build_broken(tmp_path))
    assert broken.pop("duplicate") == set()  # each file alone is sound: only the series shows it
    assert broken == {name: {name} for name in broken}


def test_files_need_a_place(tmp_path):
    """A row with files but without a bucket is refused, not written somewhere else."""
    files = make_series("SR", 1)
    row = describe_series(files, collection_id="c", aws_bucket="")
    with pytest.raises(ValueError):
        build_series(tmp_path, [(row, files)])
