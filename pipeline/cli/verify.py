"""`medhaul verify`: read archives fully and check every byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline.cli.common import Echo, verbosity_options
from pipeline.cli.progress import byte_progress, printable
from pipeline.errors import ConfigError, ItemsFailedError, MedhaulError, UsageError
from pipeline.rundir import RunDir
from pipeline.units import render_size

if TYPE_CHECKING:
    from pipeline.archive.verify import VerifyResult

SHOWN = 20


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="RUN|ARCHIVE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object for each archive, for programs.")
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Blocks decoded at a time; 0: one a processor.")
@verbosity_options
def verify(what: tuple[str, ...], *, as_json: bool, workers: int, quiet: bool, verbose: bool) -> None:
    """Verify archives, or all archives of runs: read each once and check every byte.

    Ends with 0 when all are fine, 3 when items are damaged (they are listed), 78 when an archive cannot be read at
    all; the others are verified all the same.
    """
    from pipeline.archive.source import display_name
    from pipeline.archive.verify import verify_archive

    echo = Echo(quiet=quiet, verbose=verbose)
    damaged: list[str] = []
    unreadable: MedhaulError | None = None
    archives = [archive for each in what for archive in find_archives(each)]
    for archive in archives:
        name = display_name(archive)
        try:
            with byte_progress(f"verify {name}", quiet=quiet) as show:
                result = verify_archive(archive, workers=workers, on_progress=show)
        except ConfigError as error:
            unreadable = unreadable or error
            if as_json:
                click.echo(msgspec.json.encode({"archive": name, "fine": False, "error": str(error)}))
            else:
                echo.say(f"CANNOT BE READ: {error}")
            continue
        if not result.fine:
            damaged.append(name)
        if as_json:
            click.echo(msgspec.json.encode(result))
        else:
            for line in render_result(result, everything=verbose):
                echo.say(line)
    if unreadable is not None:
        raise unreadable
    if damaged:
        raise ItemsFailedError(
            f"{len(damaged)} of {len(archives)} archives damaged: {', '.join(damaged)}",
            hint="copy them again from another place, or haul the items listed anew",
        )


def find_archives(what: str) -> list[str]:
    """The archives that an argument names: itself, or those of a run.

    Raises
    ------
    UsageError
        When there is no such file or run, or the run has no archive yet.
    """
    path = Path(what)
    if not path.is_dir():
        return [what]
    run = RunDir.open(path)
    found = sorted(str(each) for each in run.archives.glob("*.tar.xz")) if run.archives.is_dir() else []
    if not found:
        raise UsageError(f"{what}: the run has no archive yet", hint=f"see `medhaul status {what}`")
    return found


def render_result(result: VerifyResult, *, everything: bool = False) -> list[str]:
    """What was found, in a few lines; `everything` lists all problems. Pure."""
    archived = result.items - result.failed
    counts = f"{archived} items, {result.files} files, {render_size(result.bytes)} in {render_size(result.size)}"
    failed = f"; {result.failed} items of the manifest are not in it" if result.failed else ""
    if result.fine:
        beside = "" if result.index else ", no index beside it"
        return [f"{result.archive}: fine: {counts}{failed}{beside}, SHA-256 {result.sha256}"]
    items = {problem.item for problem in result.problems if problem.item}
    lines = [f"{result.archive}: DAMAGED: {len(items)} of {counts}{failed}"]
    shown = result.problems if everything else result.problems[:SHOWN]
    for problem in shown:
        where = f"{problem.item}: {problem.path}: " if problem.item else ""
        lines.append(printable(f"  {where}{problem.what}"))
    more = len(result.problems) - len(shown) + result.more
    if more:
        lines.append(f"  ... and {more} more" + ("" if everything else "; -v lists them"))
    return lines
