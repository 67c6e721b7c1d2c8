"""`medhaul doctor` as a whole: exit codes, JSON, and the job on a node, with stand-ins for Slurm's commands."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import time

import msgspec
import pytest
from click.testing import CliRunner

from pipeline.cli.doctor import doctor
from pipeline.doctor.node import NodeCheck, job_arguments, plan_time, render_script
from pipeline.doctor.records import DoctorReport
from pipeline.doctor.slurm import probe_slurm
from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError, StorageError, UsageError
from tests.doctor.doctor_kit import FakeSlurm, make_config
from tests.transport.server import Server, answer

LISTING = b"<ListBucketResult></ListBucketResult>"


@pytest.fixture
def site():
    """Yield a server that lists the bucket."""
    it = Server()
    it.on("/idc-open-data", answer(200, LISTING))
    yield it
    it.close()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Yield stand-ins for Slurm's commands, as the only ones on PATH; no variable of a surrounding job is left."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")) or name in {"TMPDIR", "L_SCRATCH_JOB", "LOCAL_SCRATCH", "NETRC"}:
            monkeypatch.delenv(name)
    it = FakeSlurm(tmp_path / "fake")
    for name, value in it.environ.items():
        monkeypatch.setenv(name, value)
    yield it
    it.close()


@pytest.fixture
def config(tmp_path, site):
    """Return the path of a config that asks nothing of the internet."""
    return write_config(tmp_path, site)


def write_config(tmp_path, site, more: str = ""):
    """Write a config whose sites are ours."""
    path = tmp_path / "it's a config.toml"
    (tmp_path / "index.parquet").touch()
    path.write_text(
        f'[run]\nname = "r"\n[storage]\nroot = "shared"\n[select.idc]\ncontent = "both"\n'
        f'[sources.idc]\ns3_endpoint = "{site.base}"\nmirror_endpoint = ""\nindex = "index.parquet"\n'
        f'[shards]\ntarget_bytes = "1 MB"\n[task]\nscratch = "scratch"\nallow_shared_scratch = true\n'
        f'scratch_bytes = "1 MB"\n{more}'
    )
    return path


def call(*words):
    """Call the command; returns its output, and the error it ended with."""
    done = CliRunner().invoke(doctor, [str(word) for word in words])
    return done.stdout, done.exception


def call_json(*words) -> tuple[DoctorReport, Exception | None]:
    """Call the command for its JSON."""
    out, error = call(*words, "--json")
    return msgspec.json.decode(out, type=DoctorReport), error


def test_a_good_cluster_is_usable(slurm, config, tmp_path):
    """Nothing fails, exit code 0, a verdict at the end, nothing submitted, nothing left behind."""
    out, error = call(config)
    assert error is None, out
    assert out.splitlines()[-1].startswith("verdict: ")
    assert max(map(len, out.splitlines())) <= 100
    assert slurm.read("sbatch.txt") == ""
    assert not (tmp_path / "shared").exists()
    report, error = call_json(config)
    assert error is None
    assert report.code == 0
    assert not [finding for finding in report.findings if finding.level == "fail"]


def test_without_config_it_checks_what_needs_none(slurm, site, monkeypatch):
    """Default settings, with the endpoints of the environment; storage is not looked at."""
    monkeypatch.setenv("MEDHAUL_IDC_S3_ENDPOINT", site.base)
    monkeypatch.setenv("MEDHAUL_IDC_MIRROR_ENDPOINT", site.base)
    report, error = call_json()
    assert error is None
    assert "storage" not in {finding.group for finding in report.findings}
    assert {"slurm", "scratch", "machine", "network"} <= {finding.group for finding in report.findings}


def test_exit_codes(slurm, config, site, tmp_path, monkeypatch):
    """69 for a site or Slurm, 73 for storage, 77 for credentials, 78 for the config; the worst of them wins."""
    site.on("/idc-open-data", answer(403))
    assert isinstance(call(config)[1], SiteUnavailableError)
    site.on("/idc-open-data", answer(200, LISTING))
    slurm.set_code("config", 1)
    assert isinstance(call(config)[1], SiteUnavailableError)
    (tmp_path / "shared").write_text("in the way")
    assert isinstance(call(config)[1], StorageError)
    (slurm.root / ".netrc").write_text("machine x password secret")
    (slurm.root / ".netrc").chmod(0o644)
    out, error = call(config)
    assert isinstance(error, CredentialsError)
    assert "chmod 600" in out
    assert "secret" not in out
    config.write_text("[run]\nnam = 1\n")
    out, error = call(config)
    assert isinstance(error, ConfigError)
    assert "unknown key" in out
    assert error.exit_code == 78


def test_a_command_that_hangs_leaves_things_unknown(slurm):
    """Commands of Slurm that never end cost their time limit; what they would have said is unknown."""
    slurm.command("sacctmgr", "exec sleep 600")
    slurm.command("sacct", "exec sleep 600")
    begun = time.monotonic()
    facts = probe_slurm(make_config(), slurm.environ, brief=False, seconds=0.3)
    assert time.monotonic() - begun < 10
    assert facts.associations is None
    assert facts.accounting_answers is False
    assert facts.partitions
    slurm.command("scontrol", "exec sleep 600")
    facts = probe_slurm(make_config(), slurm.environ, brief=False, seconds=0.3)
    assert facts.limits is None
    assert "did not answer" in facts.problem


def test_noise_is_not_passed_on(slurm, config):
    """What commands print is shown without its control characters, in the text and in the JSON."""
    slurm.say(partition="\x1b[2J\udcff|||=\n", assoc="\x00|\x07|a|b|c\n", qos="=" * 5000, test="\x1b]0;x\x07\n")
    out, _ = call(config)
    assert "\x1b" not in out
    assert "\x07" not in out
    report, _ = call_json(config)
    assert all(finding.detail.isprintable() for finding in report.findings)


def test_on_node_needs_slurm_and_a_config(config, tmp_path, monkeypatch):
    """Without Slurm, or without a config, `--on-node` is a usage error, 64."""
    monkeypatch.setenv("PATH", str(tmp_path))
    _, error = call(config, "--on-node")
    assert isinstance(error, UsageError)
    assert error.exit_code == 64
    assert "no Slurm here" in str(error)
    assert isinstance(call("--on-node")[1], UsageError)
    assert isinstance(call(config, "--on-node", "--timeout", "soon")[1], UsageError)


def test_on_node_brings_the_nodes_report(slurm, config, tmp_path, monkeypatch):
    """One job runs the doctor with `--here`; its report stands beside ours, and its folder is gone."""
    slurm.run_jobs()
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    report, error = call_json(config, "--on-node", "--timeout", "60 s")
    assert error is None, report
    assert report.node is not None
    assert {"scratch", "storage", "network", "machine"} <= {finding.group for finding in report.node.findings}
    assert [finding.level for finding in report.findings if finding.group == "node"] == ["ok"]
    words = slurm.read("sbatch.txt").splitlines()
    assert "--time=00:10:00" in words
    assert not [word for word in words if word.startswith("--array")]
    assert "--no-requeue" in words
    assert not (tmp_path / "shared").exists()
    assert slurm.read("cancelled.txt") == ""
    out, _ = call(config, "--on-node")
    assert "on the node" in out


def test_the_job_gets_what_a_task_gets(slurm, config, monkeypatch, tmp_path, site):
    """The job has the options of [slurm] and the variables of a task, and no others."""
    config = write_config(tmp_path, site, '[slurm]\npartition = "main"\ngres = "disk:1"\nenvironment = ["WANTED"]\n')
    monkeypatch.setenv("WANTED", "1")
    monkeypatch.setenv("SECRET_TOKEN", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "evil")
    slurm.say(queue="")
    call(config, "--on-node", "--timeout", "0")
    given = slurm.read("sbatch.env")
    assert "WANTED=1" in given
    assert "SECRET_TOKEN" not in given
    assert "SBATCH_PARTITION" not in given
    assert "--gres=disk:1" in slurm.read("sbatch.txt").splitlines()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self, do=lambda _: None) -> None:
        self.now, self.do = 0.0, do

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.now)


def check(slurm, tmp_path, clock: Time, **options):
    """Run the check of a node with a clock of ours."""
    config = make_config(storage={"root": str(tmp_path / "shared")})
    made = NodeCheck(config, tmp_path / "c.toml", slurm.environ, clock=lambda: clock.now, sleep=clock.sleep, **options)
    return made.run()


def test_a_job_that_waits_too_long_is_ended(slurm, tmp_path):
    """After the timeout the job is cancelled, the reason it waited for is told, and the folder is gone."""
    slurm.say(queue="PENDING|Resources\n")
    clock = Time()
    found, report = check(slurm, tmp_path, clock, timeout=120)
    assert report is None
    assert (found[0].level, found[0].code) == ("fail", 69)
    assert "PENDING" in found[0].detail
    assert "free nodes" in found[0].detail
    assert slurm.read("cancelled.txt").split() == ["77"]
    assert 120 <= clock.now < 130
    assert not (tmp_path / "shared").exists()


def test_squeue_is_asked_politely(slurm, tmp_path):
    """The first question comes after 5 s, the pauses grow, and none is longer than a minute."""
    asked = []
    slurm.command("squeue", f"echo x >>{shlex.quote(str(slurm.root / 'asked.txt'))}; echo 'PENDING|Priority'")
    check(slurm, tmp_path, Time(lambda now: asked.append((now, slurm.read("asked.txt").count("x")))), timeout=600)
    times = [now for (now, count), (_, before) in zip(asked[1:], asked, strict=False) if count > before]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] >= 5
    assert min(pauses) >= 5
    assert max(pauses) <= 64
    assert len(times) <= 16


def test_a_job_without_a_report(slurm, tmp_path):
    """What its log says is told; without even a log, the nodes do not see the storage, which is 73."""

    def write_log(_: float) -> None:
        for folder in (tmp_path / "shared").glob(".medhaul-doctor-*"):
            (folder / "log.txt").write_text("no medhaul\x1b[31m on PATH\n")

    slurm.say(queue="FAILED|NonZeroExitCode\n")
    found, _ = check(slurm, tmp_path, Time(write_log))
    assert found[0].code == 69
    assert "no medhaul" in found[0].detail
    assert "\x1b" not in found[0].detail
    found, _ = check(slurm, tmp_path, Time())
    assert found[0].code == 73
    assert slurm.read("cancelled.txt") == ""


def test_a_damaged_report_is_no_report(slurm, tmp_path):
    """Noise in place of the report is a failure, not a crash."""

    def write(_: float) -> None:
        for folder in (tmp_path / "shared").glob(".medhaul-doctor-*"):
            (folder / "result.json").write_bytes(b'{"host": \xff')

    found, report = check(slurm, tmp_path, Time(write))
    assert report is None
    assert (found[0].level, found[0].code) == ("fail", 69)


def test_a_refused_or_unknown_submission(slurm, tmp_path):
    """A refusal is told; when sbatch's answer was lost, a job that may be there is cancelled by its name."""
    slurm.set_code("sbatch", 1)
    found, _ = check(slurm, tmp_path, Time())
    assert "refused" in found[0].detail
    assert found[0].code == 69
    slurm.command("sbatch", "echo no number")
    found, _ = check(slurm, tmp_path, Time())
    assert found[0].code == 69
    assert "--name=medhaul.doctor." in slurm.read("cancelled.txt")
    assert not (tmp_path / "shared").exists()


def test_ctrl_c_ends_the_job(slurm, tmp_path):
    """An interrupt while waiting cancels the job and removes the folder."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(slurm, tmp_path, Time(interrupt))
    assert slurm.read("cancelled.txt").split() == ["77"]
    assert not (tmp_path / "shared").exists()


def test_the_script_is_sound(tmp_path):
    """Whatever the config is called, bash reads the script as meant; its linter has nothing to say."""
    odd = tmp_path / "a 'b' $(touch x).toml"
    script = tmp_path / "check.sh"
    script.write_text(render_script(odd))
    (tmp_path / "medhaul").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "medhaul").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ, check=True, timeout=60)
    assert (tmp_path / "result.json").read_text().splitlines() == ["doctor", str(odd), "--json", "--here"]
    (tmp_path / "medhaul").write_text("#!/bin/sh\nexit 64\n")
    (tmp_path / "result.json").unlink()
    assert subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ, check=False, timeout=60).returncode == 64
    assert not (tmp_path / "result.json").exists()
    if linter := shutil.which("shellcheck"):
        subprocess.run([linter, str(script)], check=True, timeout=60)


def test_the_job_is_short(tmp_path):
    """Never more than ten minutes, nor than tasks or the partition have."""
    assert plan_time(make_config(), 10**6) == 600
    assert plan_time(make_config(slurm={"time": "5 min"}), 10**6) == 300
    assert plan_time(make_config(), 120) == 120
    with pytest.raises(ConfigError):
        job_arguments(make_config(), tmp_path / "back\\slash", "n", 60)
