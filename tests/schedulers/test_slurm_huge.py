"""`status` of ten thousand shards on Slurm: little work, one question, few file accesses."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

import msgspec
import pytest

from pipeline.schedulers.attempt import plan_attempt
from pipeline.schedulers.base import Bounds, expected_jobs
from tests.schedulers.fake_run import SHA, receipt_of, write_part, write_run
from tests.schedulers.slurm_stage import squeue_line

TEN_THOUSAND = 10_000
CPU_SECONDS = 2.0
GENEROUS = 3.0  # machines differ, and the tests run beside others
COUNTING = """
import collections, json, os, sys
opened, stats, runs = collections.Counter(), [], []
def hook(event, args):
    if event == "open" and isinstance(args[0], str):
        opened[os.path.basename(os.path.dirname(os.path.dirname(args[0])))] += 1
    if event == "subprocess.Popen":
        runs.append(args[0])
sys.addaudithook(hook)
for name in ("stat", "lstat"):
    real = getattr(os, name)
    setattr(os, name, lambda path, *a, _real=real, **k: (stats.append(str(path)), _real(path, *a, **k))[1])
from pipeline.cli.main import run_cli
code = run_cli(["status", "--json", sys.argv[1]])
seen = {"receipts": opened["receipts"], "heartbeats": opened["heartbeats"], "runs": len(runs),
        "stats": sum("/receipts/" in path or "/parts/" in path for path in stats)}
print(json.dumps(seen), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """Return a run of ten thousand shards on Slurm, half of them done, an environment with its squeue, and a log."""
    root = tmp_path_factory.mktemp("huge")
    run = write_run(root, TEN_THOUSAND, tables={"limits": {"tasks": 16, "connections": 64}})
    config = run.read_config()
    plan = plan_attempt(
        range(TEN_THOUSAND), config.limits, run="r1", attempt=1, manifest_sha256=SHA, scheduler="slurm",
        bounds=Bounds(array=1001, cluster="c"), created="", tag="t",
    )  # fmt: skip
    run.write_plan(plan)
    jobs = [
        msgspec.structs.replace(job, id=str(100 + number), submitted=time.time())
        for number, job in enumerate(expected_jobs(plan))
    ]
    run.write_jobs(1, jobs)
    for shard in range(0, TEN_THOUSAND, 2):
        path = run.receipt(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(receipt_of(shard)))
        write_part(run, shard)
    lines = [
        squeue_line(
            ArrayJobID=job.id, ArrayTaskID=index if job.kind == "array" else "N/A", JobID=job.id, exit_code=0,
            State="PENDING", RestartCnt=0, StartTime="N/A", Name=job.name, Reason="JobArrayTaskLimit",
        )
        for job in jobs
        for index in range(max(1, job.length))
        if job.kind == "reduce" or (job.offset + index) % 2
    ]  # fmt: skip
    lines += [
        squeue_line(
            ArrayJobID=job.id, ArrayTaskID=index, JobID=9, exit_code=0, State="COMPLETED", RestartCnt=0,
            StartTime="2026-01-01T00:00:00", NodeList="n1", Name=job.name, Reason="None",
        )
        for job in jobs
        for index in range(job.length)
        if not (job.offset + index) % 2
    ]  # fmt: skip
    folder = root / "bin"
    folder.mkdir()
    (folder / "answer").write_text("\n".join(lines) + "\n")
    (folder / "squeue").write_text(f"#!/bin/sh\necho squeue >>{root}/calls\nexec cat {folder}/answer\n")
    (folder / "sacct").write_text(f"#!/bin/sh\necho sacct >>{root}/calls\nexit 1\n")
    for name in ("squeue", "sacct"):
        (folder / name).chmod(0o755)
    return run, {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, root / "calls"


def test_ten_thousand_shards_cost_little(huge, record_property):
    """`status` of ten thousand shards takes about two seconds of CPU at most, and one question."""
    run, environ, calls = huge
    calls.write_text("")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "status", "--json", str(run.path)],
        env=environ, capture_output=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("cpu_seconds", used)
    print(f"status of {TEN_THOUSAND} shards: {used:.2f} s of CPU")
    report = json.loads(done.stdout)
    assert (report["shards"]["done"], report["shards"]["waiting"]) == (TEN_THOUSAND // 2, TEN_THOUSAND // 2)
    assert calls.read_text() == "squeue\n"
    assert used < GENEROUS * CPU_SECONDS, f"{used:.2f} s"


def test_ten_thousand_shards_are_few_file_accesses(huge):
    """Each receipt is opened once, and neither it nor a part is asked for by name for any other reason."""
    run, environ, _ = huge
    done = subprocess.run([sys.executable, "-c", COUNTING, str(run.path)], env=environ, capture_output=True, check=True)
    seen = json.loads(done.stderr)
    assert seen["receipts"] == TEN_THOUSAND // 2
    assert seen["heartbeats"] == 0
    assert seen["runs"] == 1
    assert seen["stats"] <= 2 * TEN_THOUSAND // 100, "some for each folder, none for each file"
