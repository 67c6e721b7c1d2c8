"""`medhaul task`: do one shard. What an array task runs, and what a person runs to look at one shard."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import (
    InterruptedRunError,
    ItemsFailedError,
    MedhaulError,
    StorageError,
    TimeLimitError,
    UsageError,
)

if TYPE_CHECKING:
    from pipeline.records import AttemptPlan, Receipt, Throttle
    from pipeline.rundir import RunDir
    from pipeline.settings import Config
    from pipeline.task.shard import Life, Stop

logger = logging.getLogger("medhaul.task")

# Seconds that may go into frames that are being packed, by signal: ahead of the time limit, or when killed soon.
GRACE = {signal.SIGUSR1: 90.0, signal.SIGTERM: 15.0, signal.SIGINT: 5.0}

# Seconds after which raw files that an interrupted task left on a node are removed by the next task there.
SCRATCH_AGE = 7 * 24 * 3600.0


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shard", type=click.IntRange(min=0), help="The shard to do.")
@click.option("--attempt", type=click.IntRange(min=1), help="With --index: the attempt whose plan names the shard.")
@click.option("--index", type=click.IntRange(min=0), help="Position in the attempt's list of shards.")
def task(run: Path, shard: int | None, attempt: int | None, index: int | None) -> None:
    """Do one shard: fetch, verify, pack, journal, and write the receipt.

    Give --shard, or --attempt and --index as the array task does. Finished frames of earlier lives are kept. SIGUSR1
    and SIGTERM end it in order, with exit code 75.
    """
    from pipeline.rundir import RunDir
    from pipeline.task.shard import describe_life

    run_dir = RunDir.open(run)
    life = describe_life(attempt or 0, os.environ)
    connections = budget = 0
    on_slurm = False
    if attempt is not None and index is not None and shard is None:
        plan = run_dir.read_plan(attempt)
        if index >= len(plan.shards):
            raise UsageError(f"attempt {attempt} has {len(plan.shards)} tasks, there is no index {index}")
        shard = plan.shards[index]
        connections = choose_connections(plan, run_dir.read_throttle(attempt), life.job)
        budget = plan.connections * plan.tasks
        on_slurm = plan.scheduler == "slurm"
    elif shard is None or attempt is not None or index is not None:
        raise UsageError("give either --shard, or --attempt and --index", hint="medhaul task RUN --shard K")
    try:
        receipt = do_shard(run_dir, shard, life, connections, budget=budget, on_slurm=on_slurm)
    except TimeLimitError as error:
        if on_slurm:
            requeue(run_dir, life.attempt, error)
        raise
    if receipt.failed:
        raise ItemsFailedError(
            f"shard {shard}: {len(receipt.failed)} of {receipt.entries} items failed",
            hint=f"medhaul failed {run_dir.path}",
        )


def choose_connections(plan: AttemptPlan, changed: Throttle | None, life: str) -> int:
    """Choose a task's share of the connections: as planned, or as changed since. Pure.

    A task that ran when it was changed keeps what it had, also when it reads the change only now: it was counted so.
    """
    return changed.held.get(life, changed.connections) if changed else plan.connections


def choose_share(connections: int, budget: int, bound: int) -> int:
    """Choose how many of a task's connections may be to a site that has a bound of its own for the whole run. Pure.

    As large a part of the bound as the task has of the run's budget, so that all tasks together keep to it; but one at
    least.
    """
    return max(1, min(connections, connections * bound // max(budget, connections)))


def requeue(run_dir: RunDir, attempt: int, error: TimeLimitError) -> None:
    """Put this task back into Slurm's queue when that gets it on: its next life goes on after the finished frames."""
    from pipeline.schedulers.slurm import requeue_self

    if not error.progress:
        logger.warning("not queued again: no frame was finished before the time limit; give it more time (slurm.time)")
        return
    if run_dir.is_cancelled(attempt):
        logger.warning("not queued again: the attempt was cancelled")
        return
    logger.info("%s", requeue_self(os.environ, run_dir.read_config().slurm.requeue))


def do_shard(
    run_dir: RunDir, shard: int, life: Life, connections: int, *, budget: int = 0, on_slurm: bool = False
) -> Receipt:
    """Set up signals, logs and scratch, and do the shard. Raises `MedhaulError`.

    `connections` are this task's, of the `budget` that all tasks at a time were given; 0: as the config has it.
    """
    from pipeline.process import signal_handlers
    from pipeline.task.shard import Stop

    config = run_dir.read_config()
    stop = Stop()
    grace = dict(GRACE)
    if on_slurm:  # half of the warning's lead: time must be left for what comes after the frames in hand
        grace[signal.SIGUSR1] = min(GRACE[signal.SIGUSR1], config.slurm.lead() / 2)

    def on_signal(number: int, _: object) -> None:
        known = signal.Signals(number)
        stop.request(known.name, grace[known])

    try:
        with signal_handlers(dict.fromkeys(grace, on_signal)):
            return _do_logged(run_dir, config, shard, (connections, budget), life=life, stop=stop)
    except TimeLimitError as error:
        if stop.reason == signal.SIGUSR1.name:
            raise
        # Told to end while it ended ahead of the time limit: whoever said so does not want it back in the queue.
        raise InterruptedRunError(f"shard {shard}: stopped by {stop.reason}", hint=error.hint) from None


def _do_logged(
    run_dir: RunDir, config: Config, shard: int, connections: tuple[int, int], *, life: Life, stop: Stop
) -> Receipt:
    """Do the shard, with its beginning and its end, whatever it is, in both logs."""
    from pipeline.task.detail import DetailLog

    log = DetailLog(run_dir.logs(life.attempt) / f"{life.job.partition('.')[0]}.detail.jsonl.zst")
    try:
        log.event("life-start", shard=shard, attempt=life.attempt, job=life.job, node=life.node, pid=os.getpid())
        logger.info("shard %d of %s, job %s on %s, pid %d", shard, run_dir.path, life.job, life.node, os.getpid())
        receipt = _do(run_dir, config, shard, connections, life=life, stop=stop, log=log)
        log.event("life-end", state=receipt.state, failed=len(receipt.failed))
    except MedhaulError as error:
        log.event("life-end", state="ended", code=error.exit_code, message=str(error))
        raise
    except BaseException as error:
        logger.exception("a fault in medhaul ends this task")
        trace = "".join(traceback.format_exception(error))
        log.event("life-end", state="fault", message=f"{type(error).__name__}: {error}", traceback=trace)
        raise
    finally:
        log.close()
    return receipt


def _do(
    run_dir: RunDir, config: Config, shard: int, connections: tuple[int, int], *, life: Life, stop: Stop, log: object
) -> Receipt:
    from pipeline.sources.fetch import RoutedFetcher, nbia_origins
    from pipeline.task.cache import ScratchCache, remove_cache, sweep_scratch
    from pipeline.task.detail import DetailLog
    from pipeline.task.intake import scratch_path
    from pipeline.task.resources import (
        choose_workers,
        find_scratch,
        fit_memory,
        granted_cores,
        granted_memory,
        scratch_candidates,
    )
    from pipeline.task.shard import ShardTask
    from pipeline.transport.client import Transport
    from pipeline.transport.pool import ConnectionPool
    from pipeline.transport.retry import Policy
    from pipeline.units import render_size

    assert isinstance(log, DetailLog)
    settings = config.task
    limits, (share, budget) = config.limits, connections
    share = share or max(1, limits.connections // limits.tasks)
    # The larger one, if the config was changed since the tasks were given theirs.
    nbia_share = choose_share(share, max(budget, limits.connections), config.sources.tcia.connections)
    cores = settings.cores or granted_cores(os.environ)
    memory = fit_memory(settings.memory, granted_memory(os.environ))
    if memory < settings.memory:
        logger.warning("task.memory is %s, but only %s may be used here", *map(render_size, (settings.memory, memory)))
    workers = choose_workers(memory, cores, share, config.archive.block_bytes, config.archive.cut_files)
    logger.info("%d compressors, %d blocks in flight, %d connections, %d files under way", *workers)
    work = ShardTask(
        run_dir, config, shard, life=life, stop=stop, log=log, workers=workers,
        second_round_wait=settings.second_round_wait,
    )  # fmt: skip
    adopted = work.adopt()
    todo = work.to_do()
    cache = None
    name = f"{work.manifest.sha256[:12]}-{shard:06d}"
    endpoints = config
    sources = config.sources
    if "demo" in {sources.idc.s3_endpoint, sources.tcia.base_url, sources.isic.base_url}:
        from pipeline.demo.embed import resolve_demo

        endpoints = resolve_demo(config)
    policy = Policy(
        attempts=settings.attempts, deadline=settings.item_deadline, stall=settings.stall, min_rate=settings.min_rate,
        base=settings.retry_base, slow_base=4 * settings.retry_base,
    )  # fmt: skip
    nbia = nbia_origins(endpoints.sources.tcia, work.entries)
    with ConnectionPool(limit=workers.connections, site=nbia, site_limit=nbia_share) as pool:
        transport = Transport(pool, policy, stop=stop.event, on_event=log.record)
        candidates = scratch_candidates(settings.scratch, os.environ)
        for _, place in candidates:
            for swept in sweep_scratch(scratch_path(Path(place)), SCRATCH_AGE, time.time()):
                logger.info("removed from %s what nobody came back for: %s", place, swept)
        if todo:
            needed = work.scratch_needed(todo)
            scratch, told = find_scratch(
                candidates, needed,
                allow_shared=settings.allow_shared_scratch, configured=bool(settings.scratch),
                least=lambda free: work.scratch_needed(todo, free),
            )  # fmt: skip
            logger.info("%s", told)
            cache = ScratchCache(scratch_path(scratch), name)
            if life.job and not sys.stderr.isatty():
                # Many tasks start in the same second; the site should not see them all at once.
                stop.event.wait(random.uniform(0, settings.start_jitter))  # noqa: S311 - jitter
        else:
            for _, place in candidates:
                remove_cache(scratch_path(Path(place)), name)
        fetcher = RoutedFetcher(
            endpoints.sources, transport, cache.folder / "sources" if cache else None,
            entries=[entry for frame in todo for entry in work.frames[frame]],
            known=cache.find if cache else lambda _: None, stop=stop.event,
            # While some download, others check. Threads without a connection need half of what is counted for one.
            nbia_threads=min(workers.connections, 2 * nbia_share),
        )  # fmt: skip
        keep = True
        try:
            work.beat("starting", None, 0, force=True)
            receipt = work.run(fetcher, cache, adopted)
            keep = False
        except BaseException as error:
            work.beat("stopped", None, 0, force=True, note=f"{type(error).__name__}: {error}"[:500])
            raise
        finally:
            with contextlib.suppress(OSError, StorageError):  # what stays on scratch, the next life or a sweep removes
                fetcher.close()
            if cache is not None:
                cache.close(keep=keep)
                if not keep:  # what lives beside this one left that died; the shard is done even where it cannot be
                    with contextlib.suppress(OSError, StorageError):
                        remove_cache(cache.folder.parent, name)
    logger.info("done at %s", time.strftime("%Y-%m-%dT%H:%M:%S"))
    return receipt
