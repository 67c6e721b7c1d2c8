"""A real Slurm of several nodes on this machine, for tests: all below one folder, and all of it ended at the end.

Each cluster has its own munge daemon, ports, name and files, so several can run at once and none touches a Slurm that
the machine may have. One process stands for one node; what slurm.conf(5) calls `config_overrides` lets each claim more
processors and memory than there are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from machine import AMBIENT, program_path, reserve_port
from slurm_conf import mariadbd_command, munged_command, render_conf, render_dbd_conf, slurm_settings
from watchdog import (
    PATIENCE,
    Process,
    choose_family,
    end_cluster,
    has_open_below,
    have_ended,
    is_step,
    of_cluster,
    read_processes,
    send,
)

WATCHDOG = Path(__file__).with_name("watchdog.py")
POLL = 0.1
START_SECONDS = 60.0
# A Unix socket's path has 107 bytes at most (unix(7)); Slurm puts some 40 after the folder. No spaces in slurm.conf.
FIT_FOLDER = re.compile(r"[A-Za-z0-9_./-]{1,60}")
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
UP = frozenset(("idle", "mix", "alloc", "comp"))
# As squeue(1) calls them; with a suffix and no width it neither pads nor cuts a field.
FIELDS = (
    "JobArrayID", "JobID", "ArrayJobID", "ArrayTaskID", "Name", "Partition", "State", "Reason", "exit_code",
    "RestartCnt", "NodeList",
)  # fmt: skip
SEPARATOR = "\x1f"
ACCOUNT = "tests"


class SlurmCluster:
    """A cluster that runs between `__enter__` (or `start`) and `__exit__` (or `stop`).

    It needs root and a Linux with Slurm installed: ask `why_no_slurm` first. All times are in seconds.

    Partitions: `main` (the default) and `high`, whose jobs preempt those of `main`: these get SIGTERM at once, SIGKILL
    after `kill_wait`, and start again later.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        accounting: bool = False,
        max_array_size: int = 1001,
        cpus: int = 2,
        kill_wait: int = 5,
        min_job_age: int = 300,
        preempt: bool = True,
        slurmd_timeout: int = 10,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._made_folder = "" if FIT_FOLDER.fullmatch(str(folder)) else tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
        self.folder = Path(self._made_folder or folder).resolve()
        self.conf = self.folder / "slurm.conf"
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.accounting = accounting
        self._reserved: list[socket.socket] = []
        self._ports = []
        for _ in range(nodes + 2):
            port, hold = reserve_port()
            self._ports.append(port)
            self._reserved.append(hold)
        self.name = f"c{self._ports[0]}"
        self._original = slurm_settings(
            self.folder,
            name=self.name,
            nodes=self.nodes,
            ports=self._ports,
            accounting=accounting,
            max_array_size=max_array_size,
            cpus=cpus,
            kill_wait=kill_wait,
            min_job_age=min_job_age,
            preempt=preempt,
            slurmd_timeout=slurmd_timeout,
        )
        self.settings = dict(self._original)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons; returns when every node is idle.

        Raises RuntimeError when that takes more than a minute; the message has the ends of all logs.
        """
        for name in ("log", "state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o755, exist_ok=True)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", WATCHDOG, self.conf, str(os.getpid()), self._made_folder],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "")},
        )
        self._write_conf()
        self._start_munged()
        if self.accounting:
            self._start_accounting()
        self.start_controller(wait=False)
        for name in self.nodes:
            self._spawn(name, "slurmd", "-D", "-N", name)
        self._wait(lambda: self._states() == dict.fromkeys(self.nodes, "idle"), "all nodes idle")

    def stop(self, patience: float = PATIENCE) -> None:
        """End every process of the cluster: also steps, and what jobs have left behind. Files stay.

        What does not end at SIGTERM gets SIGKILL after `patience`. Raises RuntimeError when something survives it.
        """
        try:
            end_cluster(self.conf, patience)
        finally:
            for daemon in self._daemons.values():
                daemon.poll()
            self._daemons.clear()
            if self._watchdog is not None:
                self._watchdog.kill()
                self._watchdog.wait()
                self._watchdog = None
            for reserved in self._reserved:
                reserved.close()
            self._reserved.clear()
            if self._made_folder:
                shutil.rmtree(self._made_folder, ignore_errors=True)

    def tidy(self) -> None:
        """Bring the cluster back to how it started: settings, controller, nodes; and no job left waiting or running."""
        if self.settings != self._original:
            self.settings = dict(self._original)
            self._apply_conf()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        if any(row["State"] not in ENDED for row in self.queue()):
            self.run("scancel", *{row["JobID"] for row in self.queue() if row["State"] not in ENDED})
            self._wait(lambda: all(row["State"] in ENDED for row in self.queue()), "all jobs ended")

    # -- commands ------------------------------------------------------------------------------------------------

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment, besides the usual, to work with this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": program_path()}

    def full_environ(self) -> dict[str, str]:
        """The environment of this process, without that of a Slurm around it, with that of this cluster."""
        return {**{k: v for k, v in os.environ.items() if not k.startswith(AMBIENT)}, **self.environ}

    def run(self, *argv: object, cwd: Path | None = None, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command, of Slurm or another, with this cluster's environment, for a minute at most."""
        return subprocess.run(
            [str(word) for word in argv],
            cwd=cwd or self.folder,
            env=self.full_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )

    def submit(self, script: str, *options: object, cwd: Path | None = None) -> str:
        """Submit a bash script of these lines; returns the job's id. Its output goes where `options` say."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh", dir=self.folder) as file:
            file.write("#!/bin/bash\n" + script)
            file.flush()
            done = self.run("sbatch", "--parsable", *options, file.name, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def queue(self, job: str = "", fields: Sequence[str] = FIELDS) -> list[dict[str, str]]:
        """What squeue(1) says of every task that the controller remembers; of one job or array if `job` is given."""
        wanted = ["-j", job] if job else []
        form = ",".join(f"{name}:{SEPARATOR}" for name in fields)
        done = self.run("squeue", "-h", "-r", "-t", "all", "-O", form, *wanted)
        if done.returncode != 0 and "Invalid job id" in done.stderr:
            return []
        assert done.returncode == 0, done.stderr
        return [dict(zip(fields, line.split(SEPARATOR), strict=False)) for line in done.stdout.splitlines()]

    def wait_for(
        self, job: str, condition: Callable[[list[dict[str, str]]], bool], seconds: float = 30
    ) -> list[dict[str, str]]:
        """Wait until what squeue says of a job meets a condition; returns it.

        Raises RuntimeError when it does not in time; the message has the job's last rows and the ends of all logs.
        """
        rows: list[dict[str, str]] = []

        def met() -> bool:
            rows[:] = self.queue(job)
            return condition(rows)

        self._wait(met, f"job {job}", seconds, lambda: f"{rows}")
        return rows

    def wait_ended(self, job: str, seconds: float = 30) -> list[dict[str, str]]:
        """Wait until every task of a job has ended, however; returns what squeue says of them."""
        return self.wait_for(job, lambda rows: bool(rows) and all(row["State"] in ENDED for row in rows), seconds)

    def logs_tail(self, lines: int = 15) -> str:
        """The last lines of every daemon's log."""
        text = []
        for path in sorted((self.folder / "log").glob("*")):
            text += [f"== {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(text)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node_processes(self, name: str) -> list[Process]:
        """The step managers and job processes of a node, parents first; without its slurmd."""
        ours = of_cluster(self.conf)
        log = self.folder / "log" / f"{name}.log"

        def belongs(process: Process) -> bool:
            if not ours(process):
                return False
            return process.environ.get("SLURMD_NODENAME") == name or (is_step(process) and has_open_below(process, log))

        return choose_family(read_processes(), belongs)

    def kill_node(self, name: str, *, announce: bool = False) -> None:
        """End a node as a power cut would: SIGKILL to its slurmd, its step managers and all their processes.

        The controller notices after `slurmd_timeout`; with `announce` it is told at once that the node is down.
        """
        daemon = self._daemons[name]
        daemon.kill()
        daemon.wait()
        while found := self.node_processes(name):
            # Step managers first: none shall live to report the end of its job.
            send(sorted(found, key=lambda process: not is_step(process)), signal.SIGKILL)
            self._wait(partial(have_ended, found), f"{name} dead")
        if announce:
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=killed", check=True)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd if it is not running; returns when the node is up."""
        if not self._runs(name):
            since = int(time.time())
            self._spawn(name, "slurmd", "-D", "-N", name)
            # A node that was never missed looks up in any case; wait until it has registered again.
            self._wait(lambda: self._slurmd_since(name) >= since, f"node {name} registered")
        if not self._states().get(name, "").rstrip("*").startswith(tuple(UP)):
            self.run("scontrol", "update", f"nodename={name}", "state=resume")
        self._wait(lambda: self._states().get(name) in UP, f"node {name} up")

    # -- controller ----------------------------------------------------------------------------------------------

    def kill_controller(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End slurmctld; the nodes and what runs on them stay.

        At SIGTERM it saves its state first. SIGKILL makes it forget what happened since it last did: some 5 seconds.
        """
        daemon = self._daemons["slurmctld"]
        daemon.send_signal(number)
        daemon.wait(START_SECONDS)

    def start_controller(self, *, wait: bool = True) -> None:
        """Start slurmctld if it is not running; returns when it answers."""
        if not self._runs("slurmctld"):
            self._spawn("slurmctld", "slurmctld", "-D")
        if wait:
            self._wait(lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld answers")

    def reconfigure(self, **settings: object) -> None:
        """Change settings of slurm.conf(5), restart the controller with them and tell the nodes; see also `tidy`."""
        self.settings |= {name: str(value) for name, value in settings.items()}
        self._apply_conf()

    def _apply_conf(self) -> None:
        self._write_conf()
        if self._runs("slurmctld"):
            self.kill_controller(signal.SIGTERM)
        self.start_controller()
        self.run("scontrol", "reconfigure", check=True)
        self._wait(lambda: all(s in UP for n, s in self._states().items() if self._runs(n)), "all nodes back")

    # -- inside --------------------------------------------------------------------------------------------------

    def _write_conf(self) -> None:
        new = self.conf.with_suffix(".new")
        new.write_text(render_conf(self.settings))
        new.replace(self.conf)

    def _spawn(self, name: str, *argv: object, **environ: str) -> None:
        with (self.folder / "log" / f"{name}.err").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [str(word) for word in argv],
                cwd=self.folder,
                env={**self.full_environ(), **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start_munged(self) -> None:
        home = self.folder / "munge"
        key = home / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._spawn("munged", *munged_command(home))
        self._wait(lambda: self.run("munge", "-n", "-S", home / "socket").returncode == 0, "munged answers")

    def _start_accounting(self) -> None:
        data = self.folder / "db"
        done = self.run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
        if done.returncode != 0:
            raise RuntimeError(f"mariadb-install-db failed: {done.stdout}{done.stderr}")
        data.chmod(0o700)
        self._spawn("mariadbd", *mariadbd_command(data))
        self._wait((data / "socket").exists, "mariadbd's socket")
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)  # slurmdbd(8) refuses a file that others can read
        conf.write_text(render_dbd_conf(self.folder, self._ports[-1]))
        self._spawn("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(data / "socket"))
        add = ("sacctmgr", "-i", "add")
        self._wait(lambda: self.run(*add, "cluster", self.name).returncode == 0, "slurmdbd answers")
        self.run(*add, "account", ACCOUNT, f"cluster={self.name}", check=True)
        self.run(*add, "user", "root", f"account={ACCOUNT}", f"cluster={self.name}", check=True)

    def _runs(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].poll() is None

    def _slurmd_since(self, name: str) -> float:
        """When the node's slurmd started, as the controller knows; 0 when it does not."""
        said = re.search(r"SlurmdStartTime=(\S+)", self.run("scontrol", "show", "node", name).stdout)
        with contextlib.suppress(ValueError):  # "None" of a node that has never registered
            return datetime.fromisoformat(said[1]).timestamp() if said else 0
        return 0

    def _states(self) -> dict[str, str]:
        """Each node's state as sinfo(1) says, shortened; empty when the controller does not answer."""
        done = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t")
        return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else {}

    def _wait(
        self,
        condition: Callable[[], bool],
        what: str,
        seconds: float = START_SECONDS,
        explain: Callable[[], str] = str,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None and daemon.returncode > 0:
                    raise RuntimeError(f"{name} ended with {daemon.returncode}\n{self.logs_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds} s: {what} {explain()}\n{self._states()}\n{self.logs_tail()}")
            time.sleep(POLL)
