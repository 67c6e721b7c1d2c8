"""What the words of squeue and sacct mean to medhaul: real ones, cut ones, unknown ones and hostile ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.records import Job
from pipeline.schedulers.base import State, TaskStatus, alive, ended
from pipeline.schedulers.slurm_states import (
    ENDED,
    RUNNING,
    STUCK,
    WAITING,
    Row,
    classify_row,
    last_deaths,
    parse_exit,
    parse_sacct,
    parse_squeue,
)
from tests.schedulers.slurm_stage import squeue_line


def row_of(word: str, **values: object) -> Row:
    """A task's row."""
    return Row(**{"job": "7", "index": 0, "word": word, "code": "0", **values})


def test_squeue_rows():
    """Tasks of arrays, plain jobs, and what they carry; the raw id of a task is not its key."""
    text = "\n".join(
        [
            squeue_line(ArrayJobID=7, ArrayTaskID=3, JobID=19, State="PENDING", exit_code=0, RestartCnt=2,
                        StartTime="N/A", Name="a b", Reason="(JobArrayTaskLimit)"),
            squeue_line(ArrayJobID=8, ArrayTaskID="N/A", JobID=8, State="RUNNING", exit_code=0, RestartCnt=0,
                        StartTime="2026-01-01T00:00:00", NodeList="n1", Name="r", Reason="None"),
        ]
    )  # fmt: skip
    task, job = parse_squeue(text + "\n")
    assert (task.key, task.word, task.restarts, task.name, task.reason) == (
        ("7", 3), "PENDING", 2, "a b", "JobArrayTaskLimit",
    )  # fmt: skip
    assert (job.key, job.index, job.node, job.start) == (("8", 0), None, "n1", "2026-01-01T00:00:00")


@pytest.mark.parametrize(
    "line",
    [
        "",
        " " * 500,
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        squeue_line(ArrayJobID="7", ArrayTaskID="1-3", JobID="x", State="PENDING"),
        squeue_line(ArrayJobID="x", ArrayTaskID="1", JobID="7", State="PENDING"),
        squeue_line(ArrayJobID="7", ArrayTaskID="1", JobID="7", State=""),
        squeue_line(ArrayJobID="7", ArrayTaskID="1", JobID="7")[:25],
        "\u0663" * 20 + squeue_line(ArrayTaskID="1", JobID="7", State="RUNNING")[20:],
    ],
)
def test_squeue_lines_of_another_form_are_left_out(line):
    """A line that is no task's row is none: it gives no state to anything."""
    good = squeue_line(ArrayJobID=7, ArrayTaskID=0, JobID=8, State="RUNNING", exit_code=0)
    assert [row.key for row in parse_squeue(f"{line}\n{good}\n{line}")] == [("7", 0)]


def test_squeue_line_cut_short():
    """A row without its last columns still says what it says; numbers that are none count as 0."""
    line = squeue_line(ArrayJobID=7, ArrayTaskID=1, JobID=8, State="RUNNING", exit_code=0, RestartCnt="many")
    (row,) = parse_squeue(line[: 20 * 3 + 24 + 16 + 10])
    assert (row.key, row.word, row.restarts, row.name) == (("7", 1), "RUNNING", 0, "")


@given(text=st.text() | st.text(alphabet="0123456789 _|[]%-,NA/PENDIGRU\n", max_size=600))
def test_any_text_is_read(text):
    """Whatever the commands print gives rows with ids of digits, and each of them a state."""
    for row in [*parse_squeue(text), *parse_sacct(text)]:
        assert re.fullmatch(r"[0-9]+", row.job)
        status = classify_row(row)
        assert not (alive(status.state) and ended(status.state))
    last_deaths(parse_sacct(text))


SACCT = """7_0|COMPLETED|0:0|n1|a
7_1|NODE_FAIL|0:0|n2|a
7_1|PENDING|0:0|None assigned|a
7_2|CANCELLED by 0|0:15|n1|a
7_[3-5,9%2]|PENDING|0:0|None assigned|a
7_6.batch|FAILED|1:0|n1|batch
\u0668_\u0660|RUNNING|0:0|n1|a
{huge}|RUNNING|0:0|n1|a
7_{huge}|RUNNING|0:0|n1|a
8|OUT_OF_MEMORY|0:125|n1|name|with|bars
9|FAILED
|||
"""


def test_sacct_rows():
    """Each life of each task; ranges of waiting tasks, steps and torn lines are left out."""
    rows = parse_sacct(SACCT.format(huge="7" * 5000))
    assert [(row.key, row.word) for row in rows] == [
        (("7", 0), "COMPLETED"),
        (("7", 1), "NODE_FAIL"),
        (("7", 1), "PENDING"),
        (("7", 2), "CANCELLED by 0"),
        (("8", 0), "OUT_OF_MEMORY"),
    ]
    assert rows[-1].name == "name|with|bars"
    assert last_deaths(rows) == {("7", 1): "after node failure on n2"}


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("0:0", (0, None)), ("75:0", (75, None)), ("0:9", (None, 9)), ("1:15", (None, 15)), ("0", (0, None)),
        ("19200", (75, None)), ("9", (None, 9)), ("139", (None, 11)), ("0:125", (None, 125)), ("0:53", (None, None)),
        ("4021", (None, None)),
        ("9" * 5000, (None, None)), ("9" * 5000 + ":0", (None, None)), ("\u0663:0", (None, None)),
        ("", (None, None)), ("x", (None, None)), ("-1", (None, None)), ("1:", (None, None)), ("1:2:3", (None, None)),
    ],
)  # fmt: skip
def test_exit_codes(code, wanted):
    """Both forms of an exit code, and nothing from what is none."""
    assert parse_exit(code) == wanted


@given(code=st.integers(0, 10**30).map(str) | st.text() | st.from_regex(r"\d{1,25}:\d{1,25}", fullmatch=True))
@example(code="127")
@example(code="65535")
def test_any_exit_code_is_read(code):
    """Huge or strange codes give at most one of code and signal, and no error."""
    number, by = parse_exit(code)
    assert number is None or by is None
    assert number is None or number >= 0
    assert by is None or 0 < by < 128


@pytest.mark.parametrize("word", sorted({*WAITING, *RUNNING, *ENDED}))
def test_known_words(word):
    """Words of squeue(1) are alive or ended, and never both or neither."""
    status = classify_row(row_of(word))
    assert alive(status.state) is (word in WAITING or word in RUNNING)
    assert ended(status.state) is (word in ENDED)
    assert classify_row(row_of(f"{word}+")).state is status.state


@given(word=st.text(min_size=1).filter(lambda word: word.split()[:1] != []))
@example(word="RUNNING2")
@example(word="running")
@example(word="COMPLETEDX by 0")
@example(word="SUPER_STATE")
@example(word="[RUNNING]")
def test_unknown_words_stay_unknown(word):
    """A word that Slurm's manual does not have is neither alive nor ended, and is shown."""
    first = word.split()[0].rstrip("+")
    if first in {*WAITING, *RUNNING, *ENDED}:
        return
    status = classify_row(row_of(word))
    assert status.state is State.UNKNOWN
    assert word in status.note


def test_ends():
    """How a task ended, with code or signal where they mean something, and who cancelled it."""
    assert classify_row(row_of("CANCELLED by 0", code="0:15")) == TaskStatus(State.CANCELLED, note="by user 0")
    assert classify_row(row_of("CANCELLED by \u0663")).state is State.CANCELLED
    assert classify_row(row_of("FAILED", code="75:0")) == TaskStatus(State.FAILED, exit_code=75)
    assert classify_row(row_of("FAILED", code="9")) == TaskStatus(State.FAILED, signal=9)
    assert classify_row(row_of("FAILED", code="256", reason="NonZeroExitCode")).note == ""
    for code in ("0:53", "4021"):
        assert "log folder" in classify_row(row_of("FAILED", code=code, reason="JobLaunchFailure")).note
    assert classify_row(row_of("FAILED", code="1:0", reason="Prolog")).note == "Prolog"
    assert classify_row(row_of("OUT_OF_MEMORY", code="0:125")) == TaskStatus(State.OUT_OF_MEMORY)
    assert classify_row(row_of("NODE_FAIL", code="1:0", node="n3")) == TaskStatus(
        State.LOST, node="n3", note="its node failed"
    )
    assert classify_row(row_of("TIMEOUT", code="0:0")).state is State.TIMEOUT
    assert classify_row(row_of("RUNNING", node="None assigned")).node == ""


@pytest.mark.parametrize(
    ("word", "reason", "stuck", "note"),
    [
        ("PENDING", "None", False, ""),
        ("PENDING", "Priority", False, "behind other jobs"),
        ("PENDING", "JobArrayTaskLimit", False, "for its turn among the run's tasks"),
        ("PENDING", "Dependency", False, "for the tasks"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", False, "for nodes that are not available now"),
        ("PENDING", "Moon_Phase", False, "Moon_Phase"),
        ("PENDING", "DependencyNeverSatisfied", True, "its dependency can never be satisfied"),
        ("PENDING", "JobHeldUser", True, "held by its user"),
        ("PENDING", "JobHeldAdmin", True, "held by Slurm or an administrator"),
        ("PENDING", "launch failed requeued held", True, "held after a requeue (launch failed requeued held)"),
        ("REQUEUE_HOLD", "", True, "held after a requeue (REQUEUE_HOLD)"),
        ("SPECIAL_EXIT", "x", True, "held after a requeue (x)"),
        ("REQUEUED", "", False, ""),
    ],
)
def test_why_a_task_waits(word, reason, stuck, note):
    """What a waiting task waits for, and whether it would wait for ever."""
    assert classify_row(row_of(word, reason=reason)) == TaskStatus(State.PENDING, stuck=stuck, note=note)


def test_why_a_task_waits_again():
    """After a requeue the wait says so, how often, and until when."""
    row = row_of("PENDING", reason="BeginTime", start="2026-01-01T00:02:00", restarts=2)
    assert classify_row(row).note == "requeued 2 times; waits to start again, not before 2026-01-01T00:02:00"
    assert classify_row(row_of("PENDING", reason="None", restarts=1)).note == "requeued 1 time"


def test_refused_submissions_are_no_jobs():
    """A record that slurmctld keeps of a submission it refused is told from a task that failed."""
    assert all(row_of("FAILED", reason=reason).refused for reason in STUCK)
    assert not row_of("FAILED", reason="NonZeroExitCode").refused
    assert not row_of("PENDING", reason="JobHeldUser").refused


def test_last_death_is_of_the_life_before():
    """Of several lives the last unnatural end before the present one counts; present ends and good ones do not."""
    rows = [row_of("PREEMPTED", node="n1"), row_of("NODE_FAIL", node="n2"), row_of("RUNNING", node="n3")]
    assert last_deaths(rows) == {("7", 0): "after node failure on n2"}
    assert last_deaths([row_of("NODE_FAIL", node="n2")]) == {}
    assert last_deaths([row_of("REQUEUED"), row_of("RUNNING")]) == {}
    assert last_deaths([row_of("TIMEOUT"), row_of("PENDING")]) == {("7", 0): "after the time limit"}


def test_job_records_of_old_runs_have_no_time():
    """A job that was written down without the time of its submission is read."""
    assert Job(kind="array", name="", id="1").submitted == 0
