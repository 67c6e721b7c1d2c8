"""`medhaul failed`: what went wrong, and the logs that say why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import json_option, make_echo, open_collector, run_argument, verbosity_options
from pipeline.cli.progress import printable
from pipeline.rundir import RunDir

if TYPE_CHECKING:
    from pipeline.cli.common import Echo
    from pipeline.report.failed import FailedLine
    from pipeline.report.status import OpenShard

SHOWN_TASKS = 20


@click.command()
@run_argument
@click.option("--logs", is_flag=True, help="Show the ends of the logs that matter, and the matching detail records.")
@json_option
@verbosity_options
def failed(run: Path, *, logs: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List failed items (id, path, reason, message) and shards without a good receipt.

    The JSON is `pipeline.report.failed.FailedReport`.
    """
    from pipeline.report.failed import make_failed, read_recorded, render_failed

    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    status, _ = collector.collect()
    report = make_failed(status, collector.book.receipts, read_recorded(status))
    if as_json:
        echo.json(report)
        return
    for line in render_failed(report):
        echo.say(printable(line))
    if not report.items and not report.shards:
        echo.note(f"{collector.run.path}: no failed items, no dead shards")
    if logs:
        _show_logs(collector.run, echo, report.items, report.shards)


def _show_logs(run: RunDir, echo: Echo, items: list[FailedLine], shards: list[OpenShard]) -> None:
    from pipeline.report.failed import read_logs

    tasks: dict[tuple[int, str], list[str]] = {}
    for item in items:
        if not item.job:
            continue
        tasks.setdefault((item.attempt, item.job), []).append(item.id)
    for view in shards:
        if view.job:
            tasks.setdefault((view.attempt, view.job), [])
    shown = list(tasks.items()) if echo.verbose else list(tasks.items())[:SHOWN_TASKS]
    for (number, job), words in shown:
        for line in read_logs(run.logs(number), job, words):
            echo.say(printable(line))
    if len(tasks) > len(shown):
        echo.note(f"{len(tasks) - len(shown)} more tasks; -v shows them all")
