"""`medhaul init`: the batch scripts, example configs and site profiles, written out of the installed package."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from pipeline.atomic import current_umask, storage_errors, write_atomic
from pipeline.cli.common import make_echo, verbosity_options
from pipeline.errors import StorageError, UsageError

README = "README.txt"
COMMANDS = (
    ("medhaul plan configs/small.toml --dry-run", "what it would be: items, bytes, licences, shards"),
    ("medhaul doctor configs/small.toml", "what would stop it here; --on-node asks a compute node too"),
    ("bash slurm/submit_array.sh configs/small.toml --dry-run", "what would be submitted"),
    ("bash slurm/submit_array.sh configs/small.toml", "plan, submit all tasks and the reduce job"),
    ("medhaul status runs/rider-pilot", "where it stands; --watch to follow"),
)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Overwrite files of these names that differ.")
@verbosity_options
def init_folder(folder: Path, *, force: bool, quiet: bool, verbose: bool) -> None:
    """Write the batch scripts, example configs and site profiles to DIR, and a README.txt with the next commands.

    Files that are there and differ are kept, and then nothing is written; --force overwrites them.
    """
    echo = make_echo(quiet=quiet, verbose=verbose)
    try:
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - as the user knows it, whatever links are in it
        commands = render_commands(folder, find_binaries())
        files = {**package_files(), README: os.fsencode(render_readme(commands))}
        written = write_files(folder, files, force=force)
    except OSError as error:  # those of kinds that storage_errors lets pass
        raise StorageError(f"{folder}: {error.strerror}", hint="choose another folder") from error
    for name in written:
        if echo.verbose:
            echo.note(f"wrote    {folder / name}")
    echo.say(f"{folder}: {len(written)} files written, {len(files) - len(written)} were there")
    for line in commands:
        echo.say(f"  {line}")


def package_files() -> dict[str, bytes]:
    """Return what the package brings: path below DIR -> content."""
    package = resources.files("pipeline")
    found = {f"slurm/{name}": data for name, data in _read_tree(package.joinpath("slurm_scripts"), ".sh")}
    return found | {f"configs/{name}": data for name, data in _read_tree(package.joinpath("configs"), ".toml")}


def _read_tree(folder: Traversable, ending: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", data) for name, data in _read_tree(entry, ending))
        elif entry.name.endswith(ending):
            yield entry.name, entry.read_bytes()


def find_binaries() -> Path:
    """Return the folder of the `medhaul` that runs now, or would be installed."""
    if Path(sys.argv[0]).name == "medhaul":
        return Path(os.path.abspath(sys.argv[0])).parent  # noqa: PTH100 - a link in a virtual environment is meant
    return Path(shutil.which("medhaul") or Path(sysconfig.get_path("scripts")) / "medhaul").parent


def render_commands(folder: Path, binaries: Path) -> list[str]:
    """Render the next commands, each with what it is for; they can be pasted into a shell as they are. Pure."""
    lines = [
        f"cd {shlex.quote(str(folder))}",
        f'export PATH={shlex.quote(str(binaries))}:"$PATH"  # so that `medhaul` is found',
    ]
    return lines + [f"{command:<57} # {what}" for command, what in COMMANDS]


def render_readme(commands: list[str]) -> str:
    """Render README.txt. Pure."""
    text = """\
Written by `medhaul init`.

slurm/          batch scripts: submit_array.sh is for you, the others are started by it
configs/        demo.toml needs no network, small.toml is a few GB, large.toml shows filters, reference.toml all options
configs/sites/  profiles of clusters: copy the one like yours, change what its comments say, and name it in a config
                above the first table:   profile = "sites/NAME.toml"

Next:

{commands}

Where login nodes are not for planning, the same as a job, in place of the `bash` line (with the options of sbatch that
your site asks for; those in the config are for the jobs that it submits):

sbatch slurm/submit_array.sh configs/small.toml

Archives and logs go to runs/ and logs/ here, unless [storage] of the config says else. On a cluster that must be on
storage that all nodes share.

Where compute nodes do not find `medhaul` on the PATH of the shell that submits, set MEDHAUL_ENV to the absolute path of
a file that makes it available; the scripts source it first. It may load modules, activate a virtual environment, or put
a wrapper of a container on PATH:

export MEDHAUL_ENV=/path/to/medhaul-env.sh
"""
    return text.format(commands="\n".join(commands))


def write_files(folder: Path, files: Mapping[str, bytes], *, force: bool) -> list[str]:
    """Write files (path below `folder` -> content), scripts executable, and return the names of those written.

    Those that are there already with that content stay as they are.

    Raises
    ------
    UsageError
        When files differ from what is there, and not `force`; nothing was written.
    StorageError
        When the folder cannot be read or written.
    """
    states = {name: _compare(folder / name, data) for name, data in files.items()}
    differing = [name for name, same in states.items() if same is False]
    if differing and not force:
        raise UsageError(
            f"{folder}: there with other content: {', '.join(differing)}; nothing was written",
            hint="choose another folder, move them away, or overwrite them with --force",
        )
    written = [name for name, same in states.items() if not same]
    for name in written:
        write_atomic(folder / name, files[name])
    for name in files:
        if name.endswith(".sh"):
            _make_executable(folder / name)
    return written


def _compare(path: Path, data: bytes) -> bool | None:
    """Say whether a file has this content; None when there is nothing of its name."""
    with storage_errors(path):
        try:
            there = path.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(there.st_mode):
            if not path.exists():
                return False
            there = path.stat()
        return stat.S_ISREG(there.st_mode) and there.st_size == len(data) and path.read_bytes() == data


def _make_executable(path: Path) -> None:
    with storage_errors(path):
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | (0o111 & ~current_umask())
        if mode != wanted:
            path.chmod(wanted)
