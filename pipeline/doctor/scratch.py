"""Node-local scratch: the places a task would try, in its order, and whether the run's frames fit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipeline.doctor.bounded import run_bounded
from pipeline.doctor.mounts import describe_kind, find_mount
from pipeline.doctor.records import STORAGE, Finding, Suggestion, failure, good, warning
from pipeline.doctor.storage import read_mountinfo
from pipeline.errors import ConfigError
from pipeline.settings import Config, Task
from pipeline.sizes import scratch_bounds
from pipeline.task.resources import MEMORY_KINDS, SHARED_KINDS, scratch_candidates
from pipeline.units import render_size

GROUP = "scratch"
SECONDS = 15.0
# Where clusters keep node-local disks that no variable names; only looked at when nothing else can be used.
OTHER_PLACES = ("/local_scratch", "/localscratch", "/scratch/local", "/lscratch", "/local", "/scratch", "/var/tmp")  # noqa: S108


class ScratchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A place for scratch. `name` says who names it; `problem` why it cannot be written; `free` is bytes."""

    name: str
    path: str
    problem: str = ""
    kind: str = ""
    free: int = 0


class RunNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What a planned run asks for, in bytes: its largest frame and shard on scratch, all of it on shared storage.

    And how many shards it has. On scratch there are zips beside the images.
    """

    shards: int
    largest_frame: int
    largest_shard: int
    total: int


def probe_scratch(config: Config, environ: Mapping[str, str], *, seconds: float = SECONDS) -> list[ScratchFacts]:
    """Look at the places a task on this machine would try, best first."""
    configured = bool(config.task.scratch)
    candidates = scratch_candidates(config.task.scratch, environ)
    return [_probe(name, path, seconds, make=configured) for name, path in candidates]


def probe_others(known: Sequence[ScratchFacts], places: Sequence[str] = OTHER_PLACES) -> list[ScratchFacts]:
    """Look at usual places beside `known`, which nothing names."""
    tried = {facts.path for facts in known}
    return [_probe("usual place", place, SECONDS, make=False) for place in places if place not in tried]


def _probe(name: str, path: str, seconds: float, *, make: bool) -> ScratchFacts:
    try:
        return run_bounded(lambda: _look(name, Path(path), make=make), seconds)
    except TimeoutError as error:
        return ScratchFacts(name=name, path=path, problem=str(error))
    except OSError as error:
        return ScratchFacts(name=name, path=path, problem=f"not writable: {error.strerror or error}")
    except RuntimeError as error:  # a loop of symbolic links, in older Pythons
        return ScratchFacts(name=name, path=path, problem=str(error))


def _look(name: str, path: Path, *, make: bool) -> ScratchFacts:
    place = path.resolve()
    if make:  # a task makes the configured folder
        while not place.exists() and place != place.parent:
            place = place.parent
    if not place.is_dir():
        return ScratchFacts(name=name, path=str(path), problem="does not exist")
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(os.urandom(4096))
        file.flush()
    kind = find_mount(place, read_mountinfo()).kind
    return ScratchFacts(name=name, path=str(path), kind=kind, free=shutil.disk_usage(place).free)


def read_needs(config: Config) -> RunNeeds | None:
    """What the run of a config asks for, from its manifest; None while it is not planned. Raises `ConfigError`."""
    from pipeline.manifest import Manifest
    from pipeline.rundir import RunDir
    from pipeline.sizes import entry_bytes

    run = RunDir(Path(config.storage.root) / config.run.name)
    try:
        if not run.run_json.is_file():
            return None
    except OSError as error:
        raise ConfigError(f"{run.run_json}: {error.strerror}", hint="check the folder's rights and mount") from None
    manifest = Manifest(run)
    frames: dict[int, int] = {}
    shards = [0] * len(manifest.shards)
    for shard, entry in manifest.all_entries():
        planned = entry_bytes(entry)
        frames[entry.frame] = frames.get(entry.frame, 0) + planned
        shards[shard] += planned
    return RunNeeds(
        shards=len(manifest.shards),
        largest_frame=max(frames.values(), default=0),
        largest_shard=max(shards, default=0),
        total=sum(shard.bytes for shard in manifest.shards),
    )


def scratch_wanted(task: Task, needs: RunNeeds | None) -> tuple[int, int]:
    """Bytes of scratch without which a task does not start, and those that it uses at most. Pure."""
    if needs is None:
        return 1, task.scratch_bytes
    return scratch_bounds(task.scratch_bytes, needs.largest_frame, needs.largest_shard)


def scratch_problem(facts: ScratchFacts, least: int, *, allow_shared: bool) -> str:
    """Say why a task would pass a place by, by the rules of `find_scratch`; empty when it would take it. Pure."""
    if facts.problem:
        return facts.problem
    if facts.kind in SHARED_KINDS | MEMORY_KINDS and not allow_shared:
        return f"{describe_kind(facts.kind)} (task.allow_shared_scratch = true would allow it)"
    return "" if facts.free >= least else f"{render_size(facts.free)} free, {render_size(least)} needed"


def classify_scratch(
    places: Sequence[ScratchFacts], task: Task, needs: RunNeeds | None, *, elsewhere: bool
) -> list[Finding]:
    """Judge the places in order: the first usable one is taken. `elsewhere`: tasks run on other machines. Pure."""
    least, most = scratch_wanted(task, needs)
    found = []
    taken = False
    for facts in places:
        problem = scratch_problem(facts, least, allow_shared=task.allow_shared_scratch)
        text = facts.path + ("" if facts.problem else f", {describe_kind(facts.kind)}, {render_size(facts.free)} free")
        if problem:
            found.append(good(GROUP, facts.name, f"{facts.path}: not usable: {problem}"))
        elif taken:
            found.append(good(GROUP, facts.name, f"{text}: usable"))
        else:
            taken = True
            found.append(_classify_taken(facts, text, most, needs, elsewhere=elsewhere))
    if not taken:
        hint = "set task.scratch to a node-local folder"
        if elsewhere:
            text = "none usable here; what the nodes have is another matter"
            found.append(warning(GROUP, "scratch", text, f"`medhaul doctor CONFIG --on-node` finds out; or {hint}"))
        else:
            found.append(failure(GROUP, "scratch", f"none usable: {_reasons(places, least, task)}", hint, STORAGE))
    return found


def _classify_taken(facts: ScratchFacts, text: str, most: int, needs: RunNeeds | None, *, elsewhere: bool) -> Finding:
    text += ": usable, a task here takes it"
    if needs is not None:
        text += f"; the largest frame is {render_size(needs.largest_frame)}"
    if facts.free >= most or elsewhere:
        return good(GROUP, facts.name, text)
    hint = "lower task.scratch_bytes, or it may run full; several tasks on one node share it"
    return warning(GROUP, facts.name, f"{text}, which may use up to {render_size(most)}", hint)


def _reasons(places: Sequence[ScratchFacts], least: int, task: Task) -> str:
    return "; ".join(
        f"{facts.path} ({facts.name}): {scratch_problem(facts, least, allow_shared=task.allow_shared_scratch)}"
        for facts in places
    )


def suggest_scratch(
    places: Sequence[ScratchFacts], others: Sequence[ScratchFacts], task: Task, needs: RunNeeds | None
) -> list[Suggestion]:
    """Config lines that would help scratch; none when all is well. Pure."""
    least, most = scratch_wanted(task, needs)
    usable = [facts for facts in places if not scratch_problem(facts, least, allow_shared=task.allow_shared_scratch)]
    made = []
    if not usable:
        usable = [facts for facts in others if not scratch_problem(facts, least, allow_shared=False)]
        usable.sort(key=lambda facts: facts.free, reverse=True)
        usable = [facts for facts in usable if facts.path.isprintable()]
        if not usable:
            return []
        why = f"{render_size(usable[0].free)} free there, and no place that a variable names can be used"
        made.append(Suggestion(table="task", key="scratch", value=toml_text(usable[0].path), why=why))
    free = usable[0].free
    room = free * 8 // 10 // 10**9 * 10**9 or free * 8 // 10
    if free < most and room >= max(1, least):
        why = f"{render_size(free)} are free in {usable[0].path}"
        value = toml_text(f"{room // 10**9} GB") if room >= 10**9 else str(room)
        made.append(Suggestion(table="task", key="scratch_bytes", value=value, why=why))
    return made


def toml_text(text: str) -> str:
    """A printable text as a TOML basic string. Pure."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
