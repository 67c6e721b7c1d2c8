"""What a selection of images means: collections, queries, lists, conditions, SQL and a limit, in few calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import SelectIsic
from pipeline.sources.isic_dsl import MAX_QUERY
from pipeline.sources.isic_inputs import check_id, read_conditions, read_ids
from pipeline.sources.isic_rows import Collection
from pipeline.sources.isic_select import Finder, choose_collections, plan_batches
from pipeline.sources.isic_table import ImageTable
from tests.sources.isic_archive import API, client, image_rows
from tests.sources.isic_archive import said as say
from tests.sources.isic_kit import SearchArchive
from tests.sources.test_tcia_http import _site  # noqa: F401 -- the fixture


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """Three hundred images; collections 1 (1-150), 2 (101-300) and 3 (none)."""
    made = SearchArchive(site)
    made.rows = image_rows(300)
    for number, (_, record) in enumerate(made.rows, 1):
        record["metadata"]["clinical"] |= {"age_approx": number % 90, "sex": "female" if number % 2 else "male"}
    made.add_collection(1, [f"ISIC_{number:07d}" for number in range(1, 151)])
    made.add_collection(2, [f"ISIC_{number:07d}" for number in range(101, 301)])
    made.add_collection(3, [])
    return made


class Selected:
    """What a selection gave."""

    def __init__(self, archive: SearchArchive, **wanted: Any) -> None:
        self.told: list[int] = []
        table = ImageTable()
        try:
            with client(archive) as isic:
                finder = Finder(isic, table, SelectIsic(**wanted), self.told.append)
                finder.find()
                finder.narrow()
            self.finder = finder
            rows = list(table.stream("SELECT isic_id FROM images JOIN chosen USING (n) ORDER BY n"))
            self.numbers = [int(name[5:]) for (name,) in rows]
            self.members = set(table.stream("SELECT isic_id, place FROM members"))
        finally:
            table.close()


def ids(*numbers: int) -> tuple[str, ...]:
    """ISIC ids."""
    return tuple(f"ISIC_{number:07d}" for number in numbers)


def test_everything(archive: SearchArchive) -> None:
    """No keys select all images, and progress is told page by page."""
    found = Selected(archive)
    assert found.numbers == list(range(1, 301))
    assert found.told == [100, 200, 300]
    assert found.members == set()


def test_collections(archive: SearchArchive) -> None:
    """Images of any of the collections, each once, in the config's order; all memberships are known."""
    found = Selected(archive, collections=("C2", "1", "2"))
    assert sorted(found.numbers) == list(range(1, 301))
    assert found.numbers[0] == 101
    assert [each.id for each in found.finder.collections] == [2, 1]
    assert len(found.members) == 350


def test_a_query_is_passed_on(archive: SearchArchive) -> None:
    """The site searches, in its own language; other keys hold, too."""
    found = Selected(archive, query="sex:female AND age_approx:[10 TO 12]", collections=("1",))
    assert found.numbers == [11, 101]
    assert all(each["query"].startswith("sex:female") for each in archive.listings())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("benign_malignant:benign", "diagnosis_1"),
        ("sex:male and sex:female", "capital letters"),
        ("(sex:male", "match"),
    ],
)
def test_a_refused_query_is_explained(archive: SearchArchive, query: str, said: str) -> None:
    """The site's 400 becomes the key, the query, and what may be wrong with it."""
    with pytest.raises(ConfigError) as caught:
        Selected(archive, query=query)
    assert str(caught.value).startswith(f"select.isic.query {query!r}: the site refuses it: ")
    assert "Could not parse" in str(caught.value)
    assert said in caught.value.hint


def test_names_of_collections() -> None:
    """A number or the exact name; a miss tells the nearest, a name of several their numbers."""
    known = [Collection(id=212, name="HAM10000"), Collection(id=7, name="B"), Collection(id=9, name="B")]
    known += [Collection(id=66, name="Challenge 2018: Task 3"), Collection(id=5, name="212")]
    assert [each.id for each in choose_collections(["HAM10000", "66", "212"], known)] == [212, 66]
    for wrong, said in (
        ("ham10000", "did you mean 'HAM10000' (212)"),
        ("HAM1000", "did you mean 'HAM10000' (212)"),
        ("2018", "'Challenge 2018: Task 3' (66)"),
        ("B", "the name of several: 7, 9"),
        ("9999", "no '9999'"),
        ("-1", "no '-1'"),
        ("", "no ''"),
    ):
        with pytest.raises(ConfigError) as caught:
            choose_collections([wrong], known)
        assert said in str(caught.value)


def test_a_list_takes_few_calls(archive: SearchArchive, tmp_path: Path) -> None:
    """A hundred ids are looked up by one query; what the list repeats counts once."""
    listed = tmp_path / "ids.txt"
    listed.write_text("# mine\n" + "".join(f"{name}\n" for name in ids(*range(250, 0, -1), 1, 2)))
    found = Selected(archive, ids_file=str(listed))
    assert sorted(found.numbers) == list(range(1, 251))
    assert len(archive.listings()) == 3
    assert found.finder.notes == [f"{listed}: 2 lines repeat an image, which is taken once"]


def test_typed_ids_must_be_there(archive: SearchArchive) -> None:
    """An unknown one is an error; one that other keys leave out is not unknown."""
    assert Selected(archive, ids=ids(5, 3)).numbers == [3, 5]
    with pytest.raises(
        ConfigError, match=r"select\.isic\.ids: 2 of 3 not in the ISIC Archive: ISIC_0000998, ISIC_0000999"
    ):
        Selected(archive, ids=ids(3, 998, 999))
    found = Selected(archive, ids=ids(1, 101, 250), collections=("1", "2"), query="age_approx:[0 TO 11]")
    assert (found.numbers, found.members) == ([1, 101], {("ISIC_0000001", 0), ("ISIC_0000101", 0), ("ISIC_0000101", 1)})
    with pytest.raises(ConfigError, match="is no ISIC id"):
        Selected(archive, ids=("ISIC_1",))


def test_unknown_ids_of_a_file_are_told(archive: SearchArchive, tmp_path: Path) -> None:
    """The plan goes on without them, unless none is there."""
    listed = tmp_path / "ids.csv"
    listed.write_text("image,target\nISIC_0000002_downsampled,1\nISIC_0000999.jpg,0\nISIC_0000001,1\n")
    found = Selected(archive, ids_file=str(listed))
    assert found.numbers == [1, 2]
    assert (found.finder.unknown.names, found.finder.unknown.asked) == (ids(999), 3)
    assert found.finder.notes == ["1 of 3 listed images are not in the ISIC Archive: ISIC_0000999"]
    assert Selected(archive, ids_file=str(listed), ids=ids(2)).numbers == [2]
    with pytest.raises(ConfigError, match="both in ids and in ids_file"):
        Selected(archive, ids_file=str(listed), ids=ids(7))
    listed.write_text("ISIC_0000999\n")
    with pytest.raises(ConfigError, match="1 of 1 listed images"):
        Selected(archive, ids_file=str(listed))


def test_where(archive: SearchArchive) -> None:
    """SQL over the columns, by their paths and by their names; a misspelt one costs no call."""
    found = Selected(archive, where="sex = 'male' AND \"metadata.clinical.age_approx\" < 5 AND mel_thick_mm = 0.55")
    assert found.numbers == [2, 4, 90, 92, 94, 180, 182, 184, 270, 272, 274]
    asked = len(archive.site.asked)
    with pytest.raises(ConfigError, match="did you mean sex"):
        Selected(archive, where="sexx = 'male'")
    with pytest.raises(ConfigError, match=r"select\.isic\.where"):
        Selected(archive, where="read_text('/etc/passwd') = ''")
    assert len(archive.site.asked) == asked


def test_old_conditions(archive: SearchArchive, tmp_path: Path) -> None:
    """A condition list of the old tools selects, the site searching as far as it can."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps([["meta.clinical.sex", "==", "female"], ["meta.clinical.age_approx", "<", 3]]))
    found = Selected(archive, conditions=str(path), collections=("1",))
    assert found.numbers == [1, 91]
    assert archive.listings()[0]["query"] == "sex:female AND age_approx:[* TO 3}"
    path.write_text('[["nonsense", "==", 1]]')
    with pytest.raises(ConfigError, match=r"select\.isic\.conditions .*nonsense"):
        Selected(archive, conditions=str(path))
    for text in ("[", "\0", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not JSON"):
            read_conditions(path)


def test_limit(archive: SearchArchive) -> None:
    """The first so many, and no page more than it takes; memberships are known all the same."""
    assert Selected(archive, limit=120).numbers == list(range(1, 121))
    assert len(archive.listings()) == 2
    found = Selected(archive, limit=110, collections=("1", "2"))
    assert found.numbers == list(range(1, 111))
    assert {name for name, place in found.members if place == 1} == set(ids(*range(101, 111)))
    assert Selected(archive, limit=3, where="sex = 'male'").numbers == [2, 4, 6]
    assert Selected(archive, limit=2, ids=ids(9, 8, 7)).numbers == [7, 8]
    assert len(Selected(archive, limit=1000).numbers) == 300


@pytest.mark.parametrize(("order", "limit"), [((2, 1, 4), 250), ((4, 2, 1), 140), ((1, 2, 4), 200), ((1, 4, 2), 1)])
def test_a_limit_loses_no_membership(archive: SearchArchive, order: tuple[int, ...], limit: int) -> None:
    """Wherever the limit ends the listing, all collections of the images that were taken are known."""
    archive.add_collection(4, list(ids(*range(20, 300, 2))))
    found = Selected(archive, limit=limit, collections=tuple(map(str, order)))
    assert len(found.numbers) == limit
    assert found.members == {
        (name, place)
        for place, number in enumerate(order)
        for name in archive.collections[number]
        if int(name[5:]) in found.numbers
    }


FACETS: dict[str, Any] = {
    "diagnosis_3": {"buckets": [{"key": "Melanoma", "doc_count": 3}, {"key": "Nevus", "doc_count": 9}]},
}


def test_values_of_conditions_are_checked(archive: SearchArchive, tmp_path: Path) -> None:
    """A value that no image of the archive has is an error with the nearest ones, for one question in all."""
    archive.site.on(f"{API}images/facets/", say(200, FACETS))
    for number, (_, record) in enumerate(archive.rows):
        record["metadata"]["clinical"]["diagnosis_3"] = "Melanoma" if number % 3 == 0 else "Nevus"
    path = tmp_path / "c.json"
    for wrong, near in (("melanoma", "did you mean Melanoma?"), ("Nevvus", "did you mean Nevus?"), ("x", "Melanoma;")):
        path.write_text(json.dumps([["meta.clinical.diagnosis", "==", wrong]]))
        with pytest.raises(ConfigError, match=rf"conditions .*: diagnosis_3 is never '{wrong}'") as caught:
            Selected(archive, conditions=str(path))
        assert near in caught.value.hint
    asked = len(archive.site.asked)
    path.write_text(json.dumps([["select", [["diagnosis_3", "in", ["Melanoma", "Nevus"]]]],
                                ["remove", [["diagnosis_3", "!=", "Nevus"]]]]))  # fmt: skip
    assert len(Selected(archive, conditions=str(path)).numbers) == 200
    assert archive.site.paths()[asked:].count(f"{API}images/facets/") <= 1
    path.write_text('[["sex", "==", "male"]]')
    asked = len(archive.site.asked)
    Selected(archive, conditions=str(path))
    assert f"{API}images/facets/" not in archive.site.paths()[asked:]


def test_values_that_cannot_be_checked(archive: SearchArchive, tmp_path: Path) -> None:
    """A site that does not say which values there are ends no selection; people are told what was not checked."""
    archive.rows[3][1]["metadata"]["clinical"]["diagnosis_3"] = "Nevus"
    path = tmp_path / "c.json"
    path.write_text('[["diagnosis_3", "==", "Nevus"], ["diagnosis_2", "is None"]]')
    found = Selected(archive, conditions=str(path))
    assert found.numbers == [4]
    (note,) = found.finder.notes
    assert "diagnosis_3" in note
    assert "could not be checked" in note
    path.write_text('[["diagnosis_3", "==", "nevus"]]')
    with pytest.raises(ConfigError, match="nothing selected") as caught:
        Selected(archive, conditions=str(path))
    assert "could not be checked" in caught.value.hint


def test_nothing_is_explained(archive: SearchArchive, tmp_path: Path) -> None:
    """The message tells after which key nothing was left."""
    with pytest.raises(ConfigError, match="nothing selected: 300 images listed, 0 after where"):
        Selected(archive, where="age_approx > 1000")
    with pytest.raises(ConfigError, match="nothing selected: 0 images listed"):
        Selected(archive, collections=("3",))
    path = tmp_path / "c.json"
    path.write_text('[["attribution", "==", "nobody"]]')
    with pytest.raises(ConfigError, match="300 images listed, 0 after conditions"):
        Selected(archive, conditions=str(path))


@given(st.lists(st.integers(0, 10**7 - 1), max_size=300), st.integers(0, 3900))
def test_batches_fit_into_a_url(numbers: list[int], length: int) -> None:
    """Every name is in one query, and no query is longer than what the site's router takes."""
    from urllib.parse import quote

    names = list(ids(*numbers))
    batches = list(plan_batches(names, "x" * length))
    assert [name for part, _ in batches for name in part] == names
    assert all(len(quote(query)) <= MAX_QUERY + 100 for _, query in batches)
    assert all(f"isic_id:{name}" in query for part, query in batches for name in part)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ISIC_0000001", "ISIC_0000001"),
        (" isic_0000001.JPG ", "ISIC_0000001"),
        ("ISIC_0000001_downsampled", "ISIC_0000001"),
        ("ISIC_1", ""),
        ("0000001", ""),
        ("", ""),
        ("ISIC_0000001 ISIC_0000002", ""),
    ],
)
def test_ids_as_people_write_them(text: str, found: str) -> None:
    """Names of files and of the challenges' downsampled images mean their image."""
    assert check_id(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("isic_id,x\nISIC_0000001,1\nISIC_0000002,2\n", (1, 2)),
        ("x;image_name\r\n1;ISIC_0000001\r\n", (1,)),
        ("\ufeffISIC_0000001\n\n#c\nISIC_0000002", (1, 2)),
        ("ISIC_0000001,ISIC_0000002\n", (1, 2)),
        ('"isic_id"\n"ISIC_0000001"\n', (1,)),
        ('image,c\nISIC_0000001,5" wide\nISIC_0000002,"a, ""b"""\n', (1, 2)),
        ('image,c\rISIC_0000001,"x"\rISIC_0000002,y', (1, 2)),
    ],
)
def test_files_of_ids(tmp_path: Path, text: str, found: tuple[int, ...]) -> None:
    """Lists and tables with a column of ids are read."""
    path = tmp_path / "x"
    path.write_text(text)
    assert tuple(read_ids(path)) == ids(*found)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "lists no images"),
        (b"a,b\n1,2\n", "no column of ISIC ids"),
        (b"isic_id\nISIC_0000001\nx\n", ":3: 'x' is no ISIC id"),
        (b"ISIC_0000001\n\0", "not text"),
        (b"PK\x03\x04", "ZIP"),
        (b"isic_id,x\n1\n", "is no ISIC id"),
        (b'image,c\nISIC_0000001,"5 mm\nISIC_0000002,\nISIC_0000003,\n', ":2: a quotation mark"),
        (b'image,c\nISIC_0000001,\nISIC_0000002,"5 mm\nISIC_0000003,\nISIC_0000004,4"\nISIC_0000005,\n', ":3: "),
        (b'image,c\n# x\nISIC_0000001,"a\nb"\n', ":3: a quotation mark"),
        (b'"image,c\nISIC_0000001,1\n', ":1: a quotation mark"),
        (b'image\n"ISIC_0000001"x\n', ":2: not a table"),
        (b"isic_id\n", "lists no images"),
        (b"isic_id,x\n\n# ISIC_0000001\n", "lists no images"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, data: bytes, said: str) -> None:
    """What cannot be meant is an error that names the file."""
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        list(read_ids(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text("ISC_01,\n\"'#", max_size=200).map(str.encode))
def test_no_file_breaks_the_reader(tmp_path: Path, data: bytes) -> None:
    """Whatever a file holds, it gives ids or a `ConfigError`."""
    path = tmp_path / "x"
    path.write_bytes(data)
    try:
        found = list(read_ids(path))
    except ConfigError:
        found = []
    assert all(check_id(name) == name for name in found)
