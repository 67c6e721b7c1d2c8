"""`where`: an SQL condition from a config or command line, made safe to place into a query of ours.

DuckDB itself parses the text; its syntax tree must consist of kinds of nodes and functions that only compute, and the
text must be one expression wherever it is put. It can then neither reach files, settings or other tables, nor end the
query that it stands in, nor select different rows the next time.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.sources.duck import compose, connect, quote_name, reason, storing

if TYPE_CHECKING:
    import duckdb

MAX_DEPTH = 100  # parentheses within parentheses: DuckDB's parser takes minutes for thousands
MAX_LENGTH = 100_000  # characters; lists of identifiers longer than this have keys of their own

_KINDS = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"}
    | {"OPERATOR", "TYPE"}
)
_REFUSED_KINDS = {
    "LAMBDA": "lambda functions (write json_extract(x, 'y') for x -> 'y')",
    "PARAMETER": "parameters (? or $name)",
    "POSITIONAL_REFERENCE": "column positions (#1)",
    "STAR": "* and COLUMNS()",
    "SUBQUERY": "subqueries",
    "WINDOW": "window functions",
}
# Scalar functions that DuckDB calls consistent, yet whose answer depends on the machine, the clock or DuckDB's
# version, or that handle plans and internals instead of values.
_REFUSED_FUNCTIONS = re.compile(
    r"__.*|age|create_sort_key|current_.*|error|finalize|combine|get_?env|get_?variable|hash|in_search_path|index_key"
    r"|invoke|json_(?:de)?serialize_.*|json_execute_.*|parse_duckdb_log_message|pragma.*|read_.*|stats|to_aggregate_state"
    r"|vector_type|version|vertex_extract|write_log"
)
_MACROS = frozenset({"if", "nullif", "split_part"})  # scalar, but written in SQL inside DuckDB
# Text and quoted names, so that what is left outside them can be searched.
_QUOTED = re.compile(r"""[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*\"""", re.DOTALL)
_FRAMES = ("SELECT list_value({}\n)", "SELECT 1 FROM source WHERE ({}\n)")
_LOCATION = re.compile(r',"query_location(?:_length)?":\d+')


class Where(msgspec.Struct, frozen=True):
    """A checked condition.

    Attributes
    ----------
    expression
        As written.
    sql
        In parentheses, to place into a query over a table that has the columns it was checked against.
    columns
        The columns it uses, in the table's own spelling.
    """

    expression: str
    sql: str
    columns: tuple[str, ...]


class _RefusalError(Exception):
    """Carries the reason from the rule that found it to the border in `check_where`."""


def check_where(expression: str, columns: Mapping[str, str], *, name: str = "where") -> Where:
    """Check that an expression is one safe boolean SQL expression over the given columns.

    Parameters
    ----------
    columns
        SQL type by column name; both from a trusted source. Names match without regard to case, as in SQL.
    name
        What messages call the expression.

    Raises
    ------
    ConfigError
        In one line: the expression, what is wrong, and the nearest columns for one that is unknown.
    """
    try:
        _check_text(expression)
        with storing(name), tempfile.TemporaryDirectory(prefix="medhaul-") as temp:
            connection = connect(temp, memory="100MB", threads=1)
            try:
                tree = _parse_expression(connection, expression)
                used = _check_tree(tree, columns, _safe_functions(connection), expression)
                _bind(connection, f"({expression}\n)", columns)
            finally:
                connection.close()
    except _RefusalError as refusal:
        raise ConfigError(
            f"{name} {_shown(expression)}: {refusal}",
            hint="write one SQL condition over the columns, such as Modality = 'CT' AND Manufacturer ILIKE 'ge%'"
            if "Modality" in columns
            else "write one SQL condition over the columns",
        ) from None
    except RecursionError:
        raise ConfigError(f"{name} {_shown(expression)}: nested too deeply", hint="write it flatter") from None
    return Where(expression=expression, sql=f"({expression}\n)", columns=used)


def _shown(expression: str) -> str:
    return repr(expression) if len(expression) <= 200 else repr(expression[:200]) + "…"


def _check_text(expression: str) -> None:
    if not expression.strip():
        raise _RefusalError("is empty")
    if len(expression) > MAX_LENGTH:
        raise _RefusalError(f"is {len(expression):,} characters long; at most {MAX_LENGTH:,} are read")
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", expression):
        raise _RefusalError("has a control character")
    outside = _QUOTED.sub("''", expression)
    if "--" in outside or "/*" in outside:
        raise _RefusalError("comments are not allowed")
    depth = deepest = 0
    for sign in re.findall(r"[()\[\]{}]", outside):
        depth += 1 if sign in "([{" else -1
        deepest = max(deepest, depth)
        if depth < 0:
            break
    if depth:
        raise _RefusalError("is not one expression: parentheses do not match")
    if deepest > MAX_DEPTH:
        raise _RefusalError("nested too deeply")
    if "?" in outside:
        raise _RefusalError("parameters (?) are not allowed")
    if ";" in outside:
        raise _RefusalError("';' is not allowed: one condition, not statements")


def _parse_expression(connection: duckdb.DuckDBPyConnection, expression: str) -> dict[str, Any]:
    """Return the syntax tree of the expression, proven to be the same single expression in two surroundings.

    Text that closes a parenthesis and opens another, adds an argument, a clause or a statement, changes at least one
    of the surroundings.
    """
    inserted = []
    for frame in _FRAMES:
        tree, hole = _cut_out(_parse(connection, frame.format(expression)))
        if tree != _cut_out(_parse(connection, frame.format("true")))[0]:
            raise _RefusalError("is not one expression")
        inserted.append(hole)
    if inserted[0] != inserted[1] or inserted[0].get("alias"):
        raise _RefusalError("is not one expression")
    return inserted[0]


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    import duckdb

    try:
        row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    except duckdb.Error as error:
        raise _RefusalError(reason(error)) from None
    tree = msgspec.json.decode(_LOCATION.sub("", row[0] if row else "{}"))
    if tree.get("error") is not False:
        raise _RefusalError(" ".join(str(tree.get("error_message", "not SQL")).split())[:300])
    return tree


def _cut_out(tree: Any) -> tuple[Any, dict[str, Any]]:
    """Take the inserted expression out of a framed tree: the rest, and the expression."""
    try:
        node = tree["statements"][0]["node"]
        if node["where_clause"] is not None:
            hole = node["where_clause"]
            node["where_clause"] = None
            return tree, hole
        call = node["select_list"][0]
        arguments = call["arguments"] if "arguments" in call else call["children"]  # DuckDB 2, DuckDB 1
        argument = arguments.pop()
        if "expression" in argument:
            argument, label = argument["expression"], argument["name"]
            if label:
                raise _RefusalError("is not one expression")
    except (KeyError, IndexError, TypeError):
        raise _RefusalError("is not one expression") from None
    return tree, argument


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            stack.extend(reversed(value.values()))
        elif isinstance(value, list):
            stack.extend(reversed(value))


def _safe_functions(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Names of DuckDB's own functions that compute one value from their arguments alone."""
    rows = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE internal AND function_type = 'scalar' "
        "GROUP BY function_name HAVING bool_and(coalesce(stability, '') = 'CONSISTENT')"
    ).fetchall()
    return frozenset(name for (name,) in rows if not _REFUSED_FUNCTIONS.fullmatch(name)) | _MACROS


def _check_tree(
    tree: dict[str, Any], columns: Mapping[str, str], functions: frozenset[str], expression: str
) -> tuple[str, ...]:
    """Refuse what may not stand in a condition; return the columns used. Pure."""
    spelling = {column.lower(): column for column in columns}
    used: dict[str, None] = {}
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in _KINDS:
            raise _RefusalError(f"{_REFUSED_KINDS.get(kind, f'{kind.lower()} expressions')} are not allowed")
        if kind == "COLUMN_REF":
            column = str(node["column_names"][0])
            if column.lower() not in spelling:
                raise _RefusalError(_unknown_column(".".join(node["column_names"]), columns, expression))
            used[spelling[column.lower()]] = None
        if kind == "FUNCTION":
            function = str(node["function_name"]).lower()
            own = node.get("schema") in {None, "", "main"} and node.get("catalog") in {None, "", "system"}
            if function not in functions or not own:
                near = difflib.get_close_matches(function, functions, n=2, cutoff=0.8)
                said = f"; did you mean {' or '.join(near)}?" if near and function not in near else ""
                raise _RefusalError(
                    f"function {function}() is not allowed, as only functions of the row's own values are: "
                    f"no aggregates, clock, random numbers, settings or files{said}"
                )
            if node.get("filter") or node.get("distinct") or (node.get("order_bys") or {}).get("orders"):
                raise _RefusalError(f"function {function}() may only have plain arguments")
    return tuple(used)


def _unknown_column(column: str, columns: Mapping[str, str], expression: str) -> str:
    lower = {name.lower(): name for name in columns}
    near = [lower[name] for name in difflib.get_close_matches(column.lower(), lower, n=3, cutoff=0.6)]
    if near:
        return f"unknown column {column}; did you mean {' or '.join(near)}?"
    if f'"{column}"' in expression:
        return f"unknown column {column}; text stands in single quotes: '{column}'"
    listed = ", ".join(columns) if len(columns) <= 40 else ", ".join(list(columns)[:40]) + ", …"
    return f"unknown column {column}; there are {listed}"


def _bind(connection: duckdb.DuckDBPyConnection, sql: str, columns: Mapping[str, str]) -> None:
    """Have DuckDB check the types, on an empty table of the same columns."""
    import duckdb

    made = ", ".join(f"{quote_name(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TEMP TABLE source ({made})")
    try:
        described = connection.execute(compose("DESCRIBE SELECT {sql} AS result FROM source", sql=sql)).fetchall()
        if described[0][1] != "BOOLEAN":
            raise _RefusalError(f"must be true or false for each row, but is {described[0][1]}")
        connection.execute(compose("SELECT count(*) FROM source WHERE {sql}", sql=sql)).fetchall()
    except duckdb.Error as error:
        raise _RefusalError(reason(error)) from None
