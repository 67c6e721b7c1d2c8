"""Whole hauls on a real cluster: a site with gates, real `medhaul` commands, and what came of them."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import SlurmCluster

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData, build_demo
from pipeline.demo.s3 import Target
from pipeline.demo.site import DemoSite
from pipeline.demo.stats import Verb
from pipeline.demo.wire import Reply, Request
from pipeline.manifest import Manifest
from pipeline.records import Receipt
from pipeline.report.status import Collector
from pipeline.schedulers.attempt import Attempt, Liveness
from pipeline.schedulers.slurm import SlurmScheduler
from tests.integration.haul import SOURCE, Ended, Haul, render_toml, run_medhaul

# All data in 23 shards of one frame each at most; bytes of archives depend on these.
ARCHIVE = {"group_bytes": "100 kB", "cut_bytes": "600 kB", "block_bytes": "128 KiB"}
# In four shards: 0 and 1 share a series, 2 has four frames, 3 is alone in its archive.
FEW = ("demo_ct_mr", "demo_nc")
PATIENCE = 60.0
POLL = 0.1
SCRIPTS = SOURCE / "slurm"


class GatedSite(DemoSite):
    """A demo site that can keep single objects back: who asks for them waits, without an answer."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._shut: set[str] = set()
        self._waiting: list[str] = []
        self._change = threading.Condition()

    def shut(self, *prefixes: str) -> None:
        """Keep back every object whose key begins so."""
        with self._change:
            self._shut.update(prefixes)

    def open(self, *prefixes: str) -> None:
        """Give these out again, to those who wait as well; without any: all."""
        with self._change:
            self._shut.difference_update(prefixes or set(self._shut))
            self._change.notify_all()

    def is_asked(self, prefixes: Sequence[str]) -> bool:
        """Whether somebody waits, or has waited and given up, for an object that is kept back."""
        with self._change:
            return any(key.startswith(tuple(prefixes)) for key in self._waiting)

    def forget(self) -> None:
        """Forget who has asked so far."""
        with self._change:
            self._waiting.clear()

    def _plan_reply(self, request: Request, target: Target, verb: Verb, key: str) -> Reply:
        if verb == "GET":
            with self._change:
                while key.startswith(tuple(self._shut)) and not self._stop.is_set():
                    self._waiting.append(key)
                    self._change.wait(0.2)  # then look whether the site closes
        return super()._plan_reply(request, target, verb, key)


class SlurmHaul(Haul):
    """One run of one config, on a cluster."""

    def __init__(
        self,
        cluster: SlurmCluster,
        folder: Path,
        data: DemoData,
        site: DemoSite,
        *,
        shards: int = 3,
        tasks: int = 6,
        collections: Sequence[str] = FEW,
    ) -> None:
        super().__init__(
            folder,
            data.index,
            site.url,
            select={"collections": list(collections)} if collections else {},
            archive=ARCHIVE,
            task={"cores": 1, "stall": 60},
            shards=shards,
        )
        self.settings["storage"]["logs"] = str(folder / "logs")
        self.settings["limits"] = {"connections": 24, "tasks": tasks}
        self.settings["slurm"] = {"settle": 0, "poll": 1, "cpus": 1}
        self.cluster = cluster
        self.site = site
        self.environ = {**cluster.environ, "MEDHAUL_ENV": str(write_environment(folder))}

    # -- commands ------------------------------------------------------------------------------------------------

    def medhaul(self, *words: object, code: int = 0) -> Ended:
        """Run one command on the login node; it must end with `code`."""
        ended = run_medhaul(*words, environ=self.environ)
        assert ended.code == code, f"{ended.code}: {ended.out}\n{ended.err}"
        assert "Traceback" not in ended.err
        return ended

    def submit(self) -> Ended:
        """Write the config, plan, submit."""
        self.config.write_text(render_toml(self.settings))
        return self.medhaul("submit", self.config)

    def status(self) -> dict[str, Any]:
        """What `medhaul status --json` says."""
        self.last: dict[str, Any] = json.loads(self.medhaul("status", self.run.path, "--json").out)
        return self.last

    def told(self) -> str:
        """What `medhaul status` says to people."""
        return self.medhaul("status", self.run.path).out

    def causes(self) -> dict[int, str]:
        """The cause of every shard that is neither done nor at work; each must come with a reason and a remedy."""
        views = self.status()["open"]
        assert all(view["remedy"] and view["reason"] for view in views)
        return {view["shard"]: view["cause"] for view in views}

    def reason(self, shard: int) -> str:
        """Why a shard is not done, for people, as of the last status."""
        (view,) = (view for view in self.last["open"] if view["shard"] == shard)
        return str(view["reason"])

    def waiting(self, shard: int) -> str:
        """What a shard waits for now, for people; empty when it does not wait."""
        return "".join(view["reason"] for view in self.status()["waiting"] if shard in view["shards"])

    def finish(self) -> dict[str, str]:
        """Resume and wait; all must end well. What the last status said in JSON, people must have been told as well."""
        told = self.told()
        for view in self.last["open"]:
            assert f": {view['reason']} (shard" in told
            assert f"-> {view['cause']}: {view['remedy']}" in told
        self.medhaul("resume", self.run.path)
        return self.ended_well()

    def ended_well(self) -> dict[str, str]:
        """Wait for the end of the newest attempt, by which all must be done. Returns the archives' SHA-256 by name."""
        self.settle()
        report = self.status()
        assert report["reduce"]["state"] == "COMPLETED", (report, self.reduce_log())
        assert report["shards"]["done"] == len(self.shards)
        assert self.leftovers() == []
        return self.sums()

    def shell(self, *words: object, **variables: str) -> Ended:
        """Run a program as a person on the login node would, with nothing of medhaul's own in the environment."""
        environ = {k: v for k, v in self.cluster.full_environ().items() if not k.startswith("MEDHAUL")}
        argv = [str(word) for word in words]
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    # -- the attempt ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def collector(self) -> Collector:
        """What reads the run's state in this process."""
        environ = self.cluster.full_environ()
        return Collector(self.run, open_scheduler=lambda _, run: SlurmScheduler(run, environ=environ))

    def attempt(self) -> Attempt:
        """The newest attempt as it stands."""
        attempt = self.collector.attempt()
        assert attempt is not None
        return attempt

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait for a condition; the message of a failure has the run's status and the ends of all logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not happen in {seconds} s\n{self.told()}\n{self.log_tails()}")
            time.sleep(POLL)

    def settle(self, seconds: float = PATIENCE) -> None:
        """Wait until the newest attempt has ended."""
        self.wait(lambda: self.attempt().liveness is Liveness.ENDED, seconds)

    def job(self, shard: int) -> str:
        """The `A_a` of a shard's task in the newest attempt."""
        number = self.run.attempts()[-1]
        at = self.run.read_plan(number).shards.index(shard)
        (job,) = (j for j in self.run.read_jobs(number) if j.kind == "array" and 0 <= at - j.offset < j.length)
        return f"{job.id}_{at - job.offset}"

    def row(self, shard: int) -> dict[str, str]:
        """What squeue says of a shard's task."""
        (row,) = self.cluster.queue(self.job(shard))
        return row

    def wait_blocked(self, shard: int, frames: int = 0, restarts: int = 0) -> str:
        """Wait until a life of a shard has journaled `frames` frames and stands at a gate; returns its node."""
        series = self.own_series(shard)

        def stands() -> bool:
            row = self.row(shard)
            return (
                (row["State"], row["RestartCnt"]) == ("RUNNING", str(restarts))
                and len(self.journaled_series(shard)) >= frames
                and self.site.is_asked(series)
                and self.has_spoken(shard, restarts)
            )

        self.wait(stands)
        return self.row(shard)["NodeList"]

    def has_spoken(self, shard: int, restarts: int) -> bool:
        """Whether the present life of a shard has said something."""
        beat = self.run.read_heartbeats().get(shard)
        job = self.job(shard) + (f".{restarts}" if restarts else "")
        return beat is not None and beat.job == job and beat.phase == "working"

    def journaled_series(self, shard: int) -> set[str]:
        """The series of which a frame of the shard is finished."""
        return {key.partition("/")[0] for key in self.journaled_keys(shard)}

    def own_series(self, shard: int) -> list[str]:
        """The series, as the site names them, that are of this shard alone, in order."""
        manifest = Manifest(self.run)
        others = {e.item.location.uuid for s in self.shards if s != shard for e in manifest.entries(s)}
        own = dict.fromkeys(entry.item.location.uuid for entry in manifest.entries(shard))
        return [uuid for uuid in own if uuid not in others]

    def signal(self, shard: int) -> None:
        """Give a task the early signal, as Slurm does ahead of the time limit: to the batch process alone."""
        self.cluster.run("scancel", "--signal=USR1", "-b", self.job(shard), check=True)

    # -- what is left --------------------------------------------------------------------------------------------

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's receipt."""
        return self.run.read_receipt(shard, self.run.read_run().manifest_sha256)

    def log(self, shard: int) -> str:
        """All lives of a shard's task in the newest attempt."""
        return (self.run.logs(self.run.attempts()[-1]) / f"{self.job(shard)}.log").read_text()

    def reduce_log(self) -> str:
        """What the newest attempt's reduce job said."""
        path = self.run.logs(self.run.attempts()[-1]) / "reduce.log"
        return path.read_text() if path.exists() else ""

    def log_tails(self) -> str:
        """The ends of all logs."""
        logs = sorted((self.folder / "logs").rglob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in logs)


def write_environment(folder: Path) -> Path:
    """A file for MEDHAUL_ENV, with which jobs run the medhaul that is under test, installed or not."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    command = binaries / "medhaul"
    program = shlex.join([sys.executable, "-m", "pipeline.cli.main"])
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(SOURCE))} exec {program} "$@"\n')
    command.chmod(0o755)
    environment = folder / "environment.sh"
    environment.write_text(f'export PATH={shlex.quote(str(binaries))}:"$PATH"\n')
    return environment


@functools.cache
def build_once(folder: Path) -> tuple[DemoData, dict[str, str]]:
    """The tiny demo data, and SHA-256 of each archive of all of it, from local processes that nothing disturbed."""
    data = build_demo(folder / "demo", "tiny")
    with DemoSite(data.store()) as site:
        haul = Haul(folder / "undisturbed", data.index, site.url, archive=ARCHIVE)
        sums = haul.all()
    haul.check_members(data)
    return data, sums


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The demo data; the same for all modules."""
    return build_once(tmp_path_factory.getbasetemp() / "haul_kit")[0]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each archive as it must come out."""
    return build_once(tmp_path_factory.getbasetemp() / "haul_kit")[1]


@pytest.fixture(scope="session")
def few(undisturbed: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the archives of the collections `FEW`."""
    return {f"{name}.tar.xz": undisturbed[f"{name}.tar.xz"] for name in FEW}


@pytest.fixture
def site(data: DemoData) -> Iterator[GatedSite]:
    """A site that serves the data."""
    with GatedSite(data.store()) as running:
        yield running


@pytest.fixture
def haul(cluster: SlurmCluster, tmp_path: Path, data: DemoData, site: GatedSite) -> SlurmHaul:
    """A haul of `FEW` in four shards, on the cluster without accounting."""
    return SlurmHaul(cluster, tmp_path / "haul", data, site)


@pytest.fixture
def booked_haul(accounting_cluster: SlurmCluster, tmp_path: Path, data: DemoData, site: GatedSite) -> SlurmHaul:
    """The same on the cluster with accounting."""
    return SlurmHaul(accounting_cluster, tmp_path / "haul", data, site)
