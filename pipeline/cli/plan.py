"""`medhaul plan`: select items, cut them into frames and shards, write the manifest."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline.errors import UsageError

DEMO = "demo"

if TYPE_CHECKING:
    from pipeline.plan.planner import Plan
    from pipeline.plan.source import PlanSource
    from pipeline.settings import Config, Route


route_option = click.option(
    "--route",
    type=click.Choice(["auto", "idc", "nbia"]),
    help="Where the series of TCIA come from, in place of sources.tcia.route.",
)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Select and cut, but write nothing.")
@route_option
@click.option(
    "--refresh",
    is_flag=True,
    help="Ask anew for what is kept. ISIC: pages of lists of images, else kept for 30 days. IDC: the index, if it is a"
    " URL, else kept for an hour. TCIA: always so.",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def plan(config: Path, *, dry_run: bool, route: Route | None, refresh: bool, as_json: bool) -> None:
    """Select items and write the manifest of a run.

    Planning the same config against the same index, or the same answers of the site, again finds the run that is there.
    A plan that uses answers of earlier days says so in a note.
    """
    from pipeline.config import read_config

    wanted = set_route(read_config(config), route)
    result = make_plan(wanted, dry_run=dry_run, refresh=refresh)
    if as_json:
        data = result._asdict() | {"run": str(result.run.path) if result.run else None}
        click.echo(msgspec.json.format(msgspec.json.encode(data), indent=1))
    else:
        click.echo(render_plan(result, wanted))


def set_route(config: Config, route: Route | None) -> Config:
    """The config with another route of TCIA's series; unchanged without one. Pure.

    Raises
    ------
    UsageError
        When the config selects from another source.
    """
    if route is None:
        return config
    if config.select.tcia is None:
        raise UsageError("--route is for TCIA, which the config does not select from", hint="leave --route out")
    tcia = msgspec.structs.replace(config.sources.tcia, route=route)
    return msgspec.structs.replace(config, sources=msgspec.structs.replace(config.sources, tcia=tcia))


def make_plan(
    config: Config,
    *,
    dry_run: bool = False,
    refresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Plan:
    """Plan a run, by default with progress on a terminal; `refresh`: from nothing that is kept.

    Raises what `plan_run` raises.
    """
    from pipeline.demo.embed import plan_demo
    from pipeline.plan.planner import plan_run

    with contextlib.ExitStack() as stack:
        settings = stack.enter_context(plan_demo(config, dry_run=dry_run))
        source = stack.enter_context(_open_source(config, settings, refresh=refresh))
        return plan_run(config, source, dry_run=dry_run, on_progress=on_progress or _progress())


@contextlib.contextmanager
def _open_source(config: Config, settings: Config, *, refresh: bool) -> Iterator[PlanSource]:
    """The source that a config selects from; `settings` is the same with the demo's addresses in it."""
    if settings.select.isic is None and settings.select.tcia is None:
        from pipeline.plan.idc import IdcPlanSource
        from pipeline.sources.idc_index import REMOTE, IdcIndex

        if refresh and settings.sources.idc.index.startswith(REMOTE):
            IdcIndex.open(settings.sources.idc, refresh=True).close()  # what is kept is the new one then
        yield IdcPlanSource(settings)
        return
    sources = config.sources
    url = sources.tcia.base_url if settings.select.isic is None else sources.isic.base_url
    with contextlib.ExitStack() as stack:
        named, cache = "", None
        if url == DEMO:  # its port is another each time, and so no name for what is kept
            named = DEMO
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medhaul-demo-")))
        if settings.select.isic is not None:
            from pipeline.plan.isic import IsicPlanSource

            listing = _progress("listing: {:,} images", every=2_000, plain=50_000)
            yield stack.enter_context(
                IsicPlanSource(settings, named_url=named, cache_dir=cache, refresh=refresh, on_progress=listing)
            )
        else:
            from pipeline.plan.tcia import TciaPlanSource

            yield stack.enter_context(TciaPlanSource(settings, named_url=named, cache_dir=cache))


def _progress(text: str = "planning: {:,} items", *, every: int = 20_000, plain: int = 0) -> Callable[[int], None]:
    """Say how far it is: on a terminal in one line, elsewhere a line for each `plain` more, if that is not 0."""
    terminal = sys.stderr.isatty()
    step = every if terminal else plain
    shown = 0

    def show(count: int) -> None:
        nonlocal shown
        if step and count - shown >= step:
            shown = count
            click.echo(f"\r{text.format(count)}" if terminal else text.format(count), err=True, nl=not terminal)

    return show


def render_plan(plan: Plan, config: Config) -> str:
    """The summary for people. Pure."""
    from pipeline.sizes import scratch_bounds
    from pipeline.units import render_size

    about, assumed = "", ""
    if plan.unknown_sizes:
        about, assumed = "about ", f"; {render_size(plan.assumed_bytes)} of it assumed, where no size is stated"
    lines = [
        f"source        {plan.source}, data release {plan.release}",
        f"items         {plan.items:,}" + (f" ({plan.unknown_sizes:,} of unstated size)" if plan.unknown_sizes else ""),
        f"files         {plan.files:,}",
        f"bytes         {about}{plan.bytes:,} ({render_size(plan.bytes)}{assumed})",
        "licences      "
        + "; ".join(
            f"{name or 'unstated'}: {n:,} items, {render_size(size)}" for name, (n, size) in plan.licences.items()
        ),
        f"shards        {plan.shards:,}, the largest of {render_size(plan.largest_shard)}",
        f"archives      {len(plan.archives):,}",
    ]
    shown = plan.archives[:20]
    width = max(len(archive.name) for archive in shown) + len(".tar.xz")
    lines += [
        f"  {archive.name + '.tar.xz':{width}}  {archive.items:>9,} items  {render_size(archive.bytes):>8} uncompressed"
        for archive in shown
    ]
    if len(plan.archives) > len(shown):
        lines.append(f"  ... and {len(plan.archives) - len(shown):,} more")
    least, most = scratch_bounds(config.task.scratch_bytes, plan.scratch_frame, plan.scratch_shard)
    lines.append(
        f"scratch       {about}up to {render_size(most)} a task, {config.limits.tasks} at a time; "
        f"at least {render_size(least)}, twice the largest frame"
    )
    lines += [f"note          {note}" for note in plan.notes]
    lines.append(f"manifest      SHA-256 {plan.manifest_sha256}")
    if plan.run is None:
        lines.append("dry run: nothing was written")
    else:
        lines.append(f"run           {plan.run.path}" + (" (was planned before; unchanged)" if plan.reused else ""))
    return "\n".join(lines)
