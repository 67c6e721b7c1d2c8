"""The wish to stop: told to end counts more than warned of the time limit, and leaves less time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from run_kit import make_item, make_plan

from pipeline.cli import task as task_module
from pipeline.errors import InterruptedRunError, TimeLimitError
from pipeline.rundir import RunDir
from pipeline.task.shard import Life, Stop


def test_the_more_urgent_wish_counts() -> None:
    """SIGTERM after SIGUSR1 shortens the grace and changes the reason; SIGUSR1 after SIGTERM changes nothing."""
    stop = Stop()
    stop.request("SIGUSR1", 90.0)
    stop.request("SIGTERM", 15.0)
    assert (stop.reason, stop.get_grace()) == ("SIGTERM", 15.0)
    stop.request("SIGUSR1", 90.0)
    assert (stop.reason, stop.get_grace()) == ("SIGTERM", 15.0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A planned run."""
    made = make_plan(tmp_path, [make_item(1)]).run
    assert made is not None
    return made


def test_told_to_end_while_it_winds_down(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled while it ends ahead of its time limit is interrupted, and never back in the queue."""

    def wind_down(*_: object, stop: Stop, **__: object) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        raise TimeLimitError("shard 0: stopped by SIGUSR1", progress=True)

    monkeypatch.setattr(task_module, "_do_logged", wind_down)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as caught:
        task_module.do_shard(run, 0, Life(1, "7_0", "n1", 0.0), 1)
    assert not isinstance(caught.value, TimeLimitError)


def test_warned_only(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was only warned of its time limit says so, for that is what may queue it again."""

    def wind_down(*_: object, **__: object) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        raise TimeLimitError("shard 0: stopped by SIGUSR1", progress=True)

    monkeypatch.setattr(task_module, "_do_logged", wind_down)
    with pytest.raises(TimeLimitError):
        task_module.do_shard(run, 0, Life(1, "7_0", "n1", 0.0), 1)


def test_a_cancelled_attempt_is_not_queued_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the task was told, it stays out of the queue once its attempt was cancelled."""
    asked: list[object] = []
    monkeypatch.setattr("pipeline.schedulers.slurm.requeue_self", lambda *words: asked.append(words) or "asked")
    error = TimeLimitError("stopped", progress=True)
    task_module.requeue(run, 1, error)
    assert len(asked) == 1
    run.attempt_folder(1).mkdir(parents=True)
    run.write_cancelled(1)
    task_module.requeue(run, 1, error)
    assert len(asked) == 1
    assert "was cancelled" in caplog.text
