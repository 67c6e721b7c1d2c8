"""One small job on a compute node, which runs the doctor there, is waited for politely, and leaves nothing behind."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

import pipeline
from pipeline.atomic import storage_errors
from pipeline.config import ENVIRONMENT
from pipeline.doctor.records import SITE, STORAGE, DoctorReport, Finding, failure, good, printable, warning
from pipeline.doctor.slurm import user_name
from pipeline.errors import ConfigError, StorageError
from pipeline.schedulers.base import HOME, SchedulerError
from pipeline.schedulers.environment import prepend_path
from pipeline.schedulers.slurm_calls import SlurmCalls
from pipeline.schedulers.slurm_jobs import escape_pattern, parse_job_id, passed_environment, resource_options
from pipeline.schedulers.slurm_states import ENDED, PATIENCE, STUCK
from pipeline.settings import Config
from pipeline.units import Duration, render_duration

GROUP = "node"
LIMIT = 600.0
LOOK = 2.0  # seconds between two looks for the result
SETTLE = 30.0  # at most, for files that shared storage shows late
FIRST_QUESTION, LAST_QUESTION = 5.0, 60.0
RESULT, LOG, SCRIPT = "result.json", "log.txt", "check.sh"
MAX_RESULT = 4 << 20


class QueueWord(msgspec.Struct, frozen=True):
    """What squeue says of the job: a state's word, empty where it says nothing sure, or `GONE`; and why it waits."""

    word: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.word == "GONE" or self.word in ENDED


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How waiting ended: with the `result`, or with the last word of the queue and the tail of the job's log."""

    result: bytes | None
    last: QueueWord
    log: str | None
    seconds: float


def parse_queue(code: int, out: str, err: str) -> QueueWord:
    """Read `squeue -h -t all -o %T|%r -j ID`: no line means that the job is forgotten. Pure."""
    if code != 0:
        return QueueWord("GONE" if "Invalid job id" in err else "")
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    if not lines:
        return QueueWord("GONE")
    match = re.fullmatch(r"([A-Z_]+)\|(.*)", lines[0])
    return QueueWord(match[1], printable(match[2], 80)) if match else QueueWord("")


def plan_time(config: Config, most: float) -> float:
    """Seconds to ask for: no more than tasks do, than the partition gives, or than ten minutes. Pure."""
    return min(LIMIT, config.slurm.time or LIMIT, max(60.0, most))


def render_script(config: Path) -> str:
    """The batch script: find `medhaul` as a task does, run the doctor, and name its report when it is whole. Pure."""
    return f"""#!/usr/bin/env bash
# Made by `medhaul doctor --on-node`; its folder is removed at the end.
set -uo pipefail
if [[ -n "${{MEDHAUL_ENV:-}}" ]]; then
    set +u # activation scripts seldom bear it
    # shellcheck source=/dev/null
    source "$MEDHAUL_ENV" || {{ echo "MEDHAUL_ENV=$MEDHAUL_ENV: cannot be sourced" >&2; exit 78; }}
    set -u
fi
medhaul="$(type -P medhaul || true)"
if [[ -z "$medhaul" ]]; then
    medhaul="${{MEDHAUL_HOME:-}}/.venv/bin/medhaul"
fi
if [[ ! -x "$medhaul" ]]; then
    echo "no medhaul on PATH nor at $medhaul; set MEDHAUL_ENV to a file that makes it available" >&2
    exit 78
fi
"$medhaul" doctor {shlex.quote(str(config))} --json --here >{RESULT}.part
code=$?
if [[ ! -s {RESULT}.part ]]; then
    exit "$code" # the log says why
fi
mv {RESULT}.part {RESULT}
"""


def job_arguments(config: Config, folder: Path, name: str, seconds: float) -> list[str]:
    """The command line of the job: the options of a task, less time, and no array. Pure. Raises `ConfigError`."""
    slurm = msgspec.structs.replace(config.slurm, time=Duration(seconds))
    return [
        "sbatch", "--parsable", f"--job-name={name}", "--open-mode=append", "--no-requeue", "--export=ALL",
        "--nodes=1", "--ntasks=1", f"--chdir={folder}", f"--output={escape_pattern(str(folder))}/{LOG}",
        *resource_options(msgspec.structs.replace(config, slurm=slurm), reduce=False), str(folder / SCRIPT),
    ]  # fmt: skip


def job_environment(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the job: a task's, and what overrides the config, which a task has frozen in its run."""
    made = passed_environment(environ, [*config.slurm.environment, *ENVIRONMENT])
    made.setdefault(HOME, str(Path(pipeline.__file__).resolve().parent.parent))
    binaries = Path(sys.executable).parent
    return prepend_path(made, str(binaries)) if (binaries / "medhaul").is_file() else made


class NodeCheck:
    """Submits the job, waits for it, and clears up.

    Parameters
    ----------
    path
        The config file, as the node is to read it.
    timeout
        Seconds to wait for the result, waiting for a node included; then the job is ended.
    most
        Seconds that the partition gives a job; infinite when not known.
    note
        Told in a few words how it goes.
    """

    def __init__(
        self,
        config: Config,
        path: Path,
        environ: Mapping[str, str],
        *,
        timeout: float = LIMIT,
        most: float = math.inf,
        calls: SlurmCalls | None = None,
        note: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._path = path.resolve()
        self._environ = environ
        self._timeout = timeout
        self._most = most
        self._calls = calls or SlurmCalls(environ, seconds=20.0)
        self._note = note
        self._clock = clock
        self._sleep = sleep

    def run(self) -> tuple[list[Finding], DoctorReport | None]:
        """Do it all. Returns what is to be said of the job, and the node's report if there is one."""
        root = Path(self._config.storage.root)
        made = _make_folders(root)
        findings: list[Finding] = []
        try:
            with storage_errors(root):
                folder = Path(tempfile.mkdtemp(prefix=".medhaul-doctor-", dir=root))
            try:
                found, report = self._run_in(folder)
                findings += found
            finally:
                findings += self._remove(folder)
        except StorageError as error:
            findings.append(failure(GROUP, "job", str(error), error.hint, STORAGE))
            report = None
        finally:
            _remove_folders(made)
        return findings, report

    def _run_in(self, folder: Path) -> tuple[list[Finding], DoctorReport | None]:
        script = folder / SCRIPT
        with storage_errors(script):
            script.write_text(render_script(self._path), encoding="utf-8")
        name = f"medhaul.doctor.{folder.name.rpartition('-')[2]}"
        try:
            argv = job_arguments(self._config, folder, name, plan_time(self._config, self._most))
        except ConfigError as error:
            return [failure(GROUP, "job", str(error), error.hint, ConfigError.exit_code)], None
        job = ""
        waited = False
        try:
            answer = self._calls(*argv, environ=job_environment(self._config, self._environ))
            if answer.code != 0:
                hint = "see the findings on Slurm above"
                return [failure(GROUP, "job", f"sbatch did not take it: {answer.said}", hint, SITE)], None
            job, _ = parse_job_id(answer.out)
            self._note(f"job {job} submitted; waiting up to {render_duration(self._timeout)} for its report")
            outcome = self._wait(folder, job)
            waited = outcome.result is not None or outcome.last.ended
            return judge_outcome(job, outcome, self._timeout)
        except (SchedulerError, ValueError) as error:
            return [failure(GROUP, "job", f"not submitted, as far as known: {error}", "try again later", SITE)], None
        finally:
            if not waited:  # also when it is not known whether it was submitted, and after Ctrl-C
                self._cancel(["scancel", job] if job else ["scancel", f"--name={name}", f"--user={self._user()}"])

    def _user(self) -> str:
        return user_name(self._environ)

    def _cancel(self, argv: list[str]) -> None:
        try:
            answer = self._calls(*argv)
        except SchedulerError as error:
            self._note(f"{shlex.join(argv)}: {error}")
        else:
            if answer.code != 0:
                self._note(f"{shlex.join(argv)}: {printable(answer.said)}")

    def _wait(self, folder: Path, job: str) -> Outcome:
        begun = self._clock()
        until = begun + self._timeout
        pause, ask_at = FIRST_QUESTION, begun + FIRST_QUESTION
        last, settled = QueueWord(""), False
        while True:
            result = _read_file(folder, RESULT)
            now = self._clock()
            if result is not None or settled or now >= until:
                log = _read_file(folder, LOG)
                text = None if log is None else printable(log[-2000:].decode("utf-8", "replace"), 300)
                return Outcome(result=result, last=last, log=text, seconds=now - begun)
            if last.ended:
                settled = now >= ask_at  # shared storage may show late what the node wrote
            elif now >= ask_at:
                last = self._question(job)
                pause = min(LAST_QUESTION, pause * 1.5)
                ask_at = now + (min(SETTLE, self._config.slurm.settle, until - now) if last.ended else pause)
            self._sleep(LOOK)

    def _question(self, job: str) -> QueueWord:
        try:
            answer = self._calls("squeue", "-h", "-t", "all", "-o", "%T|%r", "-j", job)
        except SchedulerError:
            return QueueWord("")
        return parse_queue(answer.code, answer.out, answer.err)

    def _remove(self, folder: Path) -> list[Finding]:
        """Remove the folder; a job that is just ending may hold a file of it for a moment longer."""
        for _ in range(5):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.lexists(folder):
                return []
            self._sleep(1.0)
        return [warning(GROUP, "folder", f"{folder} could not be removed", f"rm -r {shlex.quote(str(folder))}")]


def judge_outcome(job: str, outcome: Outcome, timeout: float) -> tuple[list[Finding], DoctorReport | None]:
    """Judge how the job ended. Pure."""
    if outcome.result is not None:
        try:
            report = msgspec.json.decode(outcome.result, type=DoctorReport)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            text = f"job {job} gave a report that cannot be read: {error}"
            return [failure(GROUP, "job", text, "is the same medhaul installed on the nodes?", SITE)], None
        text = f"job {job} ran on {report.host}, wrote its report below storage.root, and it came after "
        text += render_duration(outcome.seconds)
        return [good(GROUP, "job", text)], report
    word, reason = outcome.last.word, outcome.last.reason
    if outcome.last.ended:
        how = "ended" if word == "GONE" else f"ended as {word}"
        if outcome.log is None:
            text = f"job {job} {how}, and neither its log nor its report can be seen here"
            hint = "do the nodes see storage.root? choose a folder on shared storage"
            return [failure(GROUP, "job", text, hint, STORAGE)], None
        text = f"job {job} {how} without a report; its log: {outcome.log or 'empty'}"
        return [failure(GROUP, "job", text, "tasks would fail alike: see what the log says", SITE)], None
    text = f"job {job} gave no report within {render_duration(timeout)}, and was ended"
    if word:
        told = PATIENCE.get(reason) or STUCK.get(reason) or reason
        text += f"; it was {word}" + (f" ({told})" if told and told != "None" else "")
    return [failure(GROUP, "job", text, "wait longer with --timeout, or choose another partition", SITE)], None


def _read_file(folder: Path, name: str) -> bytes | None:
    """A file's bytes; None while there is none. The folder is listed first, since NFS remembers what was not there."""
    try:
        if name not in os.listdir(folder):  # noqa: PTH208 - names are all that is wanted
            return None
        with (folder / name).open("rb") as file:
            return file.read(MAX_RESULT)
    except OSError:  # it is seen again in two seconds, or it counts as missing
        return None


def _make_folders(root: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were made, innermost first. Raises `StorageError`."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(made: list[Path]) -> None:
    """Remove folders that were made for the check, if nobody else has put anything there since."""
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return
