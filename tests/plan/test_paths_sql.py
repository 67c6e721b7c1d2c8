"""Paths that the database makes are the very ones that the template makes."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.plan.idc import plain_path_sql
from pipeline.plan.paths import FolderTemplate
from pipeline.settings import DEFAULT_PATH, ITEM_FIELDS

COLUMNS = ["collection_id", "PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID"]
signs = st.text(st.sampled_from("abZ09._-=+,@ %/\0\n\r\t'\"ä€{}$^\\"), max_size=8)
values = signs | st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.just("x" * 210)
rows = st.tuples(values, values, values, values, values)


@pytest.mark.parametrize(
    "template", [DEFAULT_PATH, "x-{Modality}-y_{PatientID}.{SeriesInstanceUID}/{SOPInstanceUID}.dcm"]
)
@given(row=rows)
@example(row=("c", "p", "1.2", "CT", "3.4"))
@example(row=("c", "p\n", "1.2", "C_T", "3.4"))
def test_the_database_takes_the_same_rows_for_plain_and_makes_the_same_paths(
    template: str, row: tuple[str, ...]
) -> None:
    """Whatever the values, condition and path in SQL agree with the template; NULL is never plain."""
    fill = FolderTemplate(template, ITEM_FIELDS)
    plain, path = plain_path_sql(fill, COLUMNS)
    with duckdb.connect() as database:
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        source = f"(SELECT * FROM (VALUES (?, ?, ?, ?, ?)) AS t({names}))"
        [(is_plain, made)] = database.execute(f"SELECT ({plain}) IS TRUE, {path} FROM {source}", list(row)).fetchall()
        assert is_plain == fill.is_plain(row)
        if is_plain:
            assert made == fill(row)
        query = f"SELECT ({plain}) IS TRUE FROM {source}"
        assert database.execute(query, [None, *row[1:]]).fetchall() == [(False,)] or "collection_id" not in plain
