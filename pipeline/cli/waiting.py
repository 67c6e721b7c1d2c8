"""Waiting in the foreground for an attempt, and the exit code that a command ends with when it has ended."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.cli.common import Echo, render_command
from pipeline.errors import InterruptedRunError, ItemsFailedError, MedhaulError

if TYPE_CHECKING:
    from pipeline.report.status import Collector, StatusReport
    from pipeline.report.watch import Interrupts
    from pipeline.schedulers.attempt import Attempt


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
