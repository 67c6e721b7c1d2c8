"""`IdcClient`: what people ask of the IDC index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.errors import ConfigError
from pipeline.sources import idc_select
from pipeline.sources.idc_buckets import mirror_bucket
from pipeline.sources.idc_client import IdcClient, Series

COLUMNS = (
    "collection_id, analysis_result_id, PatientID, StudyInstanceUID, SeriesInstanceUID, Modality, instanceCount, "
    "series_size_MB, license_short_name, aws_bucket, crdc_series_uuid, source_DOI, StudyDate"
)
ROWS = """
    ('alpha', NULL, 'P1', '1.1', '1.1.1', 'CT', 10, 5.000001::DOUBLE, 'CC BY 3.0', 'idc-open-data', 'u1', 'd', '2001'),
    ('alpha', NULL, 'P1', '1.1', '1.1.2', 'MR', 20, 2.5, 'CC BY 4.0', 'idc-open-data-cr', 'u2', 'd', '2001'),
    ('alpha', 'seg', 'P2', '1.2', '1.2.1', 'SEG', 1, 0.5, 'CC BY 4.0', 'idc-open-data', 'u3', 'd', NULL),
    ('beta_two', NULL, 'P1', '1.3', '1.3.1', 'CT', NULL, NULL, NULL, 'new bucket', 'u4', 'd', NULL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An index of four series."""
    file = tmp_path / "idc_index.parquet"
    with duckdb.connect() as database:
        database.execute(f"COPY (SELECT * FROM (VALUES {ROWS}) AS t({COLUMNS})) TO '{file}'")
    return file


@pytest.fixture
def client(path: Path) -> Iterator[IdcClient]:
    """A client of it."""
    with IdcClient(path) as opened:
        yield opened


def test_collections_are_summed(client: IdcClient) -> None:
    """A collection has its counts, exact bytes and licences; what the index does not state counts as nothing."""
    alpha, beta = client.collections()
    assert (alpha.collection_id, alpha.patients, alpha.studies, alpha.series, alpha.files) == ("alpha", 2, 2, 3, 31)
    assert alpha.bytes == 8_000_001
    assert alpha.licences == ["CC BY 3.0", "CC BY 4.0"]
    assert alpha.modalities == ["CT", "MR", "SEG"]
    assert (beta.series, beta.files, beta.bytes, beta.licences) == (1, 0, 0, [])
    assert [found.series for found in client.collections(modality="CT")] == [1, 1]


def test_patients_of_a_collection(client: IdcClient) -> None:
    """Patients are told apart by collection."""
    assert [(p.PatientID, p.studies, p.series) for p in client.patients("Alpha")] == [("P1", 1, 2), ("P2", 1, 1)]
    assert [(p.collection_id, p.PatientID) for p in client.patients()] == [
        ("alpha", "P1"),
        ("alpha", "P2"),
        ("beta_two", "P1"),
    ]
    assert [p.PatientID for p in client.patients("alpha", content="original")] == ["P1"]


def test_studies_of_a_patient(client: IdcClient) -> None:
    """A patient's studies come with dates where there are any, and empty text where a column is not there."""
    assert [(s.StudyInstanceUID, s.date, s.description) for s in client.studies("P1")] == [
        ("1.1", "2001", ""),
        ("1.3", "", ""),
    ]
    assert [s.StudyInstanceUID for s in client.studies("P1", collection="beta-two")] == ["1.3"]


def test_series_by_any_condition(client: IdcClient) -> None:
    """Conditions on series hold at once; alternatives come as sequences."""

    def uids(**keys: object) -> list[str]:
        return [found.SeriesInstanceUID for found in client.series(**keys)]  # type: ignore[arg-type]

    assert uids() == ["1.1.1", "1.1.2", "1.2.1", "1.3.1"]
    assert uids(collection="alpha", modality=["CT", "SEG"]) == ["1.1.1", "1.2.1"]
    assert uids(patient="P1", study="1.1", where="instanceCount > 10") == ["1.1.2"]
    assert uids(content="derived") == ["1.2.1"]
    with pytest.raises(ConfigError, match="did you mean beta_two"):
        uids(collection="beta_too")
    with pytest.raises(ConfigError, match="nothing selected"):
        uids(collection="alpha", patient="P1", modality="SEG")


@pytest.mark.parametrize("few", [0, 50])
def test_series_keep_the_order_of_the_file(client: IdcClient, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Series come in the order of the file, also when they are selected by more values than are compared one by one."""
    monkeypatch.setattr(idc_select, "FEW_VALUES", few)
    found = client.series(where="true", patient=["P2", "P1"], study=["1.2", "1.1"])
    assert [one.SeriesInstanceUID for one in found] == ["1.1.1", "1.1.2", "1.2.1"]


def test_unstated_numbers_are_minus_one(client: IdcClient) -> None:
    """A series without counts in the index says -1, not 0."""
    (found,) = client.series(study="1.3")
    assert (found.files, found.bytes, found.licence) == (-1, -1, "")
    assert client.series_size("1.3.1") == 0
    assert client.series_size("1.1.1") == 5_000_001


def test_unknown_series_has_no_size(client: IdcClient) -> None:
    """The size of a series that is not there is an error."""
    with pytest.raises(ConfigError, match=r"9\.9"):
        client.series_size("9.9")


def test_prefixes(client: IdcClient) -> None:
    """A series' place is the bucket and uuid, by the bucket's name on each cloud."""
    found = client.series(study="1.1")
    assert [one.prefix() for one in found] == ["s3://idc-open-data/u1/*", "s3://idc-open-data-cr/u2/*"]
    assert [one.prefix("gcs") for one in found] == ["gs://idc-open-data/u1/*", "gs://idc-open-cr/u2/*"]


@pytest.mark.parametrize(
    ("aws", "gcs"),
    [
        ("idc-open-data", "idc-open-data"),
        ("idc-open-data-two", "idc-open-idc1"),
        ("idc-open-data-cr", "idc-open-cr"),
        ("some-new-bucket", "some-new-bucket"),
    ],
)
def test_mirror_buckets(aws: str, gcs: str) -> None:
    """Each AWS bucket has its Google Cloud name; unknown ones keep theirs."""
    assert mirror_bucket(aws) == gcs


def test_columns_and_limit(client: IdcClient) -> None:
    """Columns are those of the file in its order, and a limit stops the rows."""
    assert [column.name for column in client.columns()] == COLUMNS.split(", ")
    assert len(list(client.iterate(Series, limit=2))) == 2


def test_an_index_given_open_stays_open(path: Path) -> None:
    """Closing a client does not close the index that was lent to it."""
    with IdcClient(path) as owner:
        with IdcClient(owner._index) as borrower:
            assert borrower.release == owner.release
        assert len(owner.collections()) == 2
