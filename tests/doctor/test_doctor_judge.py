"""Findings, suggestions, verdicts and the report, from facts alone."""

from __future__ import annotations

import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.doctor.records import (
    DoctorReport,
    choose_code,
    choose_error,
    choose_verdict,
    failure,
    good,
    make_report,
    warning,
)
from pipeline.doctor.render import render_report, render_suggestions
from pipeline.doctor.scratch import RunNeeds, ScratchFacts, classify_scratch, suggest_scratch
from pipeline.doctor.slurm import SlurmFacts
from pipeline.doctor.slurm_judge import classify_from_node, classify_slurm
from pipeline.doctor.slurm_texts import parse_associations, parse_partitions, parse_qos
from pipeline.doctor.suggest import suggest_slurm
from pipeline.schedulers.slurm_calls import parse_cluster
from tests.doctor.doctor_kit import CONFIG_TEXT, PARTITION_TEXT, levels, make_config


def facts(config: str = "", partitions: str = PARTITION_TEXT, assoc: str | None = None, **changes) -> SlurmFacts:
    """Facts of a cluster; `config` is added to what `scontrol show config` says."""
    return SlurmFacts(
        **{
            "found": True,
            "limits": parse_cluster(CONFIG_TEXT + config),
            "partitions": parse_partitions(partitions),
            "associations": None if assoc is None else parse_associations(assoc),
            "qos": None if assoc is None else parse_qos("normal|||\n"),
            "accounting_answers": True,
        }
        | changes
    )


def judged(config=None, shards=None, **changes):
    """What is said of such a cluster."""
    return classify_slurm(facts(**changes), config or make_config(), shards)


def test_a_good_cluster_is_well():
    """Nothing is wrong with a cluster that answers everything, and its limits are told."""
    found = judged(assoc="phys||normal|10|100\n", tests=(("task", True, "sbatch: Job 7 to start"),))
    assert set(levels(found)) == {"ok"}
    text = " ".join(finding.detail for finding in found)
    assert "up to 500 tasks" in text
    assert "10000" in text
    assert "(MaxSubmitJobs): 100" in text


def test_unknown_is_called_unknown():
    """Where sacctmgr does not answer, limits are unknown, never none."""
    (counts,) = [finding for finding in judged() if finding.what == "job counts"]
    assert "unknown" in counts.detail
    (counts,) = [finding for finding in judged(assoc="phys|||||\nphys||||\n") if finding.what == "job counts"]
    assert "not set" in counts.detail
    assert "unlimited" not in counts.detail


def test_no_slurm_is_fine_on_a_laptop():
    """Without Slurm the local scheduler works; only a config that asks things of Slurm gets a warning."""
    absent = SlurmFacts(found=False)
    assert levels(classify_slurm(absent, make_config(), None)) == ["ok"]
    assert levels(classify_slurm(absent, make_config(slurm={"partition": "x"}), None)) == ["warn"]
    assert levels(classify_from_node(absent)) == ["warn"]


def test_a_silent_controller_is_code_69():
    """Slurm that cannot be reached makes a run impossible."""
    found = classify_slurm(SlurmFacts(found=True, problem="timed out"), make_config(), None)
    assert choose_code(found) == 69


@pytest.mark.parametrize(
    ("slurm", "what", "level"),
    [
        ({"partition": "main"}, "partition main", "ok"),
        ({"partition": "main,short"}, "partition short", "warn"),
        ({"partition": "gpu"}, "partition gpu", "fail"),
        ({"partition": "short", "time": "1 h"}, "partition short", "warn"),
        ({"account": "chem"}, "account chem", "fail"),
        ({"account": "phys"}, "account phys", "ok"),
        ({"qos": "fast"}, "qos fast", "fail"),
        ({"qos": "normal"}, "qos normal", "ok"),
        ({"max_array": 501}, "arrays", "warn"),
    ],
)
def test_the_config_is_compared_with_the_cluster(slurm, what, level):
    """Names that the cluster does not have fail as bad config; times and counts that do not fit are warned of."""
    found = judged(make_config(slurm=slurm), assoc="phys||normal|10|100\n")
    assert level in levels(found, what)
    assert {"fail": 78}.get(level, 0) == choose_code(found)


def test_a_short_default_time_is_warned_of():
    """A partition that gives ten minutes to jobs that do not ask is no place for tasks that do not ask."""
    found = judged(make_config(slurm={"partition": "short"}))
    assert "warn" in levels(found, "partition short")
    assert any("10 min" in finding.detail for finding in found if finding.level == "warn")


def test_other_troubles_of_clusters():
    """No arrays, more shards than jobs allowed, a sacct that does not answer, cancelling preemption, a refused job."""
    assert choose_code(classify_slurm(facts(config="MaxArraySize = 0\n"), make_config(), None)) == 69
    assert levels(judged(shards=100, assoc="a|||10|100\n"), "job counts") == ["warn"]
    assert levels(judged(accounting_answers=False), "accounting") == ["warn"]
    assert levels(classify_slurm(facts(config="PreemptMode = CANCEL\n"), make_config(), None), "preemption") == ["warn"]
    assert choose_code(judged(tests=(("task", False, "allocation failure: no"),))) == 69
    assert levels(judged(partitions="PartitionName=main State=UP Default=NO\n"), "partition") == ["fail"]


NEEDS = RunNeeds(shards=3, largest_frame=10**9, largest_shard=5 * 10**9, total=15 * 10**9)
ROOMY, SMALL = 50 * 10**9, 3 * 10**9


def place(name: str, kind: str = "xfs", free: int = ROOMY, problem: str = "") -> ScratchFacts:
    """A place for scratch."""
    return ScratchFacts(name=name, path=f"/{name}", kind=kind, free=free, problem=problem)


def test_the_first_usable_scratch_is_taken():
    """Places on network file systems and in memory are passed by, and it is said why."""
    found = classify_scratch(
        [place("a", "nfs4"), place("b", "tmpfs"), place("c")], make_config().task, NEEDS, elsewhere=False
    )
    assert levels(found) == ["ok", "ok", "ok"]
    assert "network" in found[0].detail
    assert "memory" in found[1].detail
    assert "a task here takes it" in found[2].detail


def test_scratch_that_is_short():
    """Less than twice the largest frame is unusable, less than a task may use is warned of."""
    task = make_config().task
    assert choose_code(classify_scratch([place("a", free=10**9)], task, NEEDS, elsewhere=False)) == 73
    assert levels(classify_scratch([place("a", free=10**9)], task, NEEDS, elsewhere=True)) == ["ok", "warn"]
    assert levels(classify_scratch([place("a", free=SMALL)], task, NEEDS, elsewhere=False)) == ["warn"]
    assert levels(classify_scratch([place("a", free=SMALL)], task, None, elsewhere=False)) == ["warn"]
    assert levels(classify_scratch([place("a")], task, None, elsewhere=False)) == ["ok"]


def write_toml(suggestions) -> dict:
    """The suggested lines, read back."""
    return tomllib.loads("\n".join(render_suggestions(suggestions)))


def accept(suggestions) -> None:
    """Let the config parser read the suggested lines."""
    make_config(**write_toml(suggestions))


def test_suggested_lines_help_and_are_accepted():
    """What does not fit gets a line that does: partition, time, memory, tasks, scratch."""
    config = make_config(slurm={"partition": "gone"})
    made = suggest_slurm(facts(assoc="phys||normal|2|100\n"), config)
    assert write_toml(made) == {"slurm": {"partition": "main"}, "limits": {"tasks": 2}}
    accept(made)
    config = make_config(slurm={"partition": "short", "time": "1 h"})
    made = suggest_slurm(facts(), config)
    assert write_toml(made) == {"slurm": {"memory": "1024 MiB", "time": "30 min"}, "task": {"memory": "819 MiB"}}
    accept(made)
    made = suggest_scratch([place("a", "tmpfs")], [place('od"d\\'), place("s", free=9)], make_config().task, None)
    assert write_toml(made) == {"task": {"scratch": '/od"d\\'}}
    accept(made)
    made = suggest_scratch([place("a", free=SMALL)], [], make_config().task, NEEDS)
    assert write_toml(made) == {"task": {"scratch_bytes": "2 GB"}}
    accept(made)
    assert suggest_slurm(facts(assoc="phys||normal|10|100\n"), make_config()) == []
    assert suggest_scratch([place("a")], [], make_config().task, NEEDS) == []


HOSTILE = st.text(st.characters(codec=None), max_size=60)


@given(HOSTILE, HOSTILE, st.integers(0, 10**15), st.integers(1, 10**15))
def test_suggestions_are_valid_whatever_the_cluster_says(name, path, free, memory):
    """No name of a partition or folder, and no size, makes a suggested line that the config parser refuses."""
    text = f"PartitionName={name} State=UP MaxTime=00:45:00 DefaultTime=00:01:00 MaxMemPerNode={memory}\n"
    accept(suggest_slurm(facts(partitions=text), make_config()))
    spot = ScratchFacts(name="x", path=path or "/", kind="xfs", free=free)
    accept(suggest_scratch([], [spot], make_config().task, None))


def test_the_worst_code_wins():
    """78 before 77 before 73 before 69; warnings ask for none; the error at the end is of that class."""
    found = [warning("a", "w", "x"), *(failure("a", str(code), "x", "do", code) for code in (69, 73, 77, 78))]
    for count, code in ((5, 78), (4, 77), (3, 73), (2, 69), (1, 0)):
        assert choose_code(found[:count]) == code
        error = choose_error(make_report("h", "1", found[:count], []))
        assert (error.exit_code if error else 0) == code
    assert [choose_verdict(found[:1]), choose_verdict([]), choose_verdict(found)] == [
        "usable with warnings",
        "OK",
        "not usable",
    ]


def test_the_node_counts():
    """What fails on a node only makes the whole unusable, and its suggestion replaces the login node's."""
    here = suggest_scratch([], [place("here")], make_config().task, None)
    there = suggest_scratch([], [place("there")], make_config().task, None)
    node = make_report("n1", "1", [failure("scratch", "s", "none", "", 73)], there)
    whole = make_report("login", "1", [good("a", "b", "c")], here, node)
    assert (whole.code, whole.verdict) == (73, "not usable")
    assert [made.value for made in whole.suggestions] == ['"/there"']
    assert msgspec.json.decode(msgspec.json.encode(whole), type=DoctorReport) == whole
    assert "on the node n1" in "\n".join(render_report(whole))


@given(st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), max_size=5), st.sampled_from([80, 100]))
def test_the_report_is_plain_and_narrow(rows, width):
    """Every line is printable and no wider than asked, whatever was found."""
    found = [failure("group", what, detail, hint, 69) for what, detail, hint in rows]
    for line in render_report(make_report("host", "1", found, []), width):
        assert line == "" or line.isprintable()
        assert len(line) <= width


def test_a_finding_says_what_to_do():
    """A line has level, thing, detail and, after an arrow, what to do; continuation lines stand below the detail."""
    found = [warning("g", "thing", "is odd " * 20, "mend it"), good("g", "longer thing", "fine")]
    lines = render_report(make_report("host", "1", found, []))
    start = next(line for line in lines if line.startswith("  warn  thing:"))
    column = start.index("is odd")
    rest = lines[lines.index(start) + 1]
    assert rest[:column].strip() == ""
    assert rest[column] != " "
    assert next(line for line in lines if "longer thing" in line).index("fine") == column
    assert "-> mend it" in "\n".join(lines)
