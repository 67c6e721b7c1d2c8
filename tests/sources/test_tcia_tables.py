"""Tables and lists of series as spreadsheets and people write them: delimiters, quotes, comments, odd rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.sources.tcia_inputs import read_series_list

ONE, TWO, THREE = (f"1.3.6.1.4.1.14519.5.2.1.7777.{number}" for number in (1, 2, 3))


def read(folder: Path, text: str, name: str = "list.csv") -> list[str]:
    """Write a file and read it as a list."""
    path = folder / name
    path.write_text(text)
    return list(read_series_list(path))


def refuse(folder: Path, text: str, name: str = "list.csv") -> str:
    """Write a file that is refused; what is said, with the hint."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, name)
    return f"{caught.value} -> {caught.value.hint}"


def test_a_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    """A file that ends in .tsv is, however many commas its first line has; so is a table whose tabs give the column."""
    text = f"Name, first, last, and more\tSeries UID\nA, B, C\t{ONE}\n"
    assert read(tmp_path, text, "list.tsv") == [ONE]
    assert read(tmp_path, text, "LIST.TSV") == [ONE]
    assert read(tmp_path, text, "list.txt") == [ONE]
    assert read(tmp_path, f"a;b;c,Series UID\n;;;,{ONE}\n", "list.csv") == [ONE]


@pytest.mark.parametrize("mark", ["sep=;", "SEP=;", '"sep=;"', "sep=;\r", " sep = ;"])
def test_the_first_line_of_excel(tmp_path: Path, mark: str) -> None:
    """Excel's line that names the delimiter is none of the table, and is obeyed."""
    text = f"Name, first, last;Series UID\nA;{ONE}\n"
    assert read(tmp_path, f"{mark}\n{text}") == [ONE]
    assert read(tmp_path, f"\ufeff{mark}\n{text}") == [ONE]
    assert read(tmp_path, f"# mine\n{mark}\n{text}") == [ONE]
    assert read(tmp_path, f"sep=,\nSeries UID,a;b;c\n{ONE},x\n") == [ONE]
    assert read(tmp_path, f"sep=\t\nSeries UID\ta,b,c\n{ONE}\tx\n") == [ONE]
    assert read(tmp_path, f"sep=;\n{ONE};{TWO}\n") == [ONE, TWO]
    assert "list.csv:3: 'hello'" in refuse(tmp_path, "sep=;\nSeries UID\nhello\n")


def test_quotes_that_do_not_close(tmp_path: Path) -> None:
    """The line where a quote opens is named; the lines after it are not swallowed, at the end of a file or within."""
    for text in (
        f'Series UID,d\n{ONE},"abc\n{TWO},def\n{THREE},"xyz"\n',
        f'Series UID,d\n{ONE},"abc\n{TWO},def\n{THREE},xyz"\n',
        f'Series UID,d\n{ONE},"abc\n{TWO},def\n',
        f'Series UID,d\n{ONE},"abc\n',
        f'Series UID,d\n"{ONE},abc\n{TWO},def\n',
        f'Series UID,d\n{ONE},"ab"c\n{TWO},def\n',
    ):
        said = refuse(tmp_path, text)
        assert "list.csv:2: not a table: " in said
        assert "quote" in said
    assert "list.csv:3: not a table" in refuse(tmp_path, f'# mine\n{ONE}\n"{TWO}\n{THREE}\n')
    assert "list.csv:2: not a table" in refuse(tmp_path, f'# mine\n"Series UID,d\n{ONE},\n')


def test_cells_of_several_lines(tmp_path: Path) -> None:
    """Text in quotes may have line ends, as long as no series hides in it."""
    assert read(tmp_path, f'd,Series UID\n"two\n\nlines, 0.5.1",{ONE}\n"x ""y""",{TWO}\n') == [ONE, TWO]


def test_any_number_of_comments(tmp_path: Path) -> None:
    """Comments at the top do not hide what a file is, however many there are; lines keep their numbers."""
    comments = "# said\n\n" * 500
    uuid = "0011aabb-1234-4321-9999-0123456789ab"
    assert read(tmp_path, f"{comments}Series UID\n{ONE}\n") == [ONE]
    assert read(tmp_path, f"{comments}{ONE}\n", "list.txt") == [ONE]
    assert read(tmp_path, f"{comments}manifestVersion=3.0\nListOfSeriesToDownload=\n{ONE}\n", "list.txt") == [ONE]
    assert read(tmp_path, f"{comments}cp s3://idc-open-data/{uuid}/* .\n", "list.txt") == [uuid]
    assert "list.csv:1002: 'hello'" in refuse(tmp_path, f"{comments}Series UID\nhello\n")
    assert "list.txt:1001: " in refuse(tmp_path, f"{comments}hello\n", "list.txt")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("hello", "letters"),
        ("1.2.x", "letters"),
        ("1" * 65, "65 characters"),
        ("1.2." + "3" * 70, "74 characters"),
        ("1..2", "two dots"),
        (".1.2", "begins with a dot"),
        ("1.2.", "ends with a dot"),
        ("12345", "no dot"),
        ("1.3E+45", "spreadsheet"),
        ("1,3E+45", "spreadsheet"),
        ("1.2.3 4.5", "space"),
        ("1.2.3/4", "'/'"),
    ],
)
def test_rows_that_are_no_uids_are_named(tmp_path: Path, word: str, why: str) -> None:
    """File and line are named, and what is wrong with the word, in every form of list."""
    for name, text in (
        ("m.tcia", f"ListOfSeriesToDownload=\n{ONE}\n{word}\n"),
        ("m.txt", f'{ONE}\n\n"{word}"\n'),
        ("m.csv", f'Series UID;x\n{ONE};1\n"{word}";2\n'),
        ("m.tsv", f"Series UID\tx\n{ONE}\t1\n{word}\t2\n"),
    ):
        if name == "m.tcia" and "," in word:
            continue
        said = refuse(tmp_path, text, name)
        assert f"{name}:3: " in said
        assert "is no UID" in said
        assert why in said


def test_all_rows_that_are_no_uids_are_told_at_once(tmp_path: Path) -> None:
    """One error names the lines of them all, the first with its word; of very many, only the first and their number."""
    said = refuse(tmp_path, f"Series UID\nhello\n{ONE}\nworld\n{'1' * 70}\n")
    assert "list.csv:2: 'hello' is no UID (letters); nor are lines 4, 5" in said
    said = refuse(tmp_path, f"{ONE}\n" + "x\n" * 5000)
    assert "nor are lines 3, 4, 5, 6, 7, 8, 9, 10, 11 and 4,990 more" in said
    said = refuse(tmp_path, f"hello\n{ONE}\n")
    assert "list.csv:1: " in said
    assert "'hello'" in said
