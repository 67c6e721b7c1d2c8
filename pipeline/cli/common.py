"""What the commands share: arguments, where lines go, planning from a config file, submitting, and waiting."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from pipeline.errors import UsageError
from pipeline.rundir import RunDir

if TYPE_CHECKING:
    from pipeline.report.status import Collector

F = TypeVar("F", bound=Callable[..., Any])

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


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


def open_collector(path: Path, extra: Sequence[str] = ()) -> Collector:
    """Open a run for reading its state; `extra` are options of sbatch for what is submitted through it.

    Raises `UsageError` when `path` is no run.
    """
    from pipeline.report.status import Collector
    from pipeline.schedulers.choose import open_scheduler

    return Collector(RunDir.open(path), open_scheduler=lambda name, run: open_scheduler(name, run, extra))


def check_exists(path: Path) -> None:
    """Raise `UsageError` when there is neither a config file nor a run at `path`."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory", hint="name a config file or a run directory")
