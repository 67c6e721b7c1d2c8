"""What `submit`, `run` and `resume` share: their options, planning from a config, submitting, and waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from pipeline.cli.common import Echo, check_exists, follow_up, open_collector
from pipeline.cli.waiting import must_wait, wait_to_end
from pipeline.errors import UsageError
from pipeline.rundir import RunDir
from pipeline.settings import Route

if TYPE_CHECKING:
    from pipeline.plan.planner import Plan
    from pipeline.records import AttemptPlan
    from pipeline.report.receipts import Todo
    from pipeline.report.status import Collector
    from pipeline.schedulers.attempt import Attempt
    from pipeline.schedulers.base import Bounds, Scheduler
    from pipeline.settings import Config

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--scheduler",
        type=click.Choice(["auto", "slurm", "local"]),
        default="auto",
        show_default=True,
        envvar="MEDHAUL_SCHEDULER",
        help="Where the tasks run; auto: Slurm where there is an sbatch. Also by MEDHAUL_SCHEDULER.",
    ),
    click.option(
        "--sbatch",
        "extra",
        multiple=True,
        metavar="--NAME=VALUE",
        help="An option of sbatch for this submission only, such as --sbatch=--qos=high; may be repeated.",
    ),
    click.option(
        "--assume-dead",
        is_flag=True,
        help="Go on although an earlier attempt may still be at work, because you know that it is not.",
    ),
)


def submit_options(command: F) -> F:
    """Add the options that all commands have which submit."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a command that submits was asked for.

    Attributes
    ----------
    extra
        Options of sbatch.
    states
        Of the shards without a good receipt only those with such a cause; empty: all.
    go_on
        Submit the rest of an attempt whose submission was broken off.
    route
        By which way the series of TCIA come, instead of the config's.
    """

    scheduler: str = "auto"
    dry_run: bool = False
    wait: bool = False
    assume_dead: bool = False
    extra: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    go_on: bool = False
    route: Route | None = None


def submit_target(target: Path, echo: Echo, wishes: Wishes) -> None:
    """Do what `submit`, `run` and `resume` promise. Raises `MedhaulError`."""
    from pipeline.report.render import render_archives
    from pipeline.report.watch import Interrupts, wait_while_stopping
    from pipeline.schedulers.choose import choose_scheduler

    backend = choose_scheduler(wishes.scheduler)  # refuses an impossible choice before a long planning
    check_extra(wishes.extra)
    check_exists(target)
    path = target
    if (target.is_dir() or wishes.go_on) and wishes.route is not None:
        raise UsageError("--route is for planning, and a run is planned already", hint="name the config instead")
    if not target.is_dir() and wishes.go_on:  # nothing is planned again: living tasks read run.json
        path = planned_path(target)
    elif not target.is_dir():

        def check(run: Path) -> None:
            collector = open_collector(run)
            wait_while_stopping(collector, echo.note)
            check_free(collector, backend, wishes)

        plan, config = plan_file(
            target, echo, dry_run=wishes.dry_run, route=wishes.route, check=None if wishes.dry_run else check
        )
        path = Path(config.storage.root) / config.run.name if plan.run is None else plan.run.path
        if not (path / "run.json").exists():
            show_unplanned(path, plan, config, backend, wishes, echo)
            return
    collector = open_collector(path, wishes.extra)
    wait = wishes.wait
    if not wishes.dry_run:
        wait_while_stopping(collector, echo.note)
        if must_wait(backend) and not wait:
            echo.note("inside a Slurm job, whose end would take the tasks with it: waiting for them")
            wait = True
    interrupts = Interrupts()
    with interrupts if wait and not wishes.dry_run else contextlib.nullcontext():
        made = continue_todo(collector, echo, wishes) if wishes.go_on else submit_todo(collector, echo, wishes)
        if wishes.dry_run:
            return
        if made is None:
            for line in render_archives(collector.collect()[0]):
                echo.say(f"archive  {line}")
            return
        for line in follow_up(collector.run):
            echo.say(line)
        if wait:
            wait_to_end(collector, echo, interrupts)


def check_extra(extra: Collection[str]) -> None:
    """Raise `UsageError` for an option of sbatch that cannot be passed on."""
    from pipeline.config_slurm import KEYS, option_problem

    for option in extra:
        name = option.removeprefix("--").partition("=")[0]
        again = option.startswith("--") and "=" in option and name in KEYS and not name.startswith("mem-")
        if not again and (problem := option_problem(option)):
            raise UsageError(f"--sbatch={option}: {problem}", hint="such as: --sbatch=--partition=long")


def planned_path(path: Path) -> Path:
    """The run that a config file describes. Raises `ConfigError`; `UsageError` when there is none yet."""
    from pipeline.config import read_config

    config = read_config(path)
    return RunDir.open(Path(config.storage.root) / config.run.name).path


def plan_file(
    path: Path,
    echo: Echo,
    *,
    dry_run: bool,
    route: Route | None = None,
    check: Callable[[Path], None] | None = None,
) -> tuple[Plan, Config]:
    """Plan the run that a config file describes, and tell what is planned.

    A run that is there gets the config's new settings, which tasks read: `check` raises when it must not. Raises what
    the planner raises.
    """
    from pipeline.cli.plan import make_plan, render_plan, set_route
    from pipeline.config import read_config

    config = set_route(read_config(path), route)
    run = Path(config.storage.root) / config.run.name
    if check is not None and (run / "run.json").exists():
        check(run)
    plan = make_plan(config, dry_run=dry_run)
    echo.say(render_plan(plan, config))
    return plan, config


def nbia_share(source: str, config: Config, connections: int) -> int:
    """How many of a task's connections may be to NBIA; 0 where a run asks nothing of it. Pure."""
    from pipeline.cli.task import choose_share

    if source != "tcia" or config.sources.tcia.route == "idc":
        return 0
    return choose_share(connections, max(connections, config.limits.connections), config.sources.tcia.connections)


def render_attempt(plan: AttemptPlan, nbia: int = 0) -> str:
    """An attempt in one line; `nbia`: how many of a task's connections may be to NBIA. Pure."""
    to_nbia = f" ({nbia} of them to NBIA)" if 0 < nbia < plan.connections else ""
    tasks = f"{len(plan.shards)} tasks, {plan.tasks} at a time with {plan.connections} connections each{to_nbia}, then "
    return (
        f"attempt  {plan.attempt:03d} on the {plan.scheduler} scheduler: {tasks if plan.shards else ''}the reduce job"
    )


def show_commands(
    scheduler: Scheduler,
    path: Path,
    logs: Path,
    plan: AttemptPlan,
    echo: Echo,
    attempt: Attempt | None = None,
    *,
    nbia: int = 0,
) -> None:
    """Print exactly what would be submitted, in order: a new attempt, or what is missing of `attempt`.

    `nbia` is as of `render_attempt`.
    """
    from pipeline.schedulers.submission import array_specs, ended_jobs, reduce_spec

    echo.say(f"run      {path}")
    echo.say(render_attempt(plan, nbia))
    echo.say(f"logs     {logs}")
    known = {job.name: job.id for job in attempt.jobs} if attempt else {}
    over = ended_jobs(attempt.jobs, attempt.states) if attempt else set()
    specs = array_specs(path, logs, plan)
    places = [known.get(spec.name, f"ID{number}") for number, spec in enumerate(specs)]
    for number, (spec, array) in enumerate(zip(specs, plan.arrays, strict=True)):
        if spec.name in known:
            echo.say(f"array {number}: was submitted as {known[spec.name]}")
            continue
        after = [places[array.after]] if array.after >= 0 and specs[array.after].name not in over else []
        echo.say(
            f"array {number}: tasks {spec.offset} to {spec.offset + spec.length - 1}, MEDHAUL_OFFSET={spec.offset}"
        )
        echo.say(f"  {scheduler.describe(spec, after)}")
    open_places = [place for place in places if place.startswith("ID")]
    stand = f" {open_places[0]} to {open_places[-1]} stand for the ids of the arrays" if open_places else ""
    echo.say(f"reduce:{stand}")
    awaited = [place for place, spec in zip(places, specs, strict=True) if spec.name not in over]
    echo.say(f"  {scheduler.describe(reduce_spec(path, logs, plan), awaited)}")
    echo.say("dry run: nothing was submitted")


def show_unplanned(path: Path, plan: Plan, config: Config, backend: str, wishes: Wishes, echo: Echo) -> None:
    """Print what would be submitted for a run that is not planned yet."""
    from pipeline.schedulers.choose import open_scheduler
    from pipeline.schedulers.submission import draft_attempt

    scheduler = open_scheduler(backend, RunDir(path), wishes.extra, config)
    draft = draft_attempt(
        range(plan.shards), config, scheduler=scheduler, bounds=scheduler.bounds(), after=0,
        manifest_sha256=plan.manifest_sha256, extra=wishes.extra,
    )  # fmt: skip
    show_commands(
        scheduler, path, Path(config.storage.logs) / path.name / "001", draft, echo,
        nbia=nbia_share(plan.source, config, draft.connections),
    )  # fmt: skip


def read_todo_of(collector: Collector) -> Todo:
    """What a new attempt of the run would have to do."""
    from pipeline.report.receipts import read_todo

    collector.book.refresh()
    return read_todo(collector.run, collector.index, collector.book)


def check_free(collector: Collector, scheduler: str, wishes: Wishes) -> tuple[Attempt | None, Bounds | None]:
    """The newest attempt, as its own scheduler knows it; and what `scheduler` can take, if it was asked already.

    Raises
    ------
    UsageError
        When that attempt is, or may be, at work.
    """
    from pipeline.schedulers.attempt import check_idle

    newest = collector.attempt()
    bounds: Bounds | None = None
    if newest is not None and newest.plan.cluster and scheduler == newest.plan.scheduler:
        bounds = collector.scheduler(scheduler).bounds()
    check_idle(collector.run, newest, assume_dead=wishes.assume_dead, cluster=bounds.cluster if bounds else "")
    return newest, bounds


def submit_todo(collector: Collector, echo: Echo, wishes: Wishes) -> AttemptPlan | None:
    """Submit what is missing, as far as it is wanted; None when nothing is, or at a dry run.

    Raises
    ------
    UsageError
        When an earlier attempt is, or may be, at work.
    """
    from pipeline.schedulers.choose import choose_scheduler
    from pipeline.schedulers.submission import draft_attempt, submit_attempt

    run = collector.run
    backend = collector.scheduler(choose_scheduler(wishes.scheduler))
    newest, bounds = check_free(collector, backend.name, wishes)
    todo = read_todo_of(collector)
    for shard, why in todo.shards.items():
        if why.startswith("damaged") or (echo.verbose and newest is not None):
            echo.note(f"shard {shard:06d}: {why}")
    if not todo.shards and not todo.reduce:
        echo.say(f"{run.path}: nothing to do, all shards have good receipts and all archives are built")
        return None
    shards = choose_shards(collector, list(todo.shards), wishes.states)
    if wishes.states:
        echo.note(f"{len(shards)} of {len(todo.shards)} shards without a good receipt: {', '.join(wishes.states)}")
        if not shards and todo.shards:
            raise UsageError(
                f"{run.path}: no shard has such a cause: {', '.join(wishes.states)}", hint="`medhaul status` names them"
            )
    number = newest.plan.attempt if newest else 0
    bounds = bounds or backend.bounds()
    if wishes.dry_run:
        sha256, config = collector.record.manifest_sha256, run.read_config()
        made = draft_attempt(
            shards, config, scheduler=backend, bounds=bounds, after=number, manifest_sha256=sha256,
            extra=wishes.extra,
        )  # fmt: skip
        nbia = nbia_share(collector.index.source, config, made.connections)
        show_commands(backend, run.path, run.logs(made.attempt), made, echo, nbia=nbia)
        return None
    plan = submit_attempt(run, backend, shards, after=number, bounds=bounds, extra=wishes.extra)
    show_submitted(collector, plan, echo)
    return plan


def continue_todo(collector: Collector, echo: Echo, wishes: Wishes) -> AttemptPlan | None:
    """Submit the rest of the newest attempt, whose submission was broken off. Raises `UsageError`, `SchedulerError`.

    The options of sbatch that it was begun with hold on; those given now come after them.
    """
    from pipeline.schedulers.attempt import check_cluster
    from pipeline.schedulers.choose import open_scheduler
    from pipeline.schedulers.submission import check_continuable, continue_attempt

    attempt = collector.attempt()
    if attempt is None:
        raise UsageError(f"{collector.run.path}: nothing was submitted yet", hint="leave --continue out")
    plan = attempt.plan
    backend = open_scheduler(plan.scheduler, collector.run, [*plan.extra, *wishes.extra])
    check_cluster(collector.run, plan, backend.bounds().cluster)
    check_continuable(collector.run, attempt, assume_dead=wishes.assume_dead)
    if wishes.dry_run:
        nbia = nbia_share(collector.index.source, collector.run.read_config(), plan.connections)
        show_commands(backend, collector.run.path, collector.run.logs(plan.attempt), plan, echo, attempt, nbia=nbia)
        return None
    continue_attempt(collector.run, backend, attempt)
    show_submitted(collector, plan, echo)
    return plan


def show_submitted(collector: Collector, plan: AttemptPlan, echo: Echo) -> None:
    """Tell what was submitted."""
    echo.say(f"run      {collector.run.path}")
    echo.say(render_attempt(plan, nbia_share(collector.index.source, collector.run.read_config(), plan.connections)))
    ids = [f"{job.kind} {job.id}" for job in collector.run.read_jobs(plan.attempt)]
    echo.say(f"jobs     {', '.join(ids)}")
    echo.say(f"logs     {collector.run.logs(plan.attempt)}")


def choose_shards(collector: Collector, shards: list[int], states: Collection[str]) -> list[int]:
    """Choose of shards without a good receipt those whose cause is among `states`; all when there are none."""
    if not states:
        return shards
    causes = {view.shard: view.cause for view in collector.collect()[0].open}
    return [shard for shard in shards if causes.get(shard) in states]


def parse_states(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read `--states A,B`: words of `explain.Cause`. Raises `click.BadParameter`."""
    from pipeline.report.explain import Cause

    asked = tuple(word.strip().lower() for word in (value or "").split(",") if word.strip())
    for word in asked:
        if word not in set(Cause):
            raise click.BadParameter(f"{word!r} is none of {', '.join(Cause)}")
    return asked
