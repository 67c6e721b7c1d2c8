"""`medhaul submit`: plan if need be, submit what is missing, and say how to go on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from pipeline.cli.common import (
    Echo,
    assume_dead_option,
    check_exists,
    follow_up,
    make_echo,
    must_wait,
    open_collector,
    plan_file,
    scheduler_option,
    submit_todo,
    verbosity_options,
    wait_to_end,
)


@click.command()
@click.argument("target", metavar="CONFIG|RUN", type=click.Path(path_type=Path))
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Say what would be planned and submitted; submit nothing.")
@click.option("--wait", is_flag=True, help="Wait with progress; the exit code is the reduce job's.")
@assume_dead_option
@verbosity_options
def submit(
    target: Path, scheduler: str, *, dry_run: bool, wait: bool, assume_dead: bool, quiet: bool, verbose: bool
) -> None:
    """Plan the run of a config file, or take a run directory, and submit its tasks and the reduce job.

    Only shards without a good receipt are submitted. Refused while an earlier attempt is at work.
    """
    submit_target(
        target,
        make_echo(quiet=quiet, verbose=verbose),
        scheduler=scheduler,
        dry_run=dry_run,
        wait=wait,
        assume_dead=assume_dead,
    )


def submit_target(target: Path, echo: Echo, *, scheduler: str, dry_run: bool, wait: bool, assume_dead: bool) -> None:
    """Do what `submit` and `run` promise. Raises `MedhaulError`."""
    from pipeline.report.render import render_archives
    from pipeline.report.watch import Interrupts, wait_while_stopping
    from pipeline.schedulers.choose import choose_scheduler

    backend, _ = choose_scheduler(scheduler)  # refuses an impossible choice before a long planning
    check_exists(target)
    path = target
    if not target.is_dir():
        plan, config = plan_file(target, echo, dry_run=dry_run)
        if plan.run is None:
            path = Path(config.storage.root) / config.run.name
            if not (path / "run.json").exists():
                echo.say("dry run: nothing was written or submitted")
                return
        else:
            path = plan.run.path
    collector = open_collector(path)
    if dry_run:
        submit_todo(collector, echo, scheduler=scheduler, assume_dead=assume_dead, dry_run=True)
        return
    wait_while_stopping(collector, echo.note)
    if must_wait(backend) and not wait:
        echo.note("inside a Slurm job, whose end would take the tasks with it: waiting for them")
        wait = True
    interrupts = Interrupts()
    with interrupts if wait else contextlib.nullcontext():
        made = submit_todo(collector, echo, scheduler=scheduler, assume_dead=assume_dead, dry_run=False)
        if made is None:
            for line in render_archives(collector.collect()[0]):
                echo.say(f"archive  {line}")
            return
        for line in follow_up(collector.run):
            echo.say(line)
        if wait:
            wait_to_end(collector, echo, interrupts)
