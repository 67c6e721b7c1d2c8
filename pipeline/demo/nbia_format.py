"""NBIA's output formats: the same table as JSON, HTML, XML or CSV, with its habits and its defects. Pure."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import msgspec

from pipeline.demo.nbia_rows import Cell, Table, render_text

FORMATS = ("", "json", "html", "xml", "csv", "csvquoted", "csv-download")
ERROR_500 = "Server was not able to process your request"
ATTACHMENT = 'Content-Disposition: attachment; filename="SeriesMetaData.csv"'
_JAVA_TYPES = {bool: "java.lang.Boolean", int: "java.lang.Integer", str: "java.lang.String"}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer from memory."""

    status: int = 200
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()
    body: bytes = b""


def render_table(table: Table, form: str, *, always: bool = False) -> Answer:
    """A table in a format; one without rows is an empty body with status 200, unless a head is wanted `always`.

    Raises
    ------
    ValueError
        When the format is unknown, which NBIA answers by status 500.
    """
    form = form.lower()
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}")
    types = {"html": "text/html", "xml": "application/xml"} | dict.fromkeys(FORMATS[4:], "text/csv")
    extra = (ATTACHMENT,) if form == "csv-download" else ()
    if not table.rows and not always:
        text = ""
    elif form == "html":
        text = render_html(table)
    elif form == "xml":
        text = render_xml(table)
    elif form.startswith("csv"):
        text = render_csv(table)
    else:
        text = render_json(table.rows)
    return Answer(content_type=types.get(form, "application/json"), headers=extra, body=text.encode())


def render_json(rows: Sequence[dict[str, Cell]]) -> str:
    """An array of objects without the keys whose value is null; `/` is escaped, as Jettison does."""
    kept = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/")


def render_csv(table: Table) -> str:
    """CSV with every cell quoted; a list of one column is not quoted.

    A null in the first column loses its opening quote: the row then has a stray `","` at its start.
    """
    if len(table.columns) == 1:
        column = table.columns[0]
        return "".join(f"{line}\n" for line in (column, *(render_text(row[column]) or "" for row in table.rows)))
    lines = ['"' + '","'.join(map(_escape, table.columns)) + '"']
    for row in table.rows:
        cells = [render_text(row[name]) for name in table.columns]
        start = '","' if cells[0] is None else '"' + _escape(cells[0])
        lines.append(start + "".join(f'","{_escape(cell or "")}' for cell in cells[1:]) + '"')
    return "\n".join(lines) + "\n"


def render_html(table: Table) -> str:
    """An HTML table."""
    head = "".join(f"<TH>{name}</TH>" for name in table.columns)
    body = "".join(
        "<TR>" + "".join(f"<TD>{_html(row[name])}</TD>" for name in table.columns) + "</TR>" for row in table.rows
    )
    return f"<P ALIGN='center'><TABLE BORDER=1><TR>{head}</TR>{body}</TABLE></P>"


def render_xml(table: Table) -> str:
    """XML whose elements are the columns, with their Java type; nulls are left out."""
    rows = "".join(
        "<Row>"
        + "".join(
            f"<{name} type='{_JAVA_TYPES[type(value)]}'>{html.escape(render_text(value) or '')}</{name}>"
            for name, value in row.items()
            if value is not None
        )
        + "</Row>"
        for row in table.rows
    )
    return f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><Results>{rows}</Results>'


def _escape(text: str) -> str:
    return text.replace('"', '""')


def _html(value: Cell) -> str:
    text = render_text(value)
    return "&nbsp;" if text is None else html.escape(text)
