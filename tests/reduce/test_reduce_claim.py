"""One reduce at a time: others wait, the dead are taken over, and none undoes what another has done."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from reduce_kit import left, reduce, results
from run_kit import MadeRun

from pipeline.errors import UsageError
from pipeline.process import ProcessId, identify_process
from pipeline.reduce import join
from pipeline.reduce.claim import sole_reducer
from pipeline.rundir import RunDir


class Sleeps:
    """A clock that only sleeping moves; `then` is called after the given number of sleeps."""

    def __init__(self, after: int = 10**9, then: object = None) -> None:
        self.now = 0.0
        self.count = 0
        self.after, self.then = after, then

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.count += 1
        if self.count == self.after and callable(self.then):
            self.then()
        assert self.count < 10_000


def claim_of(run: RunDir, owner: ProcessId) -> None:
    """Leave a claim as that process would."""
    run.reduce_claim.write_bytes(msgspec.json.encode(owner))


def stranger() -> ProcessId:
    """A process of another host: whether it lives cannot be known here."""
    return ProcessId("elsewhere", "boot", 1, 1)


def test_a_claim_is_there_while_it_is_held_and_gone_after(copy: MadeRun) -> None:
    """The file names this process, and goes with the block, also when it fails."""
    with sole_reducer(copy.run):
        held = msgspec.json.decode(copy.run.reduce_claim.read_bytes(), type=ProcessId)
        assert held == identify_process(os.getpid())
    assert not copy.run.reduce_claim.exists()
    with pytest.raises(ZeroDivisionError), sole_reducer(copy.run):
        raise ZeroDivisionError
    assert not copy.run.reduce_claim.exists()


def test_the_claim_of_a_dead_process_is_taken_over_at_once(copy: MadeRun) -> None:
    """A killed reduce of this host makes nobody wait."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = identify_process(process.pid)
    assert owner is not None
    process.kill()
    process.wait()
    claim_of(copy.run, owner)
    time = Sleeps()
    with sole_reducer(copy.run, clock=time.clock, sleep=time.sleep):
        assert time.count == 0


def test_a_living_claim_is_waited_for(copy: MadeRun) -> None:
    """While another process touches its claim, this one waits, however long; then it goes on."""
    owner = identify_process(os.getppid())
    assert owner is not None
    claim_of(copy.run, owner)
    path = copy.run.reduce_claim
    time = Sleeps(after=300, then=path.unlink)
    real = time.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if path.exists():
            os.utime(path, ns=(0, time.count))

    with sole_reducer(copy.run, clock=time.clock, sleep=sleep):
        assert time.count == 300


def test_a_claim_that_nobody_touches_is_taken_over_in_the_end(copy: MadeRun) -> None:
    """Of another host's process only its silence can be known: by this host's clock, not by comparing clocks."""
    claim_of(copy.run, stranger())
    time = Sleeps()
    with sole_reducer(copy.run, dead_after=100, clock=time.clock, sleep=time.sleep):
        assert 100 <= time.now < 110


def test_two_reduces_at_once_end_in_one_result(copy: MadeRun) -> None:
    """They run one after the other, and the second finds all done."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            reduce(RunDir(copy.run.path))
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert left(copy.run) == []
    assert not copy.run.reduce_claim.exists()


def test_a_slow_reduce_never_replaces_what_another_has_completed(
    copy: MadeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even when two hold the claim at once, a complete archive and its index stay as they are."""
    real = join.ArchiveJoin._read_back

    def overtaken(self: join.ArchiveJoin, path: Path, frames: list[join.CopiedFrame]) -> str:
        sha256 = real(self, path, frames)
        monkeypatch.setattr(join.ArchiveJoin, "_read_back", real)
        copy.run.reduce_claim.unlink()
        reduce(RunDir(copy.run.path))
        kept.update(results(copy.run))
        return sha256

    kept: dict[str, bytes] = {}
    monkeypatch.setattr(join.ArchiveJoin, "_read_back", overtaken)
    with pytest.raises(UsageError, match="another reduce"):
        reduce(copy.run)
    assert "c.tar.xz" in kept
    assert {name: data for name, data in results(copy.run).items() if not name.startswith(".")} == {
        name: data for name, data in kept.items() if not name.startswith(".")
    }
