"""Conditions on ISIC images: read, judged, and written in the site's search language without losing an image."""

from __future__ import annotations

import string
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.isic_conditions import OPERATORS, meets, parse_conditions
from pipeline.sources.isic_dsl import MAX_QUERY, join_queries, plan_selection, review_query
from pipeline.sources.isic_rows import flatten_image, read_image
from tests.sources.isic_search import BadQueryError, parse_query

ROW = {
    "isic_id": "ISIC_0000007",
    "public": True,
    "metadata.acquisition.pixels_x": 600,
    "metadata.acquisition.image_type": "dermoscopic",
    "metadata.clinical.age_approx": 45,
    "metadata.clinical.sex": "male",
    "metadata.clinical.melanocytic": False,
    "metadata.clinical.diagnosis_1": "Benign",
    "metadata.clinical.diagnosis_3": "Nevus, Spitz",
    "metadata.clinical.mel_thick_mm": Decimal("0.55"),
}


@pytest.mark.parametrize(
    ("condition", "holds", "query"),
    [
        (["diagnosis_1", "==", "Benign"], True, "diagnosis_1:Benign"),
        (["diagnosis_3", "==", "Nevus, Spitz"], True, 'diagnosis_3:"Nevus, Spitz"'),
        (["sex", "!=", "male"], False, "sex:* AND -sex:male"),
        (["anatom_site_1", "!=", "Trunk"], False, "anatom_site_1:* AND -anatom_site_1:Trunk"),
        (["age_approx", "<", 45], False, "age_approx:[* TO 45}"),
        (["age_approx", "<=", 45], True, "age_approx:[* TO 45]"),
        (["age_approx", ">", 44.5], True, "age_approx:{44.5 TO *]"),
        (["age_approx", ">=", 50], False, "age_approx:[50 TO *]"),
        (["mel_thick_mm", "==", 0.55], True, "mel_thick_mm:0.55"),
        (["mel_mitotic_index", "==", "<1/mm^2"], False, 'mel_mitotic_index:"<1/mm^2"'),
        (["sex", "in", ["female", "male"]], True, "sex:female OR sex:male"),
        (["sex", "not in", ["female"]], True, "sex:* AND -sex:female"),
        (["diagnosis_3", "ni", "Spitz"], True, ""),
        (["diagnosis_3", "not ni", "Spitz"], False, ""),
        (["diagnosis_3", "match", "^Nevus"], True, ""),
        (["diagnosis_3", "~", "(?i)spitz$"], True, ""),
        (["diagnosis_3", "not match", "x"], True, ""),
        (["diagnosis_3", "!~", "S"], False, ""),
        (["diagnosis_4", "!~", "S"], False, ""),
        (["melanocytic", "is", False], True, "melanocytic:false"),
        (["melanocytic", "is not", False], False, "melanocytic:* AND -melanocytic:false"),
        (["diagnosis_4", "is None"], True, "-diagnosis_4:*"),
        (["diagnosis_4", "is None", None], True, "-diagnosis_4:*"),
        (["sex", "is not None"], True, "sex:*"),
        (["sex", "not is None"], True, "sex:*"),
        (["sex", "==", None], False, "-sex:*"),
        (["pixels_x", ">", 500], True, ""),
        (["meta.acquisition.pixelsX", "==", 600], True, ""),
        (["metadata.clinical.sex", "==", "male"], True, "sex:male"),
        (["meta.clinical.benign_malignant", "==", "benign"], True, "diagnosis_1:Benign"),
        (["image_type", "==", "clinical"], False, 'image_type:"clinical: close-up"'),
        (["name", "==", "ISIC_0000007"], True, "isic_id:ISIC_0000007"),
        (["isic_id", "!=", "ISIC_0000008"], True, "-isic_id:ISIC_0000008"),
        (["diagnosis_3", "==", 'say "x"'], False, ""),
        (["diagnosis_3", "==", "a*"], False, ""),
        (["diagnosis_3", "==", "OR"], False, 'diagnosis_3:"OR"'),
        (["age_approx", ">", -1], True, ""),
    ],
)
def test_conditions(condition: list[Any], holds: bool, query: str) -> None:
    """Each operator judges a row as Python does, a missing value meets none, and the search says what it can."""
    selection = plan_selection([condition])
    assert selection.query.strip("()") == query
    assert selection.exact == bool(query)
    assert meets(selection.expression, ROW) == holds
    if query:
        assert parse_query(selection.query)(ROW) == holds
    assert plan_selection(condition) == selection


@pytest.mark.parametrize(
    ("conditions", "message", "hint"),
    [
        ([["diagnosys_1", "==", "x"]], "no field 'diagnosys_1'", "diagnosis_1"),
        ([["metadata.clinical.sexx", "==", "x"]], "no field", "sex"),
        ([["sex", "regexp", "x"]], "no operator 'regexp'", "match"),
        ([["sex", "=<", "x"]], "no operator", "operators|did you mean"),
        ([["sex", "==", "Male"]], "never 'Male'", "male"),
        ([["sex", "in", ["male", "men"]]], "never 'men'", "male"),
        ([["image_type", "!=", "TBP"]], "never 'TBP'", "TBP tile"),
        ([["meta.clinical.anatom_site_general", "==", "head/neck"]], "never 'head/neck'", "Head and neck"),
        ([["sex", "in", "male"]], "takes a list", r'\["a", "b"\]'),
        ([["sex", "in", []]], "empty list", "leave"),
        ([["sex", "==", True]], "is a text", "write"),
        ([["age_approx", ">", "50"]], "is a number", "without quotes"),
        ([["age_approx", "==", True]], "is a number", "without quotes"),
        ([["age_approx", "<", float("nan")]], "no number", ""),
        ([["age_approx", "match", "5"]], "is no text", "=="),
        ([["melanocytic", "==", "true"]], "true or false", "without quotes"),
        ([["melanocytic", "<", True]], "no order", "=="),
        ([["sex", "is", "male"]], "true, false and None", "=="),
        ([["sex", "match", "("]], "no regular expression", ""),
        ([["sex", "ni", ""]], "takes a text", ""),
        ([["sex", "=="]], "no value", "PATH"),
        ([["isic_id", "==", "ISIC_1"]], "no ISIC id", "ISIC_0000001"),
        ([["meta.clinical.nevus_type", "==", "x"]], "removed", "fields"),
        ([["dataset.name", "==", "HAM10000"]], "collections", ""),
        ([["meta.unstructured.x", "==", "x"]], "nobody", ""),
        ("sex", "a list", "PATH"),
        ([["sex", "==", "male"], "x"], "condition 2", "PATH"),
        ([[1, "==", "x"]], "no text", "PATH"),
        ([{"select": []}, {"drop": []}], "no step 'drop'", "steps"),
        ([{"add": [["sex", "==", "male"]]}], "step 1 is 'add'", "select"),
        ([{"select": []}, {"add": []}], "no conditions", "leave"),
        ([{"select": [["sex", "==", "x"]]}], r"step 1 \(select\): condition 1", "values|did you mean"),
    ],
)
def test_what_would_never_match_is_an_error(conditions: Any, message: str, hint: str) -> None:
    """No misspelling and no mismatch selects nothing in silence: exit code 78, with what was probably meant."""
    with pytest.raises(ConfigError, match=message) as caught:
        plan_selection(conditions)
    assert caught.value.exit_code == 78
    assert not hint or any(part in caught.value.hint.replace("\\", "") for part in hint.replace("\\", "").split("|"))


def test_values_that_the_site_has() -> None:
    """Facets widen what a field may have."""
    with pytest.raises(ConfigError, match="never"):
        plan_selection([["diagnosis_1", "==", "Unknown"]])
    assert plan_selection([["diagnosis_1", "==", "Unknown"]], {"diagnosis_1": ["Unknown"]}).exact
    with pytest.raises(ConfigError) as caught:
        plan_selection([["diagnosis_3", "==", "nevus"]], {"metadata.clinical.diagnosis_3": ["Nevus"]})
    assert caught.value.hint == "did you mean Nevus?"


def test_old_names_are_noted() -> None:
    """What is read as something else is said, once each."""
    old = ["diagnosis", "==", "melanoma"]
    selection = plan_selection([old, old, ["benign_malignant", "in", ["benign", "malignant"]], ["sex", "==", "male"]])
    first, second = selection.notes
    assert "diagnosis is read as diagnosis_3" in first
    assert "'benign' is read as 'Benign'" in second
    assert "'malignant' is read as 'Malignant'" in second


def test_steps() -> None:
    """Refine, add and remove are the algebra of sets, as tables, as pairs, or one by one."""
    male, old, benign = ["sex", "==", "male"], ["age_approx", ">", 50], ["diagnosis_1", "==", "Benign"]
    tables = plan_selection([{"select": [male]}, {"add": [old]}, {"refine": [["melanocytic", "is", True]]}])
    pairs = plan_selection([["select", [male]], ["add", [old]], ["refine", [["melanocytic", "is", True]]]])
    chained = plan_selection([male]).add([old]).refine([["melanocytic", "is", True]])
    assert tables == pairs == chained
    assert tables.query == "(sex:male OR age_approx:{50 TO *]) AND melanocytic:true"
    removed = plan_selection([male]).remove([benign, old])
    assert removed.query == "sex:male AND (-diagnosis_1:Benign OR -age_approx:{50 TO *])"
    assert meets(removed.expression, {**ROW, "metadata.clinical.age_approx": None})
    assert not meets(removed.expression, {**ROW, "metadata.clinical.age_approx": 60})
    everything = plan_selection([])
    assert (everything.query, everything.exact) == ("", True)
    assert everything.remove([["pixels_x", ">", 5]]).query == ""
    assert not everything.remove([["pixels_x", ">", 5]]).exact


def test_long_queries_are_cut() -> None:
    """What would not fit a request is decided here."""
    listed = [f"ISIC_{number:07d}" for number in range(1000)]
    selection = plan_selection([["isic_id", "in", listed], ["sex", "==", "male"]])
    assert (selection.query, selection.exact) == ("sex:male", False)
    assert meets(selection.expression, ROW)
    assert len(quote(plan_selection([["isic_id", "in", listed[:90]]]).query)) <= MAX_QUERY


TEXT = st.sampled_from(["a", "b c", "AND", "a*", '"', "é", "-x", "(", ""]) | st.text(string.printable, max_size=4)
CONDITION = st.one_of(
    st.tuples(st.sampled_from(["diagnosis_3", "patient_id"]), st.sampled_from(["==", "!=", "<", ">="]), TEXT),
    st.tuples(st.just("diagnosis_3"), st.sampled_from(["in", "not in"]), st.lists(TEXT, min_size=1, max_size=3)),
    st.tuples(st.just("sex"), st.sampled_from(["==", "!="]), st.sampled_from(["male", "female"])),
    st.tuples(
        st.sampled_from(["age_approx", "mel_thick_mm", "pixels_x"]),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.integers(-1, 4) | st.sampled_from([0.5, 2.25, 1e-9, 1e20]),
    ),
    st.tuples(st.just("melanocytic"), st.sampled_from(["is", "!="]), st.booleans()),
    st.tuples(st.sampled_from(["sex", "age_approx"]), st.sampled_from(["is None", "is not None"])),
    st.tuples(st.just("diagnosis_3"), st.sampled_from(["ni", "not ni"]), st.sampled_from(["a", "b"])),
).map(list)
STEPS = st.lists(
    st.tuples(st.sampled_from(["refine", "add", "remove"]), st.lists(CONDITION, min_size=1, max_size=3)), max_size=4
)
NUMBER = st.none() | st.integers(0, 4)
ROWS = st.fixed_dictionaries(
    {
        "metadata.clinical.diagnosis_3": st.none() | TEXT.filter(bool),
        "metadata.clinical.patient_id": st.none() | TEXT.filter(bool),
        "metadata.clinical.sex": st.sampled_from([None, "male", "female"]),
        "metadata.clinical.age_approx": NUMBER,
        "metadata.acquisition.pixels_x": NUMBER,
        "metadata.clinical.mel_thick_mm": st.none() | st.sampled_from([Decimal("0.50"), Decimal("2.25"), Decimal(3)]),
        "metadata.clinical.melanocytic": st.none() | st.booleans(),
    }
)


@given(st.lists(CONDITION, max_size=3), STEPS, st.lists(ROWS, min_size=1, max_size=5))
def test_the_search_loses_nothing(first: list[Any], steps: list[tuple[str, Any]], rows: list[dict[str, Any]]) -> None:
    """What the site finds has all that is wanted, nothing else if it is said to be exact, and algebra holds."""
    selection = plan_selection(first)
    wanted = [meets(selection.expression, row) for row in rows]
    for step, conditions in steps:
        selection = getattr(selection, step)(conditions)
        more = [meets(parse_conditions(conditions)[0], row) for row in rows]
        combine = {"add": lambda a, b: a or b, "refine": lambda a, b: a and b, "remove": lambda a, b: a and not b}[step]
        wanted = [combine(before, new) for before, new in zip(wanted, more, strict=True)]
    assert [meets(selection.expression, row) for row in rows] == wanted
    judge = parse_query(selection.query) if selection.query else lambda _: True
    for row, is_wanted in zip(rows, wanted, strict=True):
        assert judge(row) or not is_wanted
        assert not selection.exact or judge(row) == is_wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(JSON | st.lists(st.tuples(st.sampled_from(["sex", "age_approx", "public"]), st.sampled_from(OPERATORS), JSON)))
def test_anything_is_read_or_refused(conditions: Any) -> None:
    """Whatever a config holds is a selection or an error for its writer."""
    try:
        selection = plan_selection(conditions)
    except ConfigError:
        return
    meets(selection.expression, ROW)


def test_images_are_judged_as_rows() -> None:
    """An image meets what its row meets."""
    record = {"isic_id": "ISIC_0000001", "metadata": {"clinical": {"mel_thick_mm": "0.55", "sex": "male"}}}
    found = read_image(record)
    for condition in (["mel_thick_mm", "==", 0.55], ["sex", "==", "female"]):
        selection = plan_selection([condition])
        assert selection.matches(found) == meets(selection.expression, flatten_image(found))


@pytest.mark.parametrize(
    ("query", "remark"),
    [
        ("diagnosis:melanoma", "removed in May 2025"),
        ("anatom_site_general:x", "anatom_site_1"),
        ("sex:male and age_approx:50", "AND in capital"),
        ("age_approx:>50", r"[50 TO *]"),
        ("sex:'male'", "double quotes"),
        ('sex:"male', "not closed"),
        ("(sex:male", "parentheses"),
        ("sexx:male", "did you mean sex"),
        ("metadata.clinical.sex:male", "search for sex, not"),
        ("acquisition_day:5", "cannot be searched for"),
        ("melanoma", "field:value"),
        ("NOT sex:male", "write - before"),
        ("diagnosis_3:*x*", "one end only"),
        ("sex:Male", "male; female"),
        ("diagnosis_2:é", "double quotes"),
    ],
)
def test_queries_are_reviewed(query: str, remark: str) -> None:
    """What the site refuses, or finds nothing for, has a reason."""
    assert any(remark in each for each in review_query(query)), review_query(query)


@pytest.mark.parametrize(
    "query",
    [
        "",
        'diagnosis_1:Malignant AND age_approx:[50 TO *] AND image_type:"TBP tile: close-up"',
        "-sex:male (age_approx:{5 TO 10} OR public:true) copyright_license:CC-BY-NC",
        "image_type:clinical diagnosis_3:Mel* isic_id:ISIC_0000001",
        'mel_mitotic_index:"<1/mm^2"',
    ],
)
def test_good_queries_are_not_criticised(query: str) -> None:
    """No remarks on what is fine."""
    assert review_query(query) == []


@given(st.text(max_size=60))
def test_any_query_can_be_reviewed(query: str) -> None:
    """Remarks are texts, for anything."""
    assert all(isinstance(each, str) for each in review_query(query))


def test_queries_are_joined() -> None:
    """A user's query and that of conditions are both to be met."""
    assert join_queries("", " ") == ""
    assert join_queries("sex:male OR sex:female", "") == "sex:male OR sex:female"
    joined = join_queries("sex:male OR sex:female", "age_approx:50")
    assert not parse_query(joined)(ROW)
    with pytest.raises(BadQueryError):
        parse_query("sex:male and public:true")
