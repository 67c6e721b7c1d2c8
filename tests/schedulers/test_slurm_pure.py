"""What medhaul decides about Slurm without Slurm: arrays, command lines, environments, and what sbatch said."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.records import AttemptPlan
from pipeline.schedulers.attempt import plan_arrays, plan_attempt
from pipeline.schedulers.base import ArraySpec, Bounds, ReduceSpec, split_tasks
from pipeline.schedulers.slurm_calls import parse_cluster, slurm_environment
from pipeline.schedulers.slurm_jobs import (
    BUSY,
    FULL,
    LOST_ANSWER,
    escape_pattern,
    parse_job_id,
    passed_environment,
    refusal_hint,
    render_time,
    sbatch_arguments,
)
from pipeline.schedulers.submission import array_specs
from pipeline.settings import Config, Limits

MAX_INDEX_TEXT = 4096  # bytes of an --array expression that slurmctld takes


def config_of(**tables: object) -> Config:
    """A config with these tables."""
    base = {"run": {"name": "r1"}, "storage": {"root": "/s", "logs": "/l"}, "select": {"idc": {"content": "both"}}}
    return parse_config({**base, **tables}, "test")


# -- arrays -----------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 3000), tasks=st.integers(1, 200), longest=st.none() | st.integers(1, 1001))
@example(count=23, tasks=4, longest=5)
@example(count=3000, tasks=1, longest=1)
@example(count=1001, tasks=8, longest=1001)
def test_arrays_cover_all_tasks_within_all_bounds(count, tasks, longest):
    """Every task is in one array, no index reaches the bound, and what is at work never exceeds the tasks."""
    arrays = plan_arrays(count, tasks, longest)
    covered = [array.offset + index for array in arrays for index in range(array.length)]
    assert covered == list(range(count))
    assert all(array.length >= 1 for array in arrays)
    for number, array in enumerate(arrays):
        assert array.length <= (longest or count)
        assert 1 <= array.throttle <= array.length
        assert -1 <= array.after < number
    # Arrays that wait for the same one would start together: then more than planned would be at work.
    waited_for = [array.after for array in arrays if array.after >= 0]
    assert len(set(waited_for)) == len(waited_for)
    # Whatever ends first: at most one array of each lane is at work, and of any two in a lane the later has as many.
    lanes = [number for number, array in enumerate(arrays) if array.after < 0]
    most = []
    for first in lanes:
        lane, number = [], first
        while number is not None:
            lane.append(number)
            number = next((n for n, array in enumerate(arrays) if array.after == number), None)
        assert lane == sorted(lane)
        most.append(max(arrays[number].throttle for number in lane))
    assert sum(most) <= tasks
    assert len(lanes) <= tasks


@given(tasks=st.integers(1, 5000), parts=st.integers(1, 500))
def test_shares_of_a_throttle(tasks, parts):
    """Shares differ by one at most, and add up to the tasks unless each must have its one."""
    shares = split_tasks(tasks, parts)
    assert len(shares) == parts
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == max(tasks, parts)


@given(shards=st.sets(st.integers(0, 10**6), min_size=1, max_size=300), longest=st.integers(1, 40))
def test_array_expressions_stay_short(shards, longest):
    """However the shards lie, an --array expression is a dense range of a few bytes, and offsets lead to each shard."""
    plan = draft(sorted(shards), longest=longest)
    seen = []
    for spec in array_specs(Path("/r"), Path("/l"), plan):
        text = next(word for word in sbatch_arguments(spec, config_of(), [], []) if word.startswith("--array="))
        match = re.fullmatch(r"--array=0-(\d+)%(\d+)", text)
        assert match
        assert len(text) < 40 < MAX_INDEX_TEXT
        assert int(match[1]) < longest
        seen += [plan.shards[spec.offset + index] for index in range(int(match[1]) + 1)]
    assert seen == sorted(shards)


def draft(shards, *, longest: int, tasks: int = 4) -> AttemptPlan:
    """Plan an attempt on a cluster whose arrays have `longest` tasks at most."""
    return plan_attempt(
        shards, Limits(connections=64, tasks=tasks), run="r1", attempt=1, manifest_sha256="0", scheduler="slurm",
        bounds=Bounds(array=longest, cluster="c"), created="", tag="abcd",
    )  # fmt: skip


# -- command lines ----------------------------------------------------------------------------------------------------

ARRAY = ArraySpec(
    run=Path("/shared/my runs/r1"), attempt=2, name="medhaul.r1.002.abcd.array1", script=Path("/opt/slurm/array.sh"),
    logs=Path("/shared/100% logs/r1/002"), offset=1000, length=1000, throttle=3,
)  # fmt: skip
REDUCE = ReduceSpec(
    run=Path("/shared/my runs/r1"), attempt=2, name="medhaul.r1.002.abcd.reduce", script=Path("/opt/slurm/reduce.sh"),
    logs=Path("/shared/100% logs/r1/002"),
)  # fmt: skip


def test_array_command_line():
    """The whole command line of an array: what is owned, what is asked for, the caller's own options last but one."""
    config = config_of(
        slurm={
            "partition": "long", "account": "proj", "gres": "lscratch:100", "time": "90 min", "cpus": 3,
            "signal_lead": "200 s", "mail_user": "a@b", "mail_type": "END", "extra": ["--comment=a b"],
            "reduce": {"partition": "short", "time": "1 d"},
        },
        task={"memory": "1 GiB"},
    )  # fmt: skip
    assert sbatch_arguments(ARRAY, config, ["17"], ["--qos=high"]) == [
        "sbatch", "--parsable", "--job-name=medhaul.r1.002.abcd.array1", "--open-mode=append", "--requeue",
        "--export=ALL", "--nodes=1", "--ntasks=1", "--chdir=/shared/my runs/r1", "--array=0-999%3",
        "--output=/shared/100%% logs/r1/002/%A_%a.log", "--signal=B:USR1@200", "--dependency=afterany:17",
        "--partition=long", "--account=proj", "--gres=lscratch:100", "--time=01:30:00", "--mem=1280M",
        "--cpus-per-task=3", "--comment=a b", "--qos=high", "/opt/slurm/array.sh",
    ]  # fmt: skip


def test_reduce_command_line():
    """The reduce job has no array and no early signal, its own resources, one log, and mail."""
    config = config_of(
        slurm={
            "partition": "long", "account": "proj", "time": "90 min", "mail_user": "a@b", "mail_type": "END",
            "reduce": {"partition": "short", "time": "25 h", "cpus": 1, "memory": "3 GiB", "extra": ["--nice"]},
        }
    )  # fmt: skip
    assert sbatch_arguments(REDUCE, config, ["17", "18"], []) == [
        "sbatch", "--parsable", "--job-name=medhaul.r1.002.abcd.reduce", "--open-mode=append", "--requeue",
        "--export=ALL", "--nodes=1", "--ntasks=1", "--chdir=/shared/my runs/r1",
        "--output=/shared/100%% logs/r1/002/reduce.log", "--dependency=afterany:17:18", "--partition=short",
        "--account=proj", "--time=1-01:00:00", "--mem=3072M", "--cpus-per-task=1", "--mail-user=a@b",
        "--mail-type=END", "--nice", "/opt/slurm/reduce.sh",
    ]  # fmt: skip


def test_nothing_is_asked_for_that_need_not_be():
    """An empty [slurm] leaves everything but cores and memory to the site, and memory too where the site refuses it."""
    words = sbatch_arguments(ARRAY, config_of(), [], [])
    assert words[-3:] == ["--mem=1280M", "--cpus-per-task=2", "/opt/slurm/array.sh"]
    assert not [word for word in words if word.startswith(("--time", "--partition", "--dependency", "--mail"))]
    words = sbatch_arguments(REDUCE, config_of(slurm={"ask_memory": False}), [], [])
    assert not [word for word in words if word.startswith("--mem")]


def test_backslash_in_logs_is_refused():
    """A path that sbatch would read without its patterns is refused before anything is submitted."""
    with pytest.raises(ConfigError, match="backslash"):
        escape_pattern("/logs/a\\b")
    assert escape_pattern("/logs/50%A %%") == "/logs/50%%A %%%%"


@given(seconds=st.floats(0.1, 10**7))
@example(seconds=60.0)
@example(seconds=86400.0)
@example(seconds=86399.0)
def test_time_limit_is_never_less_than_asked_for(seconds):
    """What Slurm reads is the asked time, rounded up to the next minute and no further."""
    text = render_time(seconds)
    match = re.fullmatch(r"(?:(\d+)-)?(\d\d):(\d\d):00", text)
    assert match
    read = int(match[1] or 0) * 86400 + int(match[2]) * 3600 + int(match[3]) * 60
    assert seconds <= read < seconds + 60 or read == 60
    assert int(match[2]) < 24


def test_signal_lead_leaves_time_to_work():
    """The early signal comes as asked, but never before half of the time limit is over."""
    assert config_of().slurm.lead() == 180
    assert config_of(slurm={"time": "4 h"}).slurm.lead() == 180
    assert config_of(slurm={"time": "5 min"}).slurm.lead() == 150


# -- environment ------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-value"
SECRET_NAMES = (
    "MEDHAUL_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "FOO_PASSWORD", "SSH_AUTH_SOCK",
    "NBIA_PASSWORD", "KRB5CCNAME", "API_KEY", "NETRC", "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "TMPDIR",
    "SLURM_JOB_ID", "SBATCH_ACCOUNT", "MEDHAUL_SCHEDULER", "HTTPS_PROXY_PASSWORD", "LD_PRELOAD", "LC_SECRET", "LC_X",
    "LMOD_TOKEN", "__MODULES_PASSWORD",
)  # fmt: skip


@given(
    names=st.dictionaries(
        st.sampled_from(SECRET_NAMES) | st.text(string.ascii_uppercase + "_", min_size=1).map(lambda n: n + "_SECRET"),
        st.just(SECRET),
    ),
    proxy=st.sampled_from(["http_proxy", "HTTPS_PROXY", "All_Proxy", "no_proxy"]),
    user=st.text(string.ascii_letters + ":%", max_size=8),
)
def test_no_secret_is_passed_on(names, proxy, user):
    """Of an environment full of secrets jobs get none, nor a proxy with a user in its URL; what they need stays."""
    environ = {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "HTTP_PROXY": "http://proxy:3128"} | names
    made = passed_environment(environ | {proxy: f"http://{user}{SECRET}@proxy:3128"}, [])
    assert SECRET not in str(made)
    assert {key: made[key] for key in ("PATH", "HOME", "LC_ALL", "HTTP_PROXY")} == {
        key: environ[key] for key in ("PATH", "HOME", "LC_ALL", "HTTP_PROXY")
    }


def test_named_variables_are_passed_on():
    """A variable that slurm.environment names is passed on, and none that merely looks like it."""
    environ = {"SITE_A": "1", "SITE_AB": "2", "MEDHAUL_ENV": "/e", "MEDHAUL_HOME": "/m", "MEDHAUL_IDC_INDEX": "x"}
    assert passed_environment(environ, ["SITE_A", "NOT_THERE"]) == {
        "SITE_A": "1", "MEDHAUL_ENV": "/e", "MEDHAUL_HOME": "/m",
    }  # fmt: skip


def test_commands_of_slurm_see_no_surrounding_job():
    """Slurm's commands are asked in English, without what a job around us set, but for the same cluster."""
    environ = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SLURM_CONF": "/c", "LC_ALL": "de_DE", "A": "b"}
    assert slurm_environment(environ) == {"SLURM_CONF": "/c", "LC_ALL": "C", "A": "b"}


# -- answers of sbatch and scontrol -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("123\n", ("123", "")),
        ("123;hpc\n", ("123", "hpc")),
        ("Welcome to HPC!\n  * 7 news *\n\n123\n", ("123", "")),
        ("123\nYour job will start soon.\nAccount: 99 hours left\n", ("123", "")),
        ("2024\n456;c1\n", ("456", "c1")),
        ("  789  \r\n", ("789", "")),
    ],
)
def test_job_id_is_found_among_banners(out, wanted):
    """The last line that is an id alone counts, with its cluster if it has one."""
    assert parse_job_id(out) == wanted


@pytest.mark.parametrize(
    "out", ["", "\n\n", "Submitted batch job 12", "12 13", "-5", "\u0663", "9" * 5000, "12;", "job 12\n", "0x1f", "1.5"]
)
def test_no_job_id(out):
    """What is not an id alone on its line is none."""
    with pytest.raises(ValueError, match="no job id"):
        parse_job_id(out)


@given(out=st.text())
def test_job_id_is_digits_or_error(out):
    """Whatever a wrapper prints: an id of digits, or a ValueError."""
    try:
        job, cluster = parse_job_id(out)
    except ValueError:
        return
    assert job.isascii()
    assert job.isdecimal()
    assert " " not in cluster


CLUSTER = """Configuration data as of 2026-11-20T10:00:00
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = hpc
KillWait                = 45 sec
MaxArraySize            = 4001
MinJobAge               = 600 sec
SchedulerParameters     = bf_continue,max_array_tasks=1500,bf_window=2880
SLURM_VERSION           = 23.11.4

Slurmctld(primary) at ctl is UP
"""


def test_cluster_limits():
    """Bounds, accounting and times are as the cluster says."""
    limits = parse_cluster(CLUSTER)
    assert (limits.cluster, limits.version, limits.max_array, limits.accounting) == ("hpc", "23.11.4", 1500, True)
    assert (limits.kill_wait, limits.min_job_age) == (45, 600)


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("", 1001),
        ("MaxArraySize = 0", 0),
        ("MaxArraySize = 5", 5),
        ("MaxArraySize = (null)", 1001),
        ("MaxArraySize = 10\nSchedulerParameters = max_array_tasks=100", 10),
        ("MaxArraySize = 10\nSchedulerParameters = (null)", 10),
        ("MaxArraySize\n= 7\nSchedulerParameters=xmax_array_tasks=3", 1001),
    ],
)
def test_longest_array(text, longest):
    """The tighter of the two bounds counts; what is not said has its default."""
    assert parse_cluster(text).max_array == longest


@given(text=st.text())
def test_cluster_text_is_never_fatal(text):
    """Any text gives limits."""
    assert parse_cluster(text).max_array >= 0


def test_accounting_kinds():
    """Only a database answers sacct."""
    for kind, wanted in (("slurmdbd", True), ("none", False), ("filetxt", False)):
        assert parse_cluster(f"AccountingStorageType = accounting_storage/{kind}").accounting is wanted


def test_what_sbatch_says():
    """Answers that leave open whether a job was taken are told from those that say no, for now or at all."""
    lost = [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: Batch job submission failed: Unexpected message received",
    ]
    busy = [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    ]
    refused = [
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        (
            "sbatch: error: AssocMaxSubmitJobLimit; sbatch: error: Batch job submission failed: Job violates"
            " accounting/QOS policy (job submit limit, user's size and/or time limits)"
        ),
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
    ]
    assert all(LOST_ANSWER.search(text) for text in lost)
    assert all(BUSY.search(text) and not LOST_ANSWER.search(text) for text in busy)
    assert not any(LOST_ANSWER.search(text) or BUSY.search(text) for text in refused)
    assert [bool(FULL.search(text)) for text in refused] == [False, True, False]


def test_hints_of_refusals():
    """Each kind of refusal has a hint that names what to change."""
    config = config_of()
    for said, word in (
        ("AssocMaxSubmitJobLimit; job submit limit", "--continue"),
        ("Invalid job array specification", "slurm.max_array"),
        ("Requested node configuration is not available", "slurm.memory"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "slurm.time"),
        ("Invalid account or account/partition combination specified", "[slurm]"),
        ("something else", "doctor"),
    ):
        assert word in refusal_hint(said, config)
