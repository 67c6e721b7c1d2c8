"""A fake `medhaul` for the tests of the scheduler room."""

from __future__ import annotations

import pytest

from tests.schedulers.fake_run import make_fake


@pytest.fixture
def fake(tmp_path):
    """Yield a fake `medhaul` whose tasks do what they are told."""
    it = make_fake(tmp_path / "fake")
    yield it
    it.end_children()
