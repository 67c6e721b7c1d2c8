"""The settings of a test cluster and of the daemons beside it, as text."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

MEMORY = 4000  # MB that each node claims to have
WHOLE_LINES = frozenset(("nodes", "main", "high"))


def slurm_settings(
    folder: Path,
    *,
    name: str,
    accounting: bool,
    ports: Sequence[int],
    nodes: Sequence[str],
    max_array_size: int,
    cpus: int,
    kill_wait: int,
    min_job_age: int,
    preempt: bool,
    slurmd_timeout: int,
) -> dict[str, str]:
    """Settings by name, as slurm.conf(5) describes them; the keys `nodes`, `main` and `high` are whole lines."""
    host = socket.gethostname().partition(".")[0]
    address, bind = own_address()
    settings: dict[str, object] = {
        "ClusterName": name,
        "SlurmctldHost": f"{host}({address})",
        "SlurmctldPort": ports[0],
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny" if bind else "",
        "AuthType": "auth/munge",
        # cred_expire is also how long a requeued task waits; its default is two minutes.
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool" / "%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1",
        "MpiDefault": "none",
        "ReturnToService": 2,
        # Half of the default: a dead node is noticed after some 17 s instead of 28 s.
        "MessageTimeout": 5,
        "SlurmdTimeout": slurmd_timeout,
        "KillWait": kill_wait,
        "MinJobAge": min_job_age,
        "MaxArraySize": max_array_size,
        "JobCompType": "jobcomp/none",
        "MailProg": "/bin/true",
        "AccountingStorageType": "accounting_storage/none",
        "PreemptType": "preempt/none",
    }
    if accounting:
        settings |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": address,
            "AccountingStoragePort": ports[-1],
            # Beside its name: which munge daemon vouches for clients of slurmdbd.
            "AccountingStoragePass": folder / "munge" / "socket",
        }
    if preempt:
        settings |= {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}
    everywhere = f"Nodes={','.join(nodes)} MaxTime=INFINITE State=UP"
    settings |= {
        "nodes": "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus} RealMemory={MEMORY}"
            for node, port in zip(nodes, ports[1:], strict=False)
        ),
        "main": f"PartitionName=main {everywhere} Default=YES PriorityTier=1",
        # No GraceTime: with one, the batch script hears of its preemption only when the time is over.
        "high": f"PartitionName=high {everywhere} PriorityTier=10",
    }
    return {key: str(value) for key, value in settings.items()}


def own_address() -> tuple[str, bool]:
    """Where the daemons can be reached, and whether they can be told to listen there only.

    With slurm.conf's `NoInAddrAny` a daemon listens on what the host's own name resolves to: on most machines an
    address of the loopback device. Where the name does not resolve, they listen everywhere.
    """
    try:
        return socket.gethostbyname(socket.gethostname()), True
    except OSError:
        return "127.0.0.1", False


def render_conf(settings: Mapping[str, str]) -> str:
    """The text of slurm.conf(5)."""
    lines = [value if key in WHOLE_LINES else f"{key}={value}" for key, value in settings.items() if value]
    return "\n".join(lines) + "\n"


def render_dbd_conf(folder: Path, port: int) -> str:
    """The text of slurmdbd.conf(5); its database is reached by the socket that MYSQL_UNIX_PORT names."""
    address, bind = own_address()
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge/socket",
        "DbdHost": "localhost",
        "DbdAddr": address,
        "DbdPort": port,
        "CommunicationParameters": "NoInAddrAny" if bind else "",
        "SlurmUser": "root",
        "PidFile": folder / "slurmdbd.pid",
        "LogFile": folder / "log" / "slurmdbd.log",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items() if value)


def munged_command(home: Path) -> list[str]:
    """A munge daemon with all its files in one folder; `home/key` must exist."""
    files = [f"--{name}={home / name.removesuffix('-file')}" for name in ("socket", "key-file", "pid-file", "log-file")]
    # --force: else it refuses a folder that not every user can enter.
    return ["munged", "--foreground", "--force", *files, f"--seed-file={home / 'seed'}"]


def mariadbd_command(data: Path) -> list[str]:
    """A MariaDB of a prepared data folder that can be reached by `data/socket` only, and there by whoever can open it.

    So only root may be able to enter that folder. What is lost in a crash does not matter here.
    """
    return [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        f"--datadir={data}",
        f"--socket={data / 'socket'}",
        f"--pid-file={data / 'pid'}",
        "--skip-networking",
        "--skip-grant-tables",
        "--innodb-buffer-pool-size=64M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-fast-shutdown=2",
    ]
