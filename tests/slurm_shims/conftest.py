"""The fixture of the shims' own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm_shims.client import Client
from tests.slurm_shims.shims import ShimSlurm


@pytest.fixture
def client(tmp_path) -> Iterator[Client]:
    """Yield a client of a fresh cluster whose minutes take two seconds."""
    with ShimSlurm(tmp_path / "it's a $cluster", minute=2.0, kill_wait=0.3) as slurm:
        yield Client(slurm, tmp_path / "work")
