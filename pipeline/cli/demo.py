"""`medhaul demo`: a whole haul from the embedded archive site, with nothing but this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from pipeline.cli.common import render_command


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("medhaul-demo"))
@click.pass_context
def demo(ctx: click.Context, folder: Path) -> None:
    """Plan, haul, join, list and extract demo data, from an embedded archive site to FOLDER (medhaul-demo).

    Uses the local scheduler and 127.0.0.1 only. Nothing outside FOLDER and scratch is written.
    """
    from pipeline.archive.reader import ArchiveReader
    from pipeline.atomic import storage_errors
    from pipeline.cli.extract import extract
    from pipeline.cli.ls import ls
    from pipeline.cli.run import run
    from pipeline.config import read_config
    from pipeline.demo.embed import stop_site
    from pipeline.reduce.finished import archive_file
    from pipeline.rundir import RunDir

    config = folder / "configs" / "demo.toml"
    with storage_errors(config):
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_bytes(resources.files("pipeline.demo").joinpath("demo.toml").read_bytes())
    settings = read_config(config)

    def step(*words: str) -> None:
        click.secho(f"\n$ {render_command('medhaul', *words)}", bold=True)

    try:
        step("run", str(config))
        ctx.invoke(run, config=config, scheduler="local")
    finally:
        stop_site(Path(settings.storage.root) / ".demo-site")
    run_dir = RunDir.open(Path(settings.storage.root) / settings.run.name)
    archives = [archive_file(run_dir, entry.name) for entry in run_dir.read_manifest_index().archives]
    for archive in archives:
        step("ls", str(archive))
        ctx.invoke(ls, archive=str(archive))
    with ArchiveReader(archives[0]) as reader:
        _, item, _ = next(iter(reader.items()))
    target = folder / "extracted"
    step("extract", str(archives[0]), "--item", item.id, str(target))
    ctx.invoke(extract, archive=str(archives[0]), destination=target, items=(item.id,))
    click.echo("\nThe archives, each with its index, tables and checksums beside it:")
    for archive in archives:
        click.echo(f"  {archive}")
    click.echo(f"The extracted series:\n  {target}")
