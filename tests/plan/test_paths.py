"""Paths in the archive: safe whatever the values are, and never one path for two items."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.config_check import path_template_problems
from pipeline.plan.paths import FolderTemplate, archive_name, safe_component, shorten_component
from pipeline.settings import DEFAULT_PATH, ITEM_FIELDS

NASTY = [
    "", ".", "..", "...", "/", "//", "\0", "\n", "a\nb", "%", "%%", "%2F", "%~", "_", "__", "-", "-x", ".x", "~",
    "x" * 150, "x" * 200,
    "x" * 201, "x" * 300, "x" * 299 + "y", "é", "e\u0301", "\ud83d\ude00", "😀", "\udcff", "\ud800", "K", "k", "\u212a",
    " ", "a b", "A",
    "a", "%41", "con", "CON", "\\", ":", "*", "\x7f", "\x80", "CT_1", "CT", "1", "1_2", "2", "é" * 40, ".medhaul",
]  # fmt: skip
values = (
    st.sampled_from(NASTY)
    | st.text(st.characters(exclude_categories=[]), max_size=12)
    | st.text("ab_-.%/A2", max_size=6)
)
TEMPLATES = [
    DEFAULT_PATH,
    "{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
    "x/{collection}-{PatientID}_{SeriesInstanceUID}y/{SOPInstanceUID}.dcm",
    "{collection}A{PatientID}a{Modality}2{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
    "{Modality}F{StudyInstanceUID}/{PatientID}__{collection}.x.{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
    "{PatientID}/{PatientID}_{SeriesInstanceUID}/{Modality}-{PatientID}/{SOPInstanceUID}.dcm",
]


def used_fields(template: str) -> list[int]:
    """Positions of the fields that the folders of a template use."""
    folders = template.rpartition("/")[0]
    return [number for number, field in enumerate(ITEM_FIELDS) if f"{{{field}}}" in folders]


def assert_safe(component: str) -> None:
    """A component that every file system, tar and shell takes as it is."""
    assert re.fullmatch(r"[A-Za-z0-9._=+,@%~-]{1,200}", component)
    assert component not in {".", ".."}


@given(values, st.sampled_from(["", "_", "-", ".", "_-", "A", "2F", "%"]))
def test_a_component_is_always_safe_and_decodes_to_its_value(value: str, separators: str) -> None:
    """The encoding is lossless, so two values never become one, and holds none of the signs that separate values."""
    component = safe_component(value, separators)
    assert_safe(shorten_component(component))
    assert component[0] not in ".-"
    bare = re.sub(r"%[0-9A-F]{2}", "", component)
    assert not set(bare) & set(separators) - {"%"}
    if value:
        decoded = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), component.encode())
        assert decoded.decode("utf-8", "surrogatepass") == value.encode("utf-16", "surrogatepass").decode(
            "utf-16", "surrogatepass"
        ) or decoded == value.encode("utf-8", "surrogatepass")
    else:
        assert component == "%"


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
def test_two_items_never_share_a_folder(template: str, data: st.DataObject) -> None:
    """Different values of the template's fields give different folders, whatever the values hold."""
    fill = FolderTemplate(template, ITEM_FIELDS)
    used = used_fields(template)
    one = data.draw(st.lists(values, min_size=5, max_size=5))
    two = list(one)
    for position in data.draw(st.sets(st.sampled_from(used), min_size=1)):
        two[position] = data.draw(values)
    assume([one[n] for n in used] != [two[n] for n in used])
    assert fill(one) != fill(two)


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
def test_moving_a_separator_between_values_never_merges_them(template: str, data: st.DataObject) -> None:
    """A text split in two at one place or another around what joins the values gives two folders."""
    fill = FolderTemplate(template, ITEM_FIELDS)
    component = data.draw(
        st.sampled_from([c for c in template.split("/")[:-1] if c.count("{") > 1] or ["{collection}"])
    )
    names = re.findall(r"\{(\w+)\}", component)
    joins = re.split(r"\{\w+\}", component)[1:-1] or ["_"]
    pieces = data.draw(st.lists(st.sampled_from(["a", "1", *joins, *joins]), min_size=3, max_size=8))
    cuts = st.integers(0, len(pieces))
    folders = {}
    for cut in (data.draw(cuts), data.draw(cuts)):
        row = ["x"] * 5
        row[ITEM_FIELDS.index(names[0])] = "".join(pieces[:cut])
        row[ITEM_FIELDS.index(names[-1])] = "".join(pieces[cut:])
        folders.setdefault(fill(row), set()).add(tuple(row[n] for n in used_fields(template)))
    assert all(len(rows) == 1 for rows in folders.values())


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.lists(values, min_size=5, max_size=5))
def test_a_folder_has_the_template_s_depth_and_only_safe_components(template: str, row: list[str]) -> None:
    """No value adds or removes a level, or makes a component that is not safe."""
    components = FolderTemplate(template, ITEM_FIELDS)(row).split("/")
    assert len(components) == template.count("/")
    for component in components:
        assert_safe(component)


@given(
    st.lists(st.text("abcXYZ019.=+,@", min_size=1, max_size=30).filter(lambda t: t[0] != "."), min_size=5, max_size=5)
)
def test_plain_values_stand_as_they_are(row: list[str]) -> None:
    """People find their patients by the names they know."""
    folder = FolderTemplate(DEFAULT_PATH, ITEM_FIELDS)(row)
    assert folder == f"{row[0]}/{row[1]}/{row[2]}/{row[3]}_{row[4]}"


@example(["TCGA-BRCA", "TCGA-BRCA"])
@example(["tcga_brca", "TCGA_brca"])
@example(["a b", "a_b"])
@example(["CC BY 4.0", "CC-BY 4.0"])
@example(["x" * 101, "x" * 102])
@example(["", "_"])
@given(st.lists(values | st.text("aA bB_.-", max_size=5), min_size=2, max_size=2))
def test_two_groups_never_share_an_archive_name(groups: list[str]) -> None:
    """Groups that differ only in case or signs have archives of their own, on file systems without case too."""
    one, two = (archive_name("{group}", group) for group in groups)
    assert (one.lower() == two.lower()) == (groups[0] == groups[1])


@given(values)
def test_nor_with_a_group_that_looks_like_another_one_s_archive_name(group: str) -> None:
    """A group named as another group's archive is named gets another name."""
    name = archive_name("{group}", group)
    assume(name != group)
    assert archive_name("{group}", name) != name


@given(values)
def test_an_archive_name_is_plain(group: str) -> None:
    """Names that people type: lower case, no sign first, short enough for every suffix."""
    name = archive_name("x{group}", group)
    assert re.fullmatch(r"x[a-z0-9][a-z0-9._-]{0,109}", name)


@pytest.mark.parametrize("group", ["tcga_brca", "nsclc-radiomics", "ct4harmonization", "a.b"])
def test_a_plain_group_is_its_archive_s_name(group: str) -> None:
    """Nearly all collections are named so that nothing has to be changed."""
    assert archive_name("{group}", group) == group


@pytest.mark.parametrize("template", TEMPLATES)
def test_good_templates_have_no_problem(template: str) -> None:
    """The templates that the other tests use may be configured."""
    assert path_template_problems(template) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "SeriesInstanceUID"),
        ("{SeriesInstanceUID}", "must end in"),
        ("{SOPInstanceUID}.dcm", "folders need"),
        ("{collection}/{SOPInstanceUID}.dcm", "folders need"),
        ("{SeriesInstanceUID}/{SOPInstanceUID}", "must end in"),
        ("{SeriesInstanceUID}/x/../{SOPInstanceUID}.dcm", "component"),
        ("{SeriesInstanceUID}/./{SOPInstanceUID}.dcm", "component"),
        ("/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "component"),
        ("{SeriesInstanceUID}//{SOPInstanceUID}.dcm", "component"),
        (".medhaul/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "component"),
        (".{collection}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "component"),
        ("-{collection}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "component"),
        ("{SOPInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "only in the last"),
        ("{Modality}{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "separator"),
        ("{Colour}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "unknown field {Colour}"),
        ("{}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "unknown field"),
        ("{{x}}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "may hold"),
        ("{x/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "may hold"),
        ("a b/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "may hold"),
        ("a%/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "may hold"),
        ("é/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "may hold"),
        ("{SeriesInstanceUID}\n/{SOPInstanceUID}.dcm", "may hold"),
        ("x" * 201 + "/{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "long"),
        ("x/" * 200 + "{SeriesInstanceUID}/{SOPInstanceUID}.dcm", "long"),
    ],
)
def test_an_impossible_template_is_told_why(template: str, said: str) -> None:
    """Each problem is named in words."""
    assert said in "; ".join(path_template_problems(template))


@given(st.text(max_size=60) | st.text("{}/._-xSOPInstanceUID", max_size=60))
def test_no_template_breaks_the_check(template: str) -> None:
    """Whatever text stands in a config, the check answers; and what it passes, works."""
    if not path_template_problems(template):
        assert FolderTemplate(template, ITEM_FIELDS)(["a"] * 5)
