"""Real rows of the packaged IDC index, with made content that fits them to the byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))  # haul.py, which runs medhaul, is shared

from real_rows import RealSeries, choose_series, fill_series

from pipeline.demo.bucket import Store


@pytest.fixture(scope="session")
def real() -> list[RealSeries]:
    """A dozen small series of the packaged index, from all its buckets and of several modalities."""
    pytest.importorskip("idc_index_data")
    return choose_series()


@pytest.fixture(scope="session")
def store(real: list[RealSeries]) -> Store:
    """Their objects: true UIDs, counts and bytes; content made to fit."""
    made = Store()
    for series in real:
        for key, content in fill_series(series):
            made.put(series.bucket, key, content)
    return made
