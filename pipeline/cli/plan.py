"""`medhaul plan`: select items, cut them into frames and shards, write the manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from pipeline.plan.planner import Plan
    from pipeline.settings import Config


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Select and cut, but write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def plan(config: Path, dry_run: bool, as_json: bool) -> None:
    """Select items and write the manifest of a run.

    Planning the same config against the same index again finds the run that is there.
    """
    from pipeline.config import read_config

    result = make_plan(read_config(config), dry_run=dry_run)
    if as_json:
        data = result._asdict() | {"run": str(result.run.path) if result.run else None}
        click.echo(msgspec.json.format(msgspec.json.encode(data), indent=1))
    else:
        click.echo(render_plan(result, read_config(config)))


def make_plan(config: Config, *, dry_run: bool = False, on_progress: Callable[[int], None] | None = None) -> Plan:
    """Plan a run, by default with progress on a terminal. Raises what `plan_run` raises."""
    from pipeline.demo.embed import plan_demo
    from pipeline.plan.idc import IdcPlanSource
    from pipeline.plan.planner import plan_run

    with plan_demo(config, dry_run=dry_run) as settings:
        return plan_run(config, IdcPlanSource(settings), dry_run=dry_run, on_progress=on_progress or _progress())


def _progress() -> Callable[[int], None]:
    terminal = sys.stderr.isatty()
    shown = 0

    def show(count: int) -> None:
        nonlocal shown
        if terminal and count - shown >= 20_000:
            shown = count
            click.echo(f"\rplanning: {count:,} items", err=True, nl=False)

    return show


def render_plan(plan: Plan, config: Config) -> str:
    """The summary for people. Pure."""
    from pipeline.units import render_size

    lines = [
        f"source        {plan.source}, data release {plan.release}",
        f"items         {plan.items:,}" + (f" ({plan.unknown_sizes:,} of unstated size)" if plan.unknown_sizes else ""),
        f"files         {plan.files:,}",
        f"bytes         {plan.bytes:,} ({render_size(plan.bytes)})",
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
    scratch = max(plan.largest_frame, min(config.task.scratch_bytes, plan.largest_shard))
    lines.append(
        f"scratch       up to {render_size(scratch)} a task, {config.limits.tasks} at a time; "
        f"at least {render_size(plan.largest_frame)} for the largest frame"
    )
    lines.append(f"manifest      SHA-256 {plan.manifest_sha256}")
    if plan.run is None:
        lines.append("dry run: nothing was written")
    else:
        lines.append(f"run           {plan.run.path}" + (" (was planned before; unchanged)" if plan.reused else ""))
    return "\n".join(lines)
