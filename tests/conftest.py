"""What all tests share: how hypothesis works here, and an environment without the machine's own settings."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: how long an example takes says nothing on a loaded machine.
settings.register_profile("medhaul", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("medhaul")


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints and proxies of the environment must not decide a test, nor whether this machine has a Slurm."""
    monkeypatch.setenv("MEDHAUL_SCHEDULER", "local")
    for name in ("S3_ENDPOINT", "MIRROR_ENDPOINT", "INDEX"):
        monkeypatch.delenv(f"MEDHAUL_IDC_{name}", raising=False)
    for name in ("BASE_URL", "CREDENTIALS", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MEDHAUL_TCIA_{name}", raising=False)
    for name in ("BASE_URL", "CREDENTIALS", "TOKEN"):
        monkeypatch.delenv(f"MEDHAUL_ISIC_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make captured text fit for sending between test processes: hostile input may have left lone surrogates in it."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
