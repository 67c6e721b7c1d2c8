"""A status report as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.report.explain import ShardState
from pipeline.report.status import OpenShard, RunningShard, StatusReport
from pipeline.units import render_duration, render_size

SHOWN_SHARDS = 8  # shard numbers named per reason, and running shards shown, unless all are asked for


def render_status(report: StatusReport, *, everything: bool = False) -> list[str]:
    """The whole of `medhaul status`. `everything`: a line for each shard instead of one for each reason."""
    lines = [f"run      {report.run}"]
    if report.attempt:
        lines.append(f"attempt  {report.attempt:03d} ({report.scheduler} scheduler), {report.alive}")
    else:
        lines.append("attempt  none: not submitted yet")
    counts = ", ".join(f"{count} {state}" for state, count in report.shards.items() if count)
    lines += [
        f"shards   {sum(report.shards.values())}: {counts}",
        f"items    {report.items}: {report.archived} archived, {report.failed} failed",
        f"bytes    {render_progress(report)}",
        f"reduce   {render_reduce(report)}",
    ]
    lines += [f"archive  {line}" for line in render_archives(report)]
    shown = report.running if everything else report.running[:SHOWN_SHARDS]
    lines += [f"  {render_running(view)}" for view in shown]
    if len(report.running) > len(shown):
        lines.append(f"  and {len(report.running) - len(shown)} more at work")
    lines += [f"  {line}" for line in render_waiting(report)]
    if everything:
        lines += [f"  shard {view.shard:06d}: {view.state}{_because(view)}" for view in report.open]
    else:
        lines += [f"  {line}" for line in render_open(report.open)]
    for cause, remedy in {view.cause: view.remedy for view in report.open if view.remedy}.items():
        lines.append(f"  -> {cause}: {remedy}")
    return lines


def render_waiting(report: StatusReport) -> list[str]:
    """One line for each reason why shards wait."""
    lines = []
    for view in report.waiting:
        stuck = "stuck" if view.stuck else "waiting"
        if not (view.reason or view.stuck):
            continue
        numbers = render_numbers(view.shards)
        lines.append(f"{view.count} {stuck}: {view.reason} (shard{'s' if view.count > 1 else ''} {numbers})")
        if view.remedy:
            lines.append(f"-> {view.remedy}")
    return lines


def render_progress(report: StatusReport) -> str:
    """Bytes done of all, the rate and the time left."""
    percent = 100 * report.done_bytes / report.bytes if report.bytes else 100.0
    text = f"{render_size(report.done_bytes)} of {render_size(report.bytes)} ({percent:.1f} %)"
    if report.rate > 0:
        text += f", {render_size(report.rate)}/s"
    if report.eta is not None:
        text += f", {render_duration(report.eta)} left"
    if report.packed_bytes:
        text += f"; {render_size(report.packed_bytes)} in finished parts"
    return text


def render_line(report: StatusReport) -> str:
    """One line about a run at work."""
    total = sum(report.shards.values())
    finished = report.shards[ShardState.DONE.value] + report.shards[ShardState.PARTIAL.value]
    trouble = report.shards[ShardState.DEAD.value] + report.shards[ShardState.UNKNOWN.value]
    text = f"shards {finished}/{total}, {len(report.running)} running"
    if trouble:
        text += f", {trouble} without receipt"
    if report.failed:
        text += f", {report.failed} items failed"
    text += f"; {render_progress(report)}"
    if report.reduce is not None and report.reduce.state == "RUNNING":
        text += "; reduce is joining"
    return text


def render_running(view: RunningShard) -> str:
    """One line about a shard at work."""
    text = (
        f"shard {view.shard:06d}: {view.phase}, {render_size(view.downloaded)} of {render_size(view.bytes)}"
        f" downloaded, {render_size(view.packed)} packed, {view.entries_done}/{view.entries} items"
    )
    if view.failed:
        text += f", {view.failed} failed"
    if view.rate > 0:
        text += f", {render_size(view.rate)}/s"
    if view.eta is not None:
        text += f", {render_duration(view.eta)} left"
    if view.note:
        text += f"; {view.note}"
    if view.quiet > 60:
        text += f"; silent for {render_duration(view.quiet)}"
    return text


def render_open(open_shards: Iterable[OpenShard]) -> list[str]:
    """One line for each state and reason, naming the first few shards."""
    groups: dict[tuple[str, str], list[int]] = {}
    for view in open_shards:
        if view.state != ShardState.NEW.value:
            groups.setdefault((view.state, view.reason), []).append(view.shard)
    return [
        f"{len(shards)} {state}: {reason} (shard{'s' if len(shards) > 1 else ''} {render_numbers(shards)})"
        for (state, reason), shards in groups.items()
    ]


def render_numbers(shards: Sequence[int]) -> str:
    """Shard numbers, at most a few of them."""
    named = ", ".join(str(shard) for shard in shards[:SHOWN_SHARDS])
    return named + (", ..." if len(shards) > SHOWN_SHARDS else "")


def render_reduce(report: StatusReport) -> str:
    """How the reduce job stands."""
    if report.reduce is None:
        return "not submitted" + ("; go on with `medhaul submit RUN --continue`" if report.attempt else "")
    if report.reduce.state == "PENDING":
        if report.reduce.stuck:
            return f"stuck: {report.reduce.reason}; {report.reduce.remedy or '`cancel` and `resume`'}"
        waits = report.reduce.reason in {"waiting", "waiting (for the tasks)"}  # the local scheduler gives no reason
        return "waiting for the tasks" if waits else report.reduce.reason
    return report.reduce.reason


def render_archives(report: StatusReport) -> list[str]:
    """One line for each archive that is there, and one for those that are not."""
    there = [view for view in report.archives if view.path is not None]
    lines = [
        f"{view.path} ({render_size(view.bytes or 0)}{', partial' if view.state == 'partial' else ''})"
        for view in there
    ]
    missing = len(report.archives) - len(there)
    if missing:
        lines.append(f"{missing} of {len(report.archives)} not built yet")
    return lines


def _because(view: OpenShard) -> str:
    return f": {view.reason}" if view.reason else ""
