"""A stand-in for Slurm's commands that says what a test puts into its files, and configs for it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

from pipeline.config import parse_config
from pipeline.settings import Config

CONFIG_TEXT = """\
ClusterName             = probe
SLURM_VERSION           = 22.05.8
MaxArraySize            = 1001
MaxJobCount             = 10000
SchedulerParameters     = sched_interval=2,max_array_tasks=500
KillWait                = 30 sec
MinJobAge               = 300 sec
JobRequeue              = 1
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
AccountingStorageType   = accounting_storage/slurmdbd
AccountingStorageEnforce = associations,limits,qos
"""
PARTITION_TEXT = (
    "PartitionName=main Default=YES DefaultTime=08:00:00 MaxTime=1-00:00:00 GraceTime=60 PreemptMode=REQUEUE State=UP"
    " TotalNodes=3 MaxMemPerNode=UNLIMITED\n"
    "PartitionName=short Default=NO DefaultTime=00:10:00 MaxTime=00:30:00 GraceTime=0 PreemptMode=OFF State=UP"
    " TotalNodes=1 MaxMemPerNode=1024\n"
)
COMMANDS = {
    "scontrol": 'case "$*" in *config*) cat config.txt; exit "$(cat config.code)";; *) cat partition.txt;; esac',
    "sacctmgr": 'case "$*" in *assoc*) cat assoc.txt;; *) cat qos.txt;; esac; exit "$(cat sacctmgr.code)"',
    "sacct": 'exit "$(cat sacct.code)"',
    "squeue": "cat queue.txt",
    "scancel": 'echo "$@" >>cancelled.txt',
    "sbatch": """
case "$*" in *--test-only*) cat test.txt >&2; exit "$(cat test.code)";; esac
printf '%s\\n' "$@" >sbatch.txt; env >sbatch.env
test "$(cat sbatch.code)" = 0 || { echo "sbatch: error: refused" >&2; exit 1; }
for word in "$@"; do
    case "$word" in --chdir=*) folder="${word#--chdir=}";; --output=*) log="${word#--output=}";; esac
    script="$word"
done
if [ -e run.txt ]; then
    cd "$folder"
    SLURM_JOB_ID=77 SLURM_MEM_PER_NODE=2000 setsid sh -c 'exec bash "$0"' "$script" >>"$log" 2>&1 </dev/null &
    echo $! >>"$OLDPWD/pids.txt"
fi
echo "welcome to this cluster"
echo 77
""",
}


class FakeSlurm:
    """Commands in `root/bin` that print the files of `root`; `environ` finds them, and nothing of a real Slurm."""

    def __init__(self, root: Path) -> None:
        self.root = root
        binaries = root / "bin"
        binaries.mkdir(parents=True)
        for name, body in COMMANDS.items():
            path = binaries / name
            path.write_text(f"#!/bin/sh\ncd {shlex.quote(str(root))}\n{body}\n")
            path.chmod(0o755)
        self.environ = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(root), "USER": "somebody"}
        self.say(config=CONFIG_TEXT, partition=PARTITION_TEXT, assoc="phys||normal,long|10|100\n", queue="")
        self.say(qos="normal|||\nlong|7-00:00:00|20|\n", test="sbatch: Job 7 to start at noon in partition main\n")
        for name in ("config", "sacctmgr", "sacct", "test", "sbatch"):
            self.set_code(name, 0)

    def say(self, **texts: str) -> None:
        """Set what commands print."""
        for name, text in texts.items():
            (self.root / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))

    def set_code(self, name: str, code: int) -> None:
        """Set how a command ends."""
        (self.root / f"{name}.code").write_text(str(code))

    def read(self, name: str) -> str:
        """What a command wrote down; empty when it was not called."""
        path = self.root / name
        return path.read_text() if path.exists() else ""

    def command(self, name: str, body: str) -> None:
        """Replace a command."""
        (self.root / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")

    def run_jobs(self) -> None:
        """Let jobs run, with a `medhaul` that knows the doctor."""
        (self.root / "run.txt").touch()
        medhaul = self.root / "medhaul-bin" / "medhaul"
        medhaul.parent.mkdir()
        code = (
            "from pipeline.cli import main; main.COMMANDS['doctor'] = 'pipeline.cli.doctor:doctor';"
            " main.SHORT_HELP['doctor'] = ''; main.main()"
        )
        medhaul.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code])} "$@"\n')
        medhaul.chmod(0o755)
        self.set_medhaul(medhaul)

    def set_medhaul(self, medhaul: Path) -> None:
        """Let jobs find this `medhaul`."""
        activate = self.root / "activate.sh"
        activate.write_text(f"PATH={shlex.quote(str(medhaul.parent))}:$PATH\n")
        self.environ["MEDHAUL_ENV"] = str(activate)
        self.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])

    def close(self) -> None:
        """End the jobs that were started here."""
        for pid in self.read("pids.txt").split():
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


def make_config(**tables: dict[str, object]) -> Config:
    """The default config with some tables changed, as far as they do not name files."""
    return parse_config(
        {"run": {"name": "r"}, "storage": {"root": "."}, "select": {"idc": {"content": "both"}}} | tables, "test"
    )


def levels(findings, what=""):
    """The levels of the findings whose `what` begins with this."""
    return [finding.level for finding in findings if finding.what.startswith(what)]
