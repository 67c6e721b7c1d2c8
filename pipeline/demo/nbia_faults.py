"""What goes wrong at NBIA, on request: refusals, lists that mislead, zips that are sound and yet not whole.

Set as for the demo S3, `site.faults.set(pattern, Fault(kind=...))`; the key of a request is
`nbia/{version}/{endpoint}/{subject}`, where the version of unversioned calls is `plain` and the subject is the series,
instance, collection, patient or cart that is asked for, if any. The token endpoint is `nbia/oauth/token`.

Any request: `error-400` (NBIA's refusal of an image), `error-401` (empty body), `error-429` (`seconds`: Retry-After),
`error-500` (NBIA's own words), `error-502`, `error-503`, `error-504`, `forbidden` (pages of a proxy), `slow-down`
(as error-503, with Retry-After), `html` (a page with status 200), `hangup`, `delay`, `empty` (status 200 and nothing
else, as after an error of the database).

Any body: `reset`, `stall`, `drip`, `truncate`, `flip`, as for objects.

Lists: `blank-rows` (`[{}]`), `drop-keys` (`names`, or what is often NULL), `null-text` ("null" in the place of NULL),
`string-numbers`, `single-object` (the first row without an array around it), `duplicate-rows`, `hide-rows` (rows with
one of `names` in them; without names the part of them from `at` on), `wrong-count` and `wrong-size` (one too many).

Zips: `zip-short` (files from `at` on are missing and so is the list of MD5s), `zip-cut-entry` (the file at `at` ends
there, under a CRC that agrees), `zip-hole` (the file at `at` is missing, the list names it), `zip-empty` (no member),
`zip-licence` (LICENSE alone), `md5-wrong` (of the file at `at`), `md5-missing` (no list), `md5-extra` (the list names a
file that never was), `md5-short` (the list lacks the file at `at`), `shuffle` (another order of files at each request).
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from pipeline.demo.faults import BODY_KINDS, STATUS_KINDS, Fault, FaultKind
from pipeline.demo.nbia_format import ERROR_500, Answer, render_json
from pipeline.demo.nbia_rows import Cell, Row, Table, render_text
from pipeline.demo.nbia_zip import Entry, ZipPlan

REFUSALS: dict[FaultKind, int] = {
    "error-400": 400,
    "error-401": 401,
    "error-429": 429,
    "error-500": 500,
    "error-502": 502,
    "error-503": 503,
    "error-504": 504,
    "slow-down": 503,
    "forbidden": 403,
}
LIST_FAULTS: frozenset[FaultKind] = frozenset(
    (
        "blank-rows", "drop-keys", "null-text", "string-numbers", "single-object", "duplicate-rows", "hide-rows",
        "wrong-count", "wrong-size",
    )
)  # fmt: skip
ZIP_FAULTS: frozenset[FaultKind] = frozenset(
    (
        "zip-short", "zip-cut-entry", "zip-hole", "zip-empty", "zip-licence", "md5-wrong", "md5-missing", "md5-extra",
        "md5-short", "shuffle",
    )
)  # fmt: skip
ANY_FAULTS: frozenset[FaultKind] = frozenset((*REFUSALS, *STATUS_KINDS, *BODY_KINDS, "empty"))
# What a client that asks again gets over.
NBIA_PASSING_KINDS: tuple[FaultKind, ...] = (
    "error-429", "error-500", "error-502", "error-503", "error-504", "html", "hangup", "empty", "reset", "truncate",
    "flip", "drip", "zip-short", "zip-cut-entry", "zip-hole", "zip-empty", "zip-licence", "md5-wrong", "md5-missing",
    "md5-extra", "md5-short",
)  # fmt: skip
_OFTEN_NULL = (
    "SeriesDescription", "Series Description", "SeriesDate", "Series Date", "StudyDesc", "Study Description",
    "StudyDate", "Study Date", "ProtocolName", "Protocol Name", "BodyPartExamined", "Body Part Examined",
)  # fmt: skip
_COUNTS = ("ImageCount", "Number of Images", "Number of images", "ObjectCount")
_SIZES = ("FileSize", "File Size", "File Size (Bytes)", "TotalSizeInBytes")
_PORTAL = b"<html><head><title>Gateway</title></head><body><h1>Please sign in to the network</h1></body></html>\n"


def plan_refusal(fault: Fault, refused: str) -> Answer | None:
    """The answer of a fault that needs nothing but itself; `refused` is what NBIA says of a series. Pure."""
    if fault.kind == "empty":
        return Answer()
    if fault.kind == "html":
        return Answer(content_type="text/html", body=_PORTAL)
    status = REFUSALS.get(fault.kind)
    if status is None:
        return None
    if status == 400:
        return Answer(status=status, body=refused.encode())
    if status == 401:
        return Answer(status=status)
    if status == 500:
        body = f"{ERROR_500}\nCould not open JDBC Connection for transaction"
        return Answer(status=status, content_type="text/plain", body=body.encode())
    title = f"{status} {HTTPStatus(status).phrase}"
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n"
    )
    wait = (f"Retry-After: {fault.seconds:.0f}",) if fault.seconds else ()
    return Answer(status=status, content_type="text/html", headers=wait, body=f"{page}</html>\r\n".encode())


def bend_table(table: Table, fault: Fault) -> Table | Answer:
    """What a list becomes under a fault. Pure."""
    rows = table.rows
    if fault.kind == "blank-rows":
        return Answer(body=b"[{}]")
    if fault.kind == "single-object":
        return Answer(body=render_json(rows[:1])[1:-1].encode())
    if fault.kind == "drop-keys":
        dropped = fault.names or _OFTEN_NULL
        columns = tuple(name for name in table.columns if name not in dropped)
        return Table(columns, tuple({name: row[name] for name in columns} for row in rows))
    if fault.kind == "duplicate-rows":
        return Table(table.columns, tuple(row for row in rows for _ in range(2)))
    if fault.kind == "hide-rows":
        kept = rows[: int(len(rows) * fault.at)]
        if fault.names:
            kept = tuple(row for row in rows if not set(map(render_text, row.values())) & set(fault.names))
        return Table(table.columns, kept)
    return Table(table.columns, tuple({name: _bend_cell(name, row, fault) for name in row} for row in rows))


def _bend_cell(name: str, row: Row, fault: Fault) -> Cell:
    value = row[name]
    if fault.kind == "null-text":
        return "null" if value is None else value
    if fault.kind == "string-numbers" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wrong = {"wrong-count": _COUNTS, "wrong-size": _SIZES}.get(fault.kind, ())
    if name in wrong and value is not None:
        return str(int(value) + 1) if isinstance(value, str) else int(value) + 1
    return value


def bend_zip(plan: ZipPlan, fault: Fault) -> ZipPlan:
    """What a zip holds under a fault. Pure."""
    entries, listed = plan.entries, plan.listed
    place = min(int(len(entries) * fault.at), len(entries) - 1)
    struck = entries[place].name
    if fault.kind == "zip-empty":
        return ZipPlan(licence=None, entries=(), listed=None)
    if fault.kind == "zip-licence":
        return ZipPlan(licence=plan.licence or "", entries=(), listed=None)
    if fault.kind == "zip-short":
        return msgspec.structs.replace(plan, entries=entries[:place], listed=None)
    if fault.kind == "zip-hole":
        return msgspec.structs.replace(plan, entries=entries[:place] + entries[place + 1 :])
    if fault.kind == "zip-cut-entry":
        entry = entries[place]
        cut = Entry(entry.name, entry.data[: int(len(entry.data) * fault.at)], entry.md5)
        return msgspec.structs.replace(plan, entries=(*entries[:place], cut, *entries[place + 1 :]))
    if listed is None:
        return plan
    if fault.kind == "md5-missing":
        listed = None
    elif fault.kind == "md5-extra":
        listed = (*listed, ("99999999.dcm", "d41d8cd98f00b204e9800998ecf8427e"))
    elif fault.kind == "md5-short":
        listed = tuple(row for row in listed if row[0] != struck)
    elif fault.kind == "md5-wrong":
        listed = tuple((name, render_wrong_md5(md5) if name == struck else md5) for name, md5 in listed)
    return msgspec.structs.replace(plan, listed=listed)


def render_wrong_md5(md5: str) -> str:
    """Another MD5 of the same form."""
    return ("1" if md5.startswith("0") else "0") + md5[1:]
