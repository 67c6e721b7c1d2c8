"""`medhaul extract`: items or files out of an archive, without unpacking the rest."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import Echo, verbosity_options
from pipeline.cli.ls import explain_folder
from pipeline.cli.progress import byte_progress, printable
from pipeline.errors import ItemsFailedError
from pipeline.units import render_size

SHOWN = 20


@click.command()
@click.argument("archive")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--item", "items", multiple=True, metavar="UID", help="Only this item; may be given again.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="GLOB",
    help="Only files whose path matches, or lies in a folder that does; * matches / too; may be given again.",
)
@click.option("--force", is_flag=True, help="Replace files in DEST that have other content.")
@click.option("--index", type=click.Path(path_type=Path), help="Read this index, not the archive's own.")
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Blocks decoded at a time; 0: one a processor.")
@verbosity_options
def extract(
    archive: str,
    destination: Path,
    *,
    items: tuple[str, ...],
    paths: tuple[str, ...],
    force: bool,
    index: Path | None,
    workers: int,
    quiet: bool,
    verbose: bool,
) -> None:
    """Extract items or files of ARCHIVE (a .tar.xz file, or an http(s) URL of one) into the folder DEST.

    Reads only the blocks that hold them, and checks every file's SHA-256. With --item and --path both must hold; with
    neither, all is extracted. Files that are in DEST already with the same bytes are kept, so an interrupted extract
    can be run again. Nothing is ever written outside DEST.
    """
    from pipeline.archive.destination import Destination
    from pipeline.archive.extract import Selection, choose_files, extract_files
    from pipeline.archive.reader import ArchiveReader

    if Path(archive).is_dir():
        raise explain_folder(Path(archive), "extract")
    echo = Echo(quiet=quiet, verbose=verbose)
    selection = Selection(frozenset(items), paths)
    counts = {"written": 0, "kept": 0, "failed": 0}
    sizes = dict(counts)
    failed: list[str] = []
    with ArchiveReader(archive, index, workers=workers) as reader:
        chosen = choose_files(reader, selection)
        with Destination(destination) as target, byte_progress(f"extract {reader.name}", quiet=quiet) as show:
            for outcome in extract_files(reader, selection, target, force=force):
                counts[outcome.state] += 1
                sizes[outcome.state] += outcome.size
                if verbose:
                    echo.say(f"{outcome.state}  {printable(outcome.path)}")
                if outcome.state == "failed" and len(failed) < SHOWN:
                    failed.append(printable(f"  {outcome.item}: {outcome.path}: {outcome.problem}"))
                show(sum(sizes.values()), chosen.bytes)
    said = f"wrote {counts['written']} of {chosen.files} files ({render_size(sizes['written'])}) to {destination}"
    echo.say(said + (f", kept {counts['kept']} that were there" if counts["kept"] else ""))
    if counts["failed"]:
        more = counts["failed"] - len(failed)
        lines = [*failed, *([f"  ... and {more} more"] if more else [])]
        raise ItemsFailedError(
            f"{reader.name}: {counts['failed']} files were not extracted:\n" + "\n".join(lines),
            hint="`medhaul verify` tells what is damaged; what was extracted is kept when you extract again",
        )
