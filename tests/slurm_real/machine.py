"""What a test cluster needs from the machine: programs, a search path, ports."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from random import SystemRandom

# Settings of a Slurm around the tests; its commands read them from the environment.
AMBIENT = ("SLURM", "SBATCH", "SQUEUE", "SACCT", "SCANCEL", "SINFO", "SRUN", "SALLOC")
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db")
# Below the range from which Linux takes the ports of outgoing connections (32768 and up).
PORTS = range(12000, 32000)


def why_no_slurm(accounting: bool = False) -> str:
    """Why no cluster can be started here, in words for the skip; empty when one can."""
    if not Path("/proc/self/stat").exists():
        return "a cluster for tests needs Linux's /proc"
    if os.geteuid() != 0:
        return "a cluster for tests needs root"
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    missing = [name for name in wanted if shutil.which(name, path=program_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; run tools/install_slurm.sh as root on Debian"
    return ""


def program_path() -> str:
    """PATH with the folders of daemons."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(path + [folder for folder in ("/usr/sbin", "/sbin") if folder not in path])


def reserve_port() -> tuple[int, socket.socket]:
    """A free port, kept from all who reserve like this until the socket is closed or its process ends.

    The reservation is an abstract name (unix(7)), so the port itself stays free for the daemon.
    """
    while True:
        port = SystemRandom().choice(PORTS)
        hold = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket.socket() as probe:
            try:
                hold.bind(f"\0slurm-test-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                hold.close()
            else:
                return port, hold
