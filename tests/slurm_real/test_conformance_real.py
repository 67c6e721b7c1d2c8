"""What every scheduler must do, on a real Slurm: the suite of tests/schedulers.

Here a minute cannot be made shorter. So what Slurm does by the clock is done by hand, as soon as a task is ready for
it: the early signal by scancel, and the end of the time by a time limit of zero.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ENDED, SlurmCluster
from machine import why_no_slurm

from pipeline.rundir import RunDir
from pipeline.schedulers.slurm import SlurmScheduler
from tests.schedulers.fake_run import wait_until
from tests.schedulers.test_scheduler_conformance import *  # noqa: F403 - its tests
from tests.schedulers.test_scheduler_conformance import HOSTILE, Backend

LOOK_SECONDS = 0.1


class RealBackend(Backend):
    """A real cluster. `kill` is the cluster's own `KillWait`, and `jobs` what one node, or all nodes, have room for."""

    at_limit = "wait usr1 requeue"
    clocks = False
    slots_bound_plan = False

    def __init__(self, root: Path, cluster: SlurmCluster) -> None:
        super().__init__(root)
        self.cluster = cluster
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    def run(self, shards: int, *, limit: float = 0, kill: float = 5, jobs: int = 2, tasks: int = 4) -> RunDir:
        slurm = {"poll": 1, "cpus": 1, **({"nodelist": "n1"} if jobs == 2 else {}), **({"time": 300} if limit else {})}
        run = self.write(shards, slurm=slurm, limits={"tasks": tasks})
        if limit:
            self._clock = threading.Thread(target=self._keep_time, args=(run,), name="slurm-clock")
            self._clock.start()
        return run

    def scheduler(self, run: RunDir) -> SlurmScheduler:
        return SlurmScheduler(run, environ=self.fake.environ | self.cluster.environ)

    def forget(self, run: RunDir) -> None:
        self.cluster.reconfigure(MinJobAge=2)
        wait_until(lambda: not any(self.cluster.queue(job.id) for job in run.read_jobs(1)), 90)

    def clean(self) -> None:
        self._over.set()
        if self._clock is not None:
            self._clock.join()
        super().clean()

    def _keep_time(self, run: RunDir) -> None:
        """Give task 0 its early signal, once it is ready; when it goes on in spite of that, end its time."""
        while not self._over.wait(LOOK_SECONDS):
            if "child" in (self.fake.trace(0) or {}) and run.read_jobs(1):
                job = f"{run.read_jobs(1)[0].id}_0"
                self.cluster.run("scancel", "--signal=USR1", "-b", job, check=True)
                break
        signalled = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            if (self.fake.trace(0) or {}).get("signal"):
                return
            if time.monotonic() > signalled + 2:
                self.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=0", check=True)
                return


@pytest.fixture(scope="module")
def strict_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster that ends what a task leaves behind: as with cgroups, which are not to be had everywhere."""
    if reason := why_no_slurm():
        pytest.skip(reason)
    cluster = SlurmCluster(tmp_path_factory.mktemp("strict"), kill_wait=1)
    cluster.settings["ProctrackType"] = "proctrack/pgid"
    with cluster:
        yield cluster


@pytest.fixture
def backend(strict_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Backend]:
    """A real cluster, and a folder with a hostile name."""
    it = RealBackend(tmp_path / HOSTILE, strict_cluster)
    yield it
    it.clean()
    strict_cluster.reconfigure(MinJobAge=300) if strict_cluster.settings["MinJobAge"] != "300" else None
    if rows := [row["JobID"] for row in strict_cluster.queue() if row["State"] not in ENDED]:
        strict_cluster.run("scancel", *rows, check=True)
