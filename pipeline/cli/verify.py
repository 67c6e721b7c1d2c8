"""`medhaul verify`: read archives fully and check every byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from pipeline.cli.common import Echo, render_command, verbosity_options
from pipeline.cli.progress import byte_progress, printable
from pipeline.errors import ConfigError, ItemsFailedError, MedhaulError
from pipeline.rundir import RunDir
from pipeline.units import render_size

if TYPE_CHECKING:
    from pipeline.archive.verify import VerifyResult

SHOWN = 20
SUMS = "SHA256SUMS"


class Wanted(NamedTuple):
    """A file to verify.

    `problem` says what is wrong with it already without reading it, `sha256` what its run's SHA256SUMS states;
    `is_there` whether there is anything to read, `is_archive` whether as an archive or only to be hashed.
    """

    path: str
    problem: str = ""
    sha256: str = ""
    is_there: bool = True
    is_archive: bool = True


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="RUN|ARCHIVE...")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, an object for each archive and each damaged table, a line."
)
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Blocks decoded at a time; 0: one a processor.")
@verbosity_options
def verify(what: tuple[str, ...], *, as_json: bool, workers: int, quiet: bool, verbose: bool) -> None:
    """Verify archives, or all archives of runs: read each once and check every byte.

    Of a run, every archive of its manifest must be there, with all items, and all files as SHA256SUMS states.

    Ends with 0 when all are fine, 3 when something is damaged, missing or partial (it is listed), 78 when an archive
    cannot be read at all; the others are verified all the same.
    """
    from pipeline.archive.verify import verify_archive

    echo = Echo(quiet=quiet, verbose=verbose)
    damaged: list[str] = []
    lacking: list[str] = []
    hints: list[str] = []
    unreadable: MedhaulError | None = None
    count = 0
    for each in what:
        run = RunDir.open(Path(each)) if Path(each).is_dir() else None
        before = len(lacking)
        for wanted in find_wanted(run) if run is not None else [Wanted(each)]:
            name = _name(wanted)
            count += wanted.is_archive
            if not wanted.is_archive or not wanted.is_there:
                problem = wanted.problem or check_file(Path(wanted.path), wanted.sha256)
                if problem:
                    lacking.append(name)
                    _say_problem(echo, name, problem, as_json=as_json)
                continue
            try:
                with byte_progress(f"verify {name}", quiet=quiet) as show:
                    result = verify_archive(wanted.path, workers=workers, on_progress=show)
            except ConfigError as error:
                unreadable = unreadable or error
                if as_json:
                    click.echo(msgspec.json.encode({"archive": name, "fine": False, "error": str(error)}))
                else:
                    echo.say(f"CANNOT BE READ: {error}")
                continue
            problem = wanted.problem
            if wanted.sha256 and result.sha256 != wanted.sha256:
                problem = f"SHA-256 is {result.sha256}, but {SUMS} states {wanted.sha256}"
            if not result.fine:
                damaged.append(name)
            elif problem:
                lacking.append(name)
            if as_json:
                whole = msgspec.to_builtins(result) | {"fine": result.fine and not problem, "error": problem}
                click.echo(msgspec.json.encode(whole))
                continue
            for line in render_result(result, everything=verbose):
                echo.say(line)
            if problem:
                _say_problem(echo, name, problem, as_json=False)
        if run is not None and len(lacking) > before:
            hints.append(
                f"{render_command('medhaul', 'resume', str(run.path))}   (it does what is missing, then reduce)"
            )
    if unreadable is not None:
        raise unreadable
    if damaged or lacking:
        said = [f"{len(damaged)} of {count} archives damaged: {', '.join(damaged)}"] if damaged else []
        said += [f"missing, partial or not as stated: {', '.join(lacking)}"] if lacking else []
        other = ["copy them again from another place, or haul the items listed anew"] if damaged else []
        raise ItemsFailedError("; ".join(said), hint="; ".join([*other, *hints]))


def _name(wanted: Wanted) -> str:
    from pipeline.archive.source import display_name

    return display_name(wanted.path)


def _say_problem(echo: Echo, name: str, problem: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"archive": name, "fine": False, "error": problem}))
    else:
        echo.say(printable(f"{name}: NOT COMPLETE: {problem}"))


def find_wanted(run: RunDir) -> Iterator[Wanted]:
    """Yield the archives of a run's manifest, there or not, then what else its SHA256SUMS lists.

    Raises
    ------
    ConfigError
        When the run's own files are damaged.
    """
    from pipeline.reduce.finished import archive_file, read_finished

    index = run.read_manifest_index()
    path = run.archives / SUMS
    sums, torn = read_sums(path)
    names = set()
    for entry in index.archives:
        archive = archive_file(run, entry.name)
        names.add(archive.name)
        if not archive.is_file():
            yield Wanted(str(archive), "missing", is_there=False)
            continue
        line = read_finished(run, entry.name, index.manifest_sha256)
        problem = ""
        if line is None:
            problem = "no index beside it that is whole and of this run: it was not finished, or was changed"
        elif line.state != "complete":
            problem = f"{line.state}: {line.failed} of {line.items} items of the manifest are not in it"
        elif archive.name not in sums:
            problem = f"{SUMS} does not list it"
        yield Wanted(str(archive), problem, sums.get(archive.name, ""))
    if torn:
        yield Wanted(str(path), torn, is_there=False, is_archive=False)
    for name, sha256 in sums.items():
        if name not in names:
            yield Wanted(str(run.archives / name), sha256=sha256, is_archive=False)


def read_sums(path: Path) -> tuple[dict[str, str], str]:
    """Read SHA256SUMS: SHA-256 by file name, and what is wrong with the file itself. Missing, it lists nothing."""
    try:
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return {}, ""
    lines = [(line, re.fullmatch(r"([0-9a-f]{64})  ([^/\0]+)", line)) for line in text.splitlines()]
    torn = next((f"line {line[:100]!r} is no checksum" for line, match in lines if match is None), "")
    return {match[2]: match[1] for _, match in lines if match is not None}, torn


def check_file(path: Path, sha256: str) -> str:
    """Compare a file with its checksum; say what is wrong, or nothing."""
    from pipeline.manifest import file_sha256

    try:
        found = file_sha256(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if found == sha256 else f"SHA-256 is {found}, but {SUMS} states {sha256}"


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
