"""Choose series of the packaged IDC index, and make content for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import duckdb
import msgspec

from pipeline.demo.dicoms import make_fitting_series
from pipeline.demo.encode import make_uuid

# Of each bucket and modality the first few in the order of a hash of the uuid: the same for the same index.
_CHOICE = """
SELECT * EXCLUDE (place, rank) FROM (
    SELECT *, row_number() OVER (PARTITION BY aws_bucket ORDER BY rank, hash(crdc_series_uuid)) AS place FROM (
        SELECT SeriesInstanceUID, StudyInstanceUID, PatientID, Modality, aws_bucket, crdc_series_uuid,
               instanceCount, round(series_size_MB * 1e6)::BIGINT AS bytes,
               row_number() OVER (PARTITION BY aws_bucket, Modality ORDER BY hash(crdc_series_uuid)) AS rank
        FROM read_parquet(?)
        WHERE series_size_MB BETWEEN 0.2 AND 4 AND instanceCount BETWEEN 1 AND 40
          AND series_size_MB * 1e6 / instanceCount > 4000 AND ({wanted})
    )
) WHERE place <= 5 ORDER BY SeriesInstanceUID
"""


class RealSeries(msgspec.Struct, frozen=True):
    """A series as the index has it."""

    uid: str
    study: str
    patient: str
    modality: str
    bucket: str
    uuid: str
    files: int
    bytes: int


def choose_series(among: Sequence[str] | None = None) -> list[RealSeries]:
    """Up to five series of each bucket, of as many modalities as there are; `among` restricts their uuids."""
    import idc_index_data

    parameters: list[object] = [str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)]
    wanted = "true"
    if among is not None:
        wanted = "list_contains(?, crdc_series_uuid)"
        parameters.append(list(among))
    with duckdb.connect(":memory:") as database:
        rows = database.execute(_CHOICE.format(wanted=wanted), parameters).fetchall()
    return [RealSeries(*row) for row in rows]


def fill_series(series: RealSeries) -> Iterator[tuple[str, bytes]]:
    """The objects of a series: key and content."""
    contents = make_fitting_series(
        series.uid, series.study, series.patient, series.modality, series.files, series.bytes, seed=1
    )
    for number, content in enumerate(contents):
        yield f"{series.uuid}/{make_uuid('instance', series.uid, number)}.dcm", content
