"""What the commands share: arguments, where lines go, planning from a config file, submitting, and waiting."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from pipeline.errors import InterruptedRunError, ItemsFailedError, MedhaulError, UsageError
from pipeline.rundir import RunDir

if TYPE_CHECKING:
    from pipeline.plan.planner import Plan
    from pipeline.records import AttemptPlan
    from pipeline.report.receipts import Todo
    from pipeline.report.status import Collector, StatusReport
    from pipeline.report.watch import Interrupts
    from pipeline.schedulers.attempt import Attempt
    from pipeline.settings import Config

F = TypeVar("F", bound=Callable[..., Any])

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
assume_dead_option = click.option(
    "--assume-dead",
    is_flag=True,
    help="Go on although an earlier attempt may still be at work, because you know that it is not.",
)
scheduler_option = click.option(
    "--scheduler",
    type=click.Choice(["auto", "slurm", "local"]),
    default="auto",
    show_default=True,
    help="Where the tasks run.",
)


class Echo:
    """Where lines go: what was asked for to stdout, notices to stderr. `-q` leaves notices out, `-v` adds details."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def say(self, text: str) -> None:
        """A line of the command's answer."""
        click.echo(text)

    def note(self, text: str) -> None:
        """A notice."""
        if not self.quiet:
            click.echo(text, err=True)

    def json(self, record: object) -> None:
        """A record as JSON, the command's whole answer."""
        click.echo(msgspec.json.format(msgspec.json.encode(record), indent=1).decode())


def make_echo(*, quiet: bool, verbose: bool) -> Echo:
    """An `Echo` as the command's own `-q` and `-v` say, or those given before the command's name."""
    context = click.get_current_context(silent=True)
    whole = context.find_root().params if context is not None else {}
    return Echo(quiet=quiet or bool(whole.get("quiet")), verbose=verbose or bool(whole.get("verbose")))


def verbosity_options(command: F) -> F:
    """Add `-q` and `-v` to a command."""
    command = click.option("-q", "--quiet", is_flag=True, help="No notices.")(command)
    return click.option("-v", "--verbose", is_flag=True, help="More details.")(command)


def render_command(*words: str) -> str:
    """A command line to paste into a shell; `medhaul` by its path where the shell would not find it by name."""
    if words[0] == "medhaul" and shutil.which("medhaul") is None and Path(sys.argv[0]).name == "medhaul":
        words = (os.path.abspath(sys.argv[0]), *words[1:])  # noqa: PTH100 - a link in a virtual environment is meant
    return shlex.join(words)


def follow_up(run: RunDir) -> list[str]:
    """The exact commands to go on with."""
    return [
        f"  {render_command('medhaul', name, str(run.path)):<60}  # {what}"
        for name, what in (
            ("status", "where it stands; --watch to follow"),
            ("failed", "what failed, and why; --logs for the logs"),
            ("resume", "do what is missing"),
            ("cancel", "stop it; everything finished is kept"),
        )
    ]


def plan_file(path: Path, echo: Echo, *, dry_run: bool) -> tuple[Plan, Config]:
    """Plan the run that a config file describes, and tell what is planned. Raises what the planner raises."""
    from pipeline.cli.plan import make_plan, render_plan
    from pipeline.config import read_config

    config = read_config(path)
    plan = make_plan(config, dry_run=dry_run)
    echo.say(render_plan(plan, config))
    return plan, config


def render_attempt(plan: AttemptPlan) -> str:
    """An attempt in one line. Pure."""
    tasks = f"{len(plan.shards)} tasks, {plan.tasks} at a time with {plan.connections} connections each, then "
    return (
        f"attempt  {plan.attempt:03d} on the {plan.scheduler} scheduler: {tasks if plan.shards else ''}the reduce job"
    )


def read_todo_of(collector: Collector) -> Todo:
    """What a new attempt of the run would have to do."""
    from pipeline.report.receipts import read_todo

    collector.book.refresh()
    return read_todo(collector.run, collector.index, collector.book)


def submit_todo(
    collector: Collector,
    echo: Echo,
    *,
    scheduler: str,
    assume_dead: bool,
    dry_run: bool,
) -> AttemptPlan | None:
    """Submit what is missing; None when nothing is, or at a dry run.

    Raises
    ------
    UsageError
        When an earlier attempt is, or may be, at work.
    """
    from pipeline.schedulers.attempt import check_idle, plan_attempt, submit_attempt
    from pipeline.schedulers.choose import choose_scheduler

    run = collector.run
    newest = collector.attempt()
    check_idle(run, newest, assume_dead=assume_dead)
    todo = read_todo_of(collector)
    for shard, why in todo.shards.items():
        if why.startswith("damaged") or (echo.verbose and newest is not None):
            echo.note(f"shard {shard:06d}: {why}")
    if not todo.shards and not todo.reduce:
        echo.say(f"{run.path}: nothing to do, all shards have good receipts and all archives are built")
        return None
    name, notice = choose_scheduler(scheduler)
    if notice:
        echo.note(notice)
    backend = collector.scheduler(name)
    number = newest.plan.attempt if newest else 0
    if dry_run:
        made = plan_attempt(
            list(todo.shards),
            run.read_config().limits,
            run=collector.record.name,
            attempt=number + 1,
            manifest_sha256=collector.record.manifest_sha256,
            scheduler=name,
            slots=backend.slots(),
            created="",
        )
        echo.say(f"run      {run.path}")
        echo.say(render_attempt(made))
        echo.say("dry run: nothing was submitted")
        return None
    plan = submit_attempt(run, backend, list(todo.shards), after=number)
    echo.say(f"run      {run.path}")
    echo.say(render_attempt(plan))
    echo.say(f"logs     {run.logs(plan.attempt)}")
    return plan


def wait_to_end(collector: Collector, echo: Echo, interrupts: Interrupts) -> None:
    """Wait with progress for the attempt just submitted, tell how it ended, and end the command as the reduce job did.

    Raises
    ------
    MedhaulError
        Of the class that has the reduce job's exit code; `InterruptedRunError` when it was cancelled or lost.
    """
    from pipeline.report.progress import choose_view
    from pipeline.report.render import render_status
    from pipeline.report.watch import wait_for

    have_rich = importlib.util.find_spec("rich") is not None
    view = choose_view(sys.stderr, echo.note, have_rich=have_rich and not echo.quiet)
    report, attempt, cancelled = wait_for(collector, view, echo.note, interrupts=interrupts)
    for line in render_status(report, everything=echo.verbose):
        echo.say(line)
    error = choose_outcome(report, attempt, cancelled=cancelled)
    if error is not None:
        raise error


def choose_outcome(report: StatusReport, attempt: Attempt | None, *, cancelled: bool) -> MedhaulError | None:
    """Choose the error that an ended attempt ends its command with; None when all is well. Pure."""
    resume = f"go on with: {render_command('medhaul', 'resume', report.run)}"
    failed = f"see {render_command('medhaul', 'failed', '--logs', report.run)}; then {resume}"
    if cancelled:
        return InterruptedRunError(f"{report.run}: cancelled", hint=resume)
    status = attempt.reduce_status() if attempt else None
    if status is None or report.reduce is None:
        return InterruptedRunError(f"{report.run}: was not submitted to its end", hint=resume)
    if status.state.value == "COMPLETED":
        if report.failed:
            return ItemsFailedError(f"{report.run}: {report.failed} items failed", hint=failed)
        return None
    message = f"{report.run}: reduce: {report.reduce.reason}"
    if status.exit_code is None or status.state.value != "FAILED":
        return InterruptedRunError(message, hint=failed)
    kinds = {kind.exit_code: kind for kind in MedhaulError.__subclasses__() if kind.__module__ == "pipeline.errors"}
    return kinds.get(status.exit_code, MedhaulError)(message, hint=failed)


def must_wait(scheduler: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the command must stay until the tasks end: a Slurm job takes local tasks down with it when it ends."""
    return scheduler == "local" and "SLURM_JOB_ID" in environ


def open_collector(path: Path) -> Collector:
    """Open a run for reading its state. Raises `UsageError` when `path` is no run."""
    from pipeline.report.status import Collector

    return Collector(RunDir.open(path))


def check_exists(path: Path) -> None:
    """Raise `UsageError` when there is neither a config file nor a run at `path`."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory", hint="name a config file or a run directory")
