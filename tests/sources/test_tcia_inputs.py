"""Lists of series from files: every form that people have, and whatever else a file may hold."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.tcia_inputs import read_series_list
from pipeline.sources.tcia_lines import MAX_LINE

ONE, TWO = "1.3.6.1.4.1.14519.5.2.1.7777.1", "1.3.6.1.4.1.14519.5.2.1.7777.2"
UUID = "0011aabb-1234-4321-9999-0123456789ab"
HEAD = """downloadServerUrl=https://public.cancerimagingarchive.net/nbia-download/servlet/DownloadServlet
includeAnnotation=true
noOfrRetry=4
databasketId=manifest-1600709154662.tcia
manifestVersion=3.0
ListOfSeriesToDownload=
"""


def read(folder: Path, data: bytes | str, name: str = "list.txt") -> list[str]:
    """Write a file and read it as a list."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_series_list(path))


@pytest.mark.parametrize(
    "text",
    [
        HEAD + f"{ONE}\n{TWO}\n",
        HEAD + f"{ONE}\n{TWO}",
        (HEAD + f"{ONE}\n{TWO}\n").replace("\n", "\r\n"),
        (HEAD + f"{ONE}\n{TWO}\n").replace("\n", "\r"),
        "\ufeff" + HEAD + f"{ONE},\n{TWO},\n",
        HEAD + f"\n# two of them\n{ONE}  \n\n ! odd\n\t{TWO}\n\n\n",
        HEAD.replace("public.", "nbia.").replace("manifest-1600709154662.tcia", "x") + f"{ONE}\n{TWO}",
        HEAD.replace("manifestVersion=3.0", "manifestVersion=3.0\ndataType=DICOM") + f"{ONE}\n{TWO}",
        f"9.9.9\n8.8.8\nListOfSeriesToDownload={ONE}\n{TWO}\n",
        f"# a comment\n\nListOfSeriesToDownload = {ONE},{TWO}\n",
        f"ListOfSeriesToDownload=\n{ONE}\n" + HEAD + f"{TWO}\n",
    ],
)
def test_tcia_manifests(tmp_path: Path, text: str) -> None:
    """UIDs are what follows the first ListOfSeriesToDownload=, whatever stands before it and however lines end."""
    assert read(tmp_path, text, "m.tcia") == [ONE, TWO]
    assert read(tmp_path, text, "m.txt") == [ONE, TWO]
    assert read(tmp_path, text.encode("utf-16"), "m.tcia") == [ONE, TWO]


def test_a_tcia_manifest_of_other_data_is_told(tmp_path: Path) -> None:
    """A data type other than DICOM is noted with its line."""
    path = tmp_path / "m.tcia"
    path.write_text(f"dataType=PATHOLOGY\nListOfSeriesToDownload=\n{ONE}\n")
    listed = read_series_list(path)
    assert list(listed) == [ONE]
    assert listed.notes == [f"{path}:1: dataType=PATHOLOGY: only DICOM series are hauled"]


@pytest.mark.parametrize(
    "word", ["1..2", "abc", "1.2\x07", "1.2.3 4.5", "\u0661.\u0662", "1" * 65, ".1.2", "x=1", "'; DROP", "1"]
)
def test_what_is_no_uid_is_named_with_its_line(tmp_path: Path, word: str) -> None:
    """A word among the UIDs that is none is an error with file and line, in a manifest, a list and a table."""
    for name, text in (
        ("m.tcia", f"ListOfSeriesToDownload=\n{ONE}\n{word}\n"),
        ("m.txt", f"{ONE}\n\n{word}\n"),
        ("m.csv", f"Series UID,x\n{ONE},1\n{word},2\n"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}:3: .* is no UID"):
            read(tmp_path, text, name)


def test_a_spreadsheet_that_spoilt_uids_is_guessed(tmp_path: Path) -> None:
    """A UID that became a number is refused with a hint at the likely cause."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"SeriesInstanceUID\n{ONE}\n1.3E+45\n")
    assert "spreadsheet" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        f"cp s3://idc-open-data/{UUID}/* .",
        f"cp --if-size-differ --show-progress 's3://idc-open-data/{UUID}/*' '/data/a b'",
        f"cp gs://public-datasets-idc/{UUID}/* ./x",
        f"s5cmd --no-sign-request cp s3://idc-open-data-cr/{UUID}/* s3://mine/there/",
        f"sync s3://idc-open-data/{UUID.upper()}/ .",
    ],
)
def test_s5cmd_manifests(tmp_path: Path, line: str) -> None:
    """Folders are what is copied from, by whichever command and bucket; comments and blank lines are passed over."""
    path = tmp_path / "m.s5cmd"
    path.write_text(f"# made by the portal\n\n{line}\r\n")
    listed = read_series_list(path)
    assert (listed.kind, list(listed)) == ("idc", [UUID])
    path = path.rename(tmp_path / "m.txt")
    assert read_series_list(path).kind == "idc"


@pytest.mark.parametrize("line", [f"cp s3://b/{UUID}/x.dcm .", "cp s3://b/folder/* .", "rm -rf /", f"cp {UUID} ."])
def test_s5cmd_lines_that_copy_no_series(tmp_path: Path, line: str) -> None:
    """A line that copies something else is refused with its number."""
    with pytest.raises(ConfigError, match=r"m\.s5cmd:2: .* copies no series"):
        read(tmp_path, f"cp s3://b/{UUID}/* .\n{line}\n", "m.s5cmd")


@pytest.mark.parametrize(
    "name", ["SeriesInstanceUID", "Series UID", "series id", "SERIES INSTANCE UID", '"Series UID"']
)
@pytest.mark.parametrize("sign", [",", "\t", ";"])
def test_tables_by_any_spelling(tmp_path: Path, name: str, sign: str) -> None:
    """The column is found by each of TCIA's spellings, in any case, wherever it stands, in CSV and TSV."""
    text = f'{sign.join(["Subject ID", name, "imageUrl"])}\nP{sign}{ONE}{sign}http://x\n\n"P{sign} 1"{sign}{TWO}\n'
    assert read(tmp_path, text, "t.csv") == [ONE, TWO]
    assert read(tmp_path, ("\ufeff" + text).replace("\n", "\r\n").encode("utf-16"), "t.csv") == [ONE, TWO]


def test_series_uid_wins_among_columns(tmp_path: Path) -> None:
    """Where a table has two such columns, the full name is meant."""
    assert read(tmp_path, f"Series ID,SeriesInstanceUID\n7,{ONE}\n") == [ONE]


def test_rows_without_a_uid_are_told(tmp_path: Path) -> None:
    """Rows of other things in a mixed table are counted in a note, not lost quietly."""
    path = tmp_path / "t.csv"
    path.write_text(f"SeriesInstanceUID,drs_uri\n{ONE},\n,drs://x\n,drs://y\n,\n")
    listed = read_series_list(path)
    assert list(listed) == [ONE]
    assert listed.notes == [f"{path}: 2 rows have no SeriesInstanceUID and are left out"]


@pytest.mark.parametrize("column", ["imageUrl", "wsiimage_url", "drs_uri", "File ID"])
def test_tables_of_other_things_are_refused(tmp_path: Path, column: str) -> None:
    """A manifest whose only way to files is none of DICOM series says so."""
    with pytest.raises(ConfigError, match=rf"lists no DICOM series: .* only {column}"):
        read(tmp_path, f"name,{column}\na,b\n", "t.csv")


def test_a_table_without_the_column_names_what_it_has(tmp_path: Path) -> None:
    """The error lists the headings."""
    with pytest.raises(ConfigError, match=r"no column of SeriesInstanceUIDs.*'Study UID', 'Modality'"):
        read(tmp_path, "Study UID,Modality\n1.2,CT\n")


def test_plain_lists(tmp_path: Path) -> None:
    """One UID a line, quoted, with a comma at the end or several in a line; comments are none."""
    assert read(tmp_path, f'# mine\n{ONE}\n"{TWO}"\n') == [ONE, TWO]
    assert read(tmp_path, f"{ONE},\n{TWO},\n") == [ONE, TWO]
    assert read(tmp_path, f"{ONE},{TWO}") == [ONE, TWO]
    assert read(tmp_path, f"'{ONE}'\n") == [ONE]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04rest", "save the table as CSV"),
        (b"\xd0\xcf\x11\xe0old", "save the table as CSV"),
        (b"\x1f\x8bzip", "unpack it"),
        (b"PAR1", "save the table as CSV"),
        (b"", "empty"),
        (b"\n\n \n", "empty"),
        (b"1.2\x003.4\n", "bytes of value 0"),
        (f"{ONE}\n".encode("utf-16-le"), "bytes of value 0"),
        (b"x" * (MAX_LINE + 1), "more than 1048576 characters"),
        (f'Series UID\n"{ONE}\n'.encode(), "not a table"),
        (f'Series UID\n"{ONE}"x\n'.encode(), "not a table"),
        (f'Series UID\n"{"a" * 200_000}"\n'.encode(), "not a table"),
        (bytes(range(128, 256)) * 10, "no column"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, data: bytes, said: str) -> None:
    """Spreadsheets, archives, binaries, endless lines and broken quotes are refused in words."""
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, data)
    assert str(tmp_path / "list.txt") in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A folder, a pipe and a name that is not there are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path, "no plain file"), (tmp_path / "pipe", "no plain file"), (tmp_path / "x", "No such")):
        with pytest.raises(ConfigError, match=said):
            read_series_list(path)
    with pytest.raises(ConfigError, match="no line ListOfSeriesToDownload="):
        read(tmp_path, f"manifestVersion=3.0\n{ONE}\n", "m.tcia")


def test_a_million_rows_pass_through_little_memory(tmp_path: Path) -> None:
    """Memory does not grow with the length of a list."""
    path = tmp_path / "many.csv"
    with path.open("w") as out:
        out.write("Subject ID,Series UID\n")
        out.writelines(f"P,1.3.6.1.4.1.14519.5.2.1.{n}\n" for n in range(1_000_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_series_list(path)) == 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@given(data=st.binary(max_size=300), suffix=st.sampled_from([".tcia", ".s5cmd", ".csv", ""]))
def test_any_bytes_are_a_list_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    """Whatever a file holds, names come out that are UIDs or folders, or a `ConfigError`."""
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        for name in read_series_list(path):
            assert set(name) <= set("0123456789.abcdef-")


def test_cells_may_begin_as_comments_do(tmp_path: Path) -> None:
    """A row of a table counts, whatever its first cell begins with; comments before the header are still skipped."""
    path = tmp_path / "list.csv"
    path.write_text("# made by hand\nSeriesDescription,SeriesInstanceUID\n#1 axial,1.2.1\nlung,1.2.2\n# 3,1.2.3\n")
    assert list(read_series_list(path)) == ["1.2.1", "1.2.2", "1.2.3"]
