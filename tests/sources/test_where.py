"""`where`: what computes passes, everything else is refused in one line."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.where import MAX_LENGTH, check_where

COLUMNS = {
    "Modality": "VARCHAR",
    "PatientAge": "VARCHAR",
    "StudyDate": "VARCHAR",
    "instanceCount": "BIGINT",
    "series_size_MB": "DOUBLE",
    "odd name": "VARCHAR",
    "nested": "STRUCT(part INTEGER)",
}
ROWS = [
    ("CT", "061Y", "2001-02-03", 120, 60.5, "x", {"part": 1}),
    ("MR", "007Y", "1999-12-31", 30, 5.0, "y", {"part": 2}),
    ("SEG", None, None, 1, None, None, None),
]


def selected(sql: str) -> list[str]:
    """The modalities of the rows that a condition selects."""
    with duckdb.connect() as database:
        made = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        database.execute(f"CREATE TABLE t ({made})")
        for row in ROWS:
            database.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", list(row))
        return [row[0] for row in database.execute(f"SELECT Modality FROM t WHERE {sql} ORDER BY 1").fetchall()]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Modality = 'CT'", ["CT"]),
        ("MODALITY ilike 'c_'", ["CT"]),
        ("Modality IN ('CT', 'MR')", ["CT", "MR"]),
        ("Modality NOT IN ('CT')", ["MR", "SEG"]),
        ("instanceCount BETWEEN 2 AND 50", ["MR"]),
        ("regexp_matches(Modality, '^[CM]')", ["CT", "MR"]),
        ("CASE WHEN Modality = 'CT' THEN true ELSE instanceCount = 1 END", ["CT", "SEG"]),
        ("CAST(StudyDate AS DATE) >= DATE '2000-01-01'", ["CT"]),
        ("year(StudyDate::DATE) = 1999", ["MR"]),
        ("TRY_CAST(left(PatientAge, 3) AS INTEGER) > 60", ["CT"]),
        ("PatientAge IS NULL", ["SEG"]),
        ("PatientAge IS NOT NULL AND NOT Modality = 'MR'", ["CT"]),
        ("series_size_MB * 1e6 / instanceCount > 200000", ["CT"]),
        ("(Modality = 'CT') OR (Modality = 'MR')", ["CT", "MR"]),
        ("Modality = 'a;b--c/*?' OR Modality LIKE 'S%'", ["SEG"]),
        ("Modality NOT LIKE 'S%' ESCAPE '!'", ["CT", "MR"]),
        ("PatientAge IS DISTINCT FROM '061Y'", ["MR", "SEG"]),
        ("coalesce(\"odd name\", '') = ''", ["SEG"]),
        ("nullif(Modality, 'CT') IS NULL", ["CT"]),
        ("split_part(PatientAge, 'Y', 1) = '007'", ["MR"]),
        ("Modality COLLATE NOCASE = 'ct'", ["CT"]),
        ("nested.part = 2", ["MR"]),
        ("list_contains(['CT', 'SEG'], Modality)", ["CT", "SEG"]),
        ("Modality = 'Ä ☃'", []),
        ("instanceCount > 1\n  AND instanceCount < 100", ["MR"]),
    ],
)
def test_sensible_conditions_select(expression: str, expected: list[str]) -> None:
    """A sensible condition passes and selects the rows that it says."""
    assert selected(check_where(expression, COLUMNS).sql) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "1=1); DROP TABLE x; --",
        "1=1) OR (1=1",
        "1=1), (1=1",
        "1=1, 2=2",
        "true) FROM source WHERE (true",
        "true) FILTER (WHERE (true)",
        "true) UNION SELECT (true",
        "(1=1",
        "1=1)",
        "1=1 -- comment",
        "1=1 /* comment",
        "/* */ 1=1",
        "Modality; SELECT 1",
        "SELECT 1",
        "true ORDER BY 1",
        "true LIMIT 1",
        "DISTINCT true",
        "ALL true",
        "x := true",
        "Modality AS x",
        "EXISTS(SELECT 1)",
        "EXISTS(FROM duckdb_settings())",
        "(SELECT 1)",
        "(SELECT true)",
        "Modality = (FROM duckdb_settings())",
        "Modality IN (SELECT 'CT')",
        "Modality = ANY(SELECT 'CT')",
        "read_text('/etc/passwd') IS NOT NULL",
        "len(read_blob('/etc/passwd')) > 0",
        "'/etc/passwd' IN (FROM read_text('/etc/passwd'))",
        "getenv('HOME') <> ''",
        "current_setting('threads') = '1'",
        "getvariable('x') = 1",
        "current_user = 'x'",
        "current_database() = 'memory'",
        "version() = 'x'",
        "random() < 0.5",
        "uuid() <> ''",
        "gen_random_uuid() IS NOT NULL",
        "now() > '2001-01-01'",
        "current_date > '2001-01-01'",
        "today() > '2001-01-01'",
        "age('2001-01-01'::TIMESTAMP) > INTERVAL 1 DAY",
        "hash(Modality) = 1",
        "nextval('x') = 1",
        "write_log('x') IS NULL",
        "error('x')",
        "query('SELECT 1') = 1",
        "query_table('source') = 1",
        "json_execute_serialized_sql('x') = 1",
        "pragma_version() = 1",
        "COLUMNS(*)",
        "COLUMNS('M.*') = 'CT'",
        "*",
        "source.*",
        "?",
        "Modality = ?",
        "$1",
        "Modality = $name",
        "#1",
        "count(*) > 1",
        "sum(instanceCount) > 1",
        "max(Modality) = 'CT'",
        "string_agg(Modality) = 'CT'",
        "row_number() OVER () = 1",
        "sum(instanceCount) OVER (PARTITION BY Modality) > 1",
        "unnest([true])",
        "list_filter([1], x -> x > 0) = [1]",
        "list_filter([1], lambda x: x > 0) = [1]",
        "rowid = 1",
        "file_row_number = 1",
        "source.Modality = 'CT'",
        "other.schema.Modality = 'CT'",
        "DEFAULT",
        "Modality",
        "NULL",
        "1",
        "instanceCount + 1",
        "instanceCount +",
        "Modality > DATE '2001-01-01' + 'x'",
        "sqrt(Modality) = 1",
        "CAST(Modality AS no_such_type) = 1",
        "Modality COLLATE no_such_collation = 'x'",
        "no_such_function(Modality)",
        "regexp_matches(Modality, '(')",
        "☃",
        "\u202eCT = 'x'",
        "Modality = '\x00'",
        "Modality = '\ud800'",
        "Modality = 'unclosed",
        'Modality = "CT"',
        "x" * 1_000_000,
        "1=1" + " AND 1=1" * MAX_LENGTH,
        "(" * 5000 + "1=1",
        "(" * 40_000 + "1=1" + ")" * 40_000,
        "NOT " * 900 + "true",
        "NOT " * 20_000 + "true",
        "lower(" * 900 + "Modality" + ")" * 900 + " = 'ct'",
        "1" + "+1" * 20_000 + " = 1",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_everything_else_is_refused(expression: str) -> None:
    """A condition that reaches out, is no condition, or cannot be read is refused with one short line, nothing else."""
    with pytest.raises(ConfigError) as caught:
        check_where(expression, COLUMNS, name="select.idc.where")
    message = str(caught.value)
    assert message.startswith("select.idc.where ")
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("modalit = 'CT'", "did you mean Modality?"),
        ("INSTANCECOUN > 1", "did you mean instanceCount?"),
        ('Modality = "CT"', "single quotes: 'CT'"),
        ("nothing_like_it = 1", "there are Modality, PatientAge"),
        ("regex_matches(Modality, 'x')", "did you mean regexp_matches"),
        ("Modality", "is VARCHAR"),
        ("sum(instanceCount) > 1", "sum()"),
    ],
)
def test_messages_help(expression: str, part: str) -> None:
    """A refusal quotes the expression and says what to write instead."""
    with pytest.raises(ConfigError) as caught:
        check_where(expression, COLUMNS)
    assert part in str(caught.value)
    assert repr(expression) in str(caught.value)


def test_used_columns_in_own_spelling() -> None:
    """The columns of a condition are named as the table names them, once each."""
    where = check_where("modality = 'CT' AND MODALITY <> 'MR' AND INSTANCEcount > 1", COLUMNS)
    assert where.columns == ("Modality", "instanceCount")


def test_a_column_named_like_a_function_is_a_column() -> None:
    """What names a column of the table is never taken for a setting or the clock."""
    assert check_where("current_date = 'x'", {"current_date": "VARCHAR"}).columns == ("current_date",)


PIECES = ["(", ")", " OR ", " AND ", "1=1", "Modality", "=", "'CT'", "'", '"', "--", "/*", "*/", ";", ",", "\n", "NOT "]
PIECES += [" FROM ", "source", " WHERE ", "SELECT ", "true", "$$", "\\", "e'", "CASE WHEN ", " THEN ", " END", "[", "]"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_what_passes_stays_in_its_parentheses(expression: str) -> None:
    """Whatever pieces of SQL are thrown together: refused, or one operand of the query that it is put into."""
    try:
        sql = check_where(expression, COLUMNS).sql
    except ConfigError:
        return
    assert selected(f"false AND {sql}") == []
    assert selected(f"{sql} AND false") == []


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_refused_or_passes(expression: str) -> None:
    """No text makes the check fail in any other way than by refusing."""
    try:
        check_where(expression, COLUMNS)
    except ConfigError:
        return


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30))
def test_quoted_text_is_only_text(value: str) -> None:
    """Any value in single quotes, quotes doubled, compares as itself."""
    quoted = "'" + value.replace("'", "''") + "'"
    assert selected(check_where(f"Modality <> {quoted} OR {quoted} = {quoted}", COLUMNS).sql) == ["CT", "MR", "SEG"]
