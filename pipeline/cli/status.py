"""`medhaul status`: where a run stands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from pipeline.cli.common import json_option, make_echo, open_collector, run_argument, verbosity_options
from pipeline.errors import UsageError


@click.command()
@run_argument
@json_option
@click.option("--watch", is_flag=True, help="Follow until the attempt is no longer at work.")
@verbosity_options
def status(run: Path, *, as_json: bool, watch: bool, quiet: bool, verbose: bool) -> None:
    """Say where a run stands: shards, items, bytes, speed, the reduce job and the archives.

    Receipts decide; the tasks' last words and the scheduler only explain why a receipt is missing. The JSON is
    `pipeline.report.status.StatusReport`.
    """
    from pipeline.report.progress import choose_view
    from pipeline.report.render import render_status
    from pipeline.report.watch import wait_for

    if as_json and watch:
        raise UsageError("--json and --watch exclude each other", hint="repeat --json as often as you like")
    echo = make_echo(quiet=quiet, verbose=verbose)
    collector = open_collector(run)
    if watch:
        view = choose_view(sys.stdout, echo.say, have_rich=importlib.util.find_spec("rich") is not None)
        report, _, _ = wait_for(collector, view, echo.note)
    else:
        report, _ = collector.collect()
    if as_json:
        echo.json(report)
        return
    for line in render_status(report, everything=verbose):
        echo.say(line)
