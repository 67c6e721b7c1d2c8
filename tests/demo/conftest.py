"""Sites for the tests of the demo archive site."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo_client import BIG, BUCKET, Fetch, fetch_from

from pipeline.demo.bucket import Store
from pipeline.demo.site import DemoSite


@pytest.fixture
def store() -> Store:
    """A bucket with small and large objects in two series folders."""
    made = Store()
    for n in range(5):
        made.put(BUCKET, f"one/{n}.dcm", BIG[: 1000 + n])
    made.put(BUCKET, "two/big.dcm", BIG)
    made.put(BUCKET, "two/empty.dcm", b"")
    return made


@pytest.fixture
def site(store: Store) -> Iterator[DemoSite]:
    """A site that serves `store`."""
    with DemoSite(store, checksums=True, page_size=3) as running:
        yield running


@pytest.fixture
def fetch(site: DemoSite) -> Fetch:
    """`fetch(path, method="GET", **headers)` from `site`."""
    return fetch_from(site)
