"""`medhaul doctor`: would a run work here, on this machine and on the nodes of its cluster."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import click

from pipeline.cli.common import json_option, make_echo, verbosity_options
from pipeline.errors import UsageError


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--on-node", is_flag=True, help="Also look at a compute node, by one small job.")
@click.option("--timeout", default="10 min", show_default=True, help="With --on-node: how long to wait for that job.")
@click.option("--here", is_flag=True, hidden=True, help="This is that job: submit nothing.")
@json_option
@verbosity_options
def doctor(
    config: Path | None, *, on_node: bool, timeout: str, here: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Say whether a run would work here: Slurm, scratch, storage, proxies, sites, credentials files, this machine.

    Without CONFIG it checks what needs none, with default settings. Nothing is submitted, except one small job with
    --on-node, and nothing is left behind. It ends with a verdict and with lines for the config that would help. The
    JSON is `pipeline.doctor.records.DoctorReport`.

    \b
    Exit codes: 0 usable (also with warnings), 69 a site or Slurm cannot be reached, 73 storage or scratch unusable,
    77 a credentials file that others can read, 78 bad config; of several the one that comes last here.
    """
    from pipeline.doctor.examine import examine, examine_node, report_on
    from pipeline.doctor.records import choose_error
    from pipeline.doctor.render import render_report
    from pipeline.process import signal_handlers
    from pipeline.units import parse_duration

    echo = make_echo(quiet=quiet, verbose=verbose)
    if on_node and (config is None or here):
        raise UsageError("--on-node needs a CONFIG", hint="medhaul doctor CONFIG --on-node")
    try:
        seconds = parse_duration(int(timeout) if timeout.isdecimal() else timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
    if on_node and shutil.which("sbatch") is None:
        raise UsageError("--on-node: there is no Slurm here (no sbatch on PATH)", hint="run it on a login node")
    seen = examine(config, os.environ, here=here)
    node = None
    if on_node and config is not None and seen.given and seen.slurm.limits is not None:
        with signal_handlers(dict.fromkeys((signal.SIGTERM, signal.SIGHUP), _interrupt)):
            node = examine_node(seen, config, os.environ, timeout=seconds, note=echo.note)
    report = report_on(seen, node)
    if as_json:
        echo.json(report)
    else:
        for line in render_report(report):
            echo.say(line)
    problem = choose_error(report)
    if problem is not None:
        raise problem


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - the signature of a handler
    """End as Ctrl-C does, so that the job is ended and its folder removed."""
    raise KeyboardInterrupt
