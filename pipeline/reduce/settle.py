"""Waiting for what shared storage shows late: a receipt of another node may take a while to be seen on this one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipeline.manifest import Manifest
from pipeline.rundir import RunDir

logger = logging.getLogger("medhaul.reduce")
LOOK_SECONDS = 5.0


def wait_for_receipts(
    run: RunDir,
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> set[int]:
    """Wait until every shard has a receipt, but no longer than `seconds`; return the shards that have none.

    NFS clients may go on seeing an old folder for up to a minute (nfs(5): acdirmax). A shard that said itself that it
    stopped is not waited for. A receipt that is there but bad is reduce's to judge.
    """
    shards = {entry.shard for entry in Manifest(run).index.shards}
    end = clock() + seconds
    while True:
        missing = shards - run.receipt_shards()
        stopped = (
            {shard for shard, beat in run.read_heartbeats().items() if beat.phase in {"stopped", "failed"}}
            if missing
            else set()
        )
        left = end - clock()
        if not missing - stopped or left <= 0:
            return missing
        logger.info("%d shards have no receipt yet; looking again for %.0f s", len(missing), left)
        sleep(min(LOOK_SECONDS, left))
