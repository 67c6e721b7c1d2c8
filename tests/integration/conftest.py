"""Demo data, a site and the undisturbed result, for hauls by real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from haul import Haul

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData, build_demo
from pipeline.demo.site import DemoSite


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The tiny demo data: 26 series, 51 files, 9 MB in three collections."""
    return build_demo(tmp_path_factory.mktemp("demo"), "tiny")


@pytest.fixture(scope="session")
def store(data: DemoData) -> Store:
    """Its objects."""
    return data.store()


@pytest.fixture(scope="session")
def undisturbed(data: DemoData, store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each archive of all the data, from one shard that nothing disturbed."""
    with DemoSite(store) as site:
        haul = Haul(tmp_path_factory.mktemp("undisturbed"), data.index, site.url)
        sums = haul.all()
    haul.check_members(data)
    assert haul.leftovers() == []
    return sums


@pytest.fixture
def site(store: Store) -> Iterator[DemoSite]:
    """A site that serves the data."""
    with DemoSite(store) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for one haul."""
    return tmp_path / "haul"
