"""`medhaul`: the commands, loaded when called, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

from pipeline import __version__
from pipeline.errors import MedhaulError

# name -> module and command; nothing is imported before it is asked for, since thousands of tasks start this way.
COMMANDS = {
    "plan": "pipeline.cli.plan:plan",
    "submit": "pipeline.cli.submit:submit",
    "run": "pipeline.cli.run:run",
    "task": "pipeline.cli.task:task",
    "reduce": "pipeline.cli.reduce:reduce",
    "status": "pipeline.cli.status:status",
    "failed": "pipeline.cli.failed:failed",
    "resume": "pipeline.cli.resume:resume",
    "cancel": "pipeline.cli.cancel:cancel",
    "throttle": "pipeline.cli.throttle:throttle",
    "verify": "pipeline.cli.verify:verify",
    "ls": "pipeline.cli.ls:ls",
    "extract": "pipeline.cli.extract:extract",
    "query": "pipeline.cli.query:query",
    "metadata": "pipeline.cli.metadata:metadata",
    "doctor": "pipeline.cli.doctor:doctor",
    "init": "pipeline.cli.init:init_folder",
    "demo": "pipeline.cli.demo:demo",
}
SHORT_HELP = {
    "plan": "Select items and write the manifest of a run.",
    "submit": "Plan (if need be) and hand a run to the scheduler.",
    "run": "Plan, submit, and wait with progress.",
    "task": "Do one shard: what an array task runs.",
    "reduce": "Join the parts into archives.",
    "status": "What is done, what is running, what is missing and why.",
    "failed": "List failed items and shards, with their logs.",
    "resume": "Submit what lacks a good receipt.",
    "cancel": "Stop everything of a run.",
    "throttle": "Change how many tasks of a run work at a time.",
    "verify": "Read archives fully and check every byte.",
    "ls": "List an archive's content from its index.",
    "extract": "Read items or files out of an archive.",
    "query": "Explore an archive site.",
    "metadata": "Tables of an archive site: one row an image.",
    "doctor": "Would a run work here: Slurm, scratch, storage, sites.",
    "init": "Write scripts, example configs and site profiles to a folder.",
    "demo": "A whole haul from an embedded archive site.",
}


class Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, SHORT_HELP[name]) for name in COMMANDS])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medhaul")
@click.option("-v", "--verbose", count=True, help="More on stderr; twice for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors on stderr.")
def cli(verbose: int, quiet: bool) -> None:
    """Haul public medical image collections onto a cluster.

    A planner writes a manifest, array tasks download, verify and compress one shard each, a reduce job joins the
    results into .tar.xz archives that are reproducible, verifiable, and readable one series at a time.

    \b
    Exit codes: 0 all items done, 3 finished with failed items, 64 usage, 69 site unavailable, 73 scratch or storage
    full, 75 interrupted (resume), 77 credentials refused, 78 bad config or damaged file.
    """
    level = logging.WARNING if quiet else (logging.DEBUG if verbose else logging.INFO)
    logging.basicConfig(
        stream=sys.stderr, level=level if verbose > 1 else logging.WARNING,
        format="%(asctime)s %(levelname).1s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S",
    )  # fmt: skip
    logging.getLogger("medhaul").setLevel(level)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; end the process with the exit code of docs/exit-codes.md."""
    sys.exit(run_cli(arguments))


def run_cli(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; errors are one line with what to do, never a traceback."""
    try:
        result: Any = cli(args=arguments, standalone_mode=False)
    except MedhaulError as error:
        click.echo(f"medhaul: {error}", err=True)
        if error.hint:
            click.echo(f"  -> {error.hint}", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        click.echo("medhaul: interrupted", err=True)
        return 75
    except click.ClickException as error:
        error.show()
        return 64
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone (`| head`), which click turns into a SystemExit, and no command of ours
        # exits by itself: say nothing, also not when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if logging.getLogger("medhaul").isEnabledFor(logging.DEBUG):
            raise
        click.echo(f"medhaul: a fault in medhaul: {type(error).__name__}: {error}", err=True)
        click.echo("  -> run it again with `medhaul -v ...` for the traceback, and report that", err=True)
        return 70
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
