"""Whole hauls with the real `medhaul` on Slurm: from hostile paths, from inside a job, and with secrets around."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from pipeline.demo.embed import stop_site
from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Liveness
from pipeline.schedulers.submission import SCRIPTS
from tests.schedulers.slurm_stage import SlurmStage

HOSTILE = 'it\'s a "run" \u2013 na\u00efve $(touch pwned) `touch pwned` %A 100% *;& #1'
MARK = "m4rk-that-is-passed-on"
SECRETS = {
    "MEDHAUL_TOKEN": "{}",
    "MEDHAUL_NBIA_PASSWORD": "{}",
    "AWS_SECRET_ACCESS_KEY": "{}",
    "AWS_SESSION_TOKEN": "{}",
    "HTTPS_PROXY": "http://user:{}@127.0.0.1:9",
    "https_proxy": "http://{}@127.0.0.1:9",
    "FOO_PASSWORD": "{}",
    "SSH_AUTH_SOCK": "/tmp/{}/agent",
    "GITHUB_TOKEN": "{}",
    "LC_SECRET": "{}",
    "LMOD_SITE_TOKEN": "{}",
    "KRB5CCNAME": "FILE:/tmp/{}",
    "SBATCH_COMMENT": "{}",
    "SLURM_JWT": "{}",
}
CONFIG = """
[run]
name = "tiny"
[storage]
root = "runs"
logs = "logs"
[select.idc]
content = "both"
collections = ["demo_ct_mr"]
[sources.idc]
s3_endpoint = "demo"
mirror_endpoint = ""
[archive]
group_bytes = "1 MB"
cut_bytes = "4 MB"
block_bytes = "256 KiB"
[shards]
count = 3
[limits]
connections = 4
tasks = 2
[task]
cores = 1
memory = "512 MiB"
scratch = "scratch"
allow_shared_scratch = true
start_jitter = 0
[slurm]
max_array = 2
poll = 1
settle = 0
environment = ["SITE_MARK"]
"""


def secret(number: int) -> str:
    """A secret that stands nowhere by chance."""
    return f"s3cr3t{number:02d}zqzq"


@pytest.fixture
def stage(tmp_path):
    """Yield a stage with a config for a tiny haul in a folder with a hostile name; jobs run the real `medhaul`."""
    with SlurmStage(tmp_path / HOSTILE, nodes=["n1", "n2"], slots=1) as it:
        for name in ("MEDHAUL_ENV", "MEDHAUL_SCHEDULER"):
            del it.environ[name]
        it.environ["PATH"] = f"{Path(sys.executable).parent}:{it.environ['PATH']}"
        it.environ["XDG_CACHE_HOME"] = str(it.root / "cache")
        (it.root / "scratch").mkdir()
        config = it.root / "config 1.toml"
        config.write_text(CONFIG.replace('"scratch"', json.dumps(str(it.root / "scratch"))))
        try:
            yield it
        finally:
            stop_site(it.root / "runs" / ".demo-site")


def check_complete(stage) -> RunDir:
    """The run is complete, its archives verify, and every shard's log is where it is said to be."""
    run = RunDir(stage.root / "runs" / "tiny")
    attempt = stage.attempt(run)
    assert attempt.liveness is Liveness.ENDED
    report = json.loads(stage.medhaul("status", "--json", run.path).stdout)
    logs = {path.name: path.read_text() for path in run.logs(1).glob("*.log")}
    assert report["shards"]["done"] == report["shards"]["done"] + len(report["open"]), (report["open"], logs)
    assert [archive["state"] for archive in report["archives"]] == ["complete"], (report, logs)
    verified = stage.medhaul("verify", run.path)
    assert verified.returncode == 0, verified
    tasks = [f"{job.id}_{index}.log" for job in run.read_jobs(1) if job.kind == "array" for index in range(job.length)]
    assert sorted(logs) == sorted([*tasks, "reduce.log"])
    assert len(run.read_plan(1).arrays) == 2
    return run


@pytest.mark.parametrize("how", ["bash", "sbatch"])
def test_hostile_paths(stage, how):
    """The same line on a login node and as a job does a whole haul, whatever the folders are called."""
    command = [how, str(SCRIPTS / "submit_array.sh"), "config 1.toml"]
    done = subprocess.run(command, env=stage.environ, cwd=stage.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    stage.slurm.wait_idle(120)
    said = done.stdout
    if how == "sbatch":
        (log,) = stage.root.glob("medhaul-submit-*.log")
        said = log.read_text()
    run = check_complete(stage)
    assert f"run      {run.path}" in said
    assert not list(stage.root.parent.rglob("pwned"))
    assert not Path("pwned").exists()
    follow = next(line for line in said.splitlines() if "medhaul status" in line or "/medhaul' status" in line)
    shown = subprocess.run(["bash", "-c", follow], env=stage.environ, capture_output=True, text=True, check=False)
    assert "attempt  001 (slurm scheduler), ended" in shown.stdout, shown


def texts_of(folder: Path):
    """The bytes of every file below a folder, as they are and decompressed, with its path; and all names."""
    for path in sorted(folder.rglob("*")):
        yield path, os.fsencode(path.name)
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield path, data
        if path.suffix == ".zst":
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            yield path, reader.read()
        if path.suffix == ".xz":
            yield path, lzma.decompress(data)
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".zst"):
                        inner = tar.extractfile(member).read()
                        yield path, zstandard.ZstdDecompressor().stream_reader(inner, read_across_frames=True).read()


def test_secrets_stay_where_they_are(stage):
    """Of an environment full of secrets nothing reaches Slurm's books, jobs, run directory, logs, cache or archive."""
    environ = {name: form.format(secret(number)) for number, (name, form) in enumerate(SECRETS.items())}
    done = stage.medhaul("run", stage.root / "config 1.toml", env={**environ, "SITE_MARK": MARK})
    assert done.returncode == 0, done
    run = check_complete(stage)
    said = [done.stdout, done.stderr]
    for words in (("status", "-v"), ("failed", "--logs")):
        shown = stage.medhaul(*words, run.path, env=environ)
        said += [shown.stdout, shown.stderr]
    searched = [
        (path, data) for name in ("runs", "logs", "cache", "scratch") for path, data in texts_of(stage.root / name)
    ]
    searched += list(texts_of(stage.slurm.root / "spool"))
    searched += [(name, (stage.slurm.root / "state" / name).read_bytes()) for name in ("calls.jsonl", "cluster.json")]
    jobs = [
        environ
        for argv, environ in zip(stage.slurm.calls(), stage.slurm.environments(), strict=True)
        if argv[0] == "sbatch"
    ]
    assert len(jobs) == 3
    searched += [("environment of sbatch", json.dumps(job).encode()) for job in jobs]
    searched += [("output", text.encode()) for text in said]
    for number, name in enumerate(SECRETS):
        found = [str(path) for path, data in searched if secret(number).encode() in data]
        assert not found, f"{name} in {found}"
    assert b"s3cr3t" not in b"".join(data for _, data in searched)
    # The search finds what is there: a variable that was named, the run in the manifest, an item in the archive.
    assert (
        len([path for path, data in searched if MARK.encode() in data and str(path).endswith("environment.json")]) == 3
    )
    assert [path for path, data in searched if str(path).endswith(".tar.xz") and b"demo_ct_mr" in data]
    names = {path.name for path, _ in searched if isinstance(path, Path)}
    assert {"run.json", "plan.json", "jobs.json", "slurm_script", "environment.json", "reduce.log"} <= names
