"""What goes wrong at the ISIC Archive, on request: refusals, lists that mislead, files that are not the image.

Set as for the demo S3, `site.faults.set(pattern, Fault(kind=...))`. The key of a request to the API is `isic/` and its
path: `isic/images`, `isic/images/search`, `isic/images/ISIC_0000001`, `isic/collections/65`,
`isic/zip-download/file-listing`, `isic/users/me`. That of a file is its key in the bucket, `images/ISIC_0000001.jpg`
and `thumbnails/ISIC_0000001_thumbnail.jpg`; of a signed URL `content/ISIC_0000001.jpg`. That of an image within a list
or alone is `isic/record/ISIC_0000001`.

API: `error-400` (as for a query that cannot be read), `error-401`, `error-429` (`seconds`: Retry-After), `error-500`,
`error-502`, `error-503`, `error-504` (pages of server and router), `slow-down` (as error-503, with Retry-After),
`forbidden`, `html` (a page with status 200), `hangup`, `delay`, `empty` (status 200 and nothing else), `vanish` (404 as
for what never was), `anonymous` (a good token counts as none, and nobody says so).

Lists: `hide-rows` (images of `names`, ids, are missing; the count has them), `duplicate-rows` (the first row comes
again at the end), `wrong-count` (one too many), `next-loop` (the next page is this one).

Records: `wrong-size` (twice as many bytes as there are), `drop-keys` (`names`, as `files.full.size`; that one by
default).

Files: what objects of the demo S3 suffer, `short`, `truncate`, `flip`, `ignore-range`, `etag-get` and so on, and
`error-429`, `error-502`, `error-504`; `expired` (403 as after the end of a signed URL), `revised` (the file was
corrected upstream: other bytes and ETag under its key), `swap` (another image's file; `names`: of which), `long` (more
bytes than the image has, and a Content-Length that says so), `octet-stream` (no more Content-Type than that).
To change a file while somebody resumes: `truncate` with `times=1`, then `revised`. For good: `site.revise(isic_id)`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pipeline.demo.faults import BODY_KINDS, GET_KINDS, HEAD_KINDS, STATUS_KINDS, Fault, FaultKind

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
    "vanish": 404,
}
LIST_FAULTS: frozenset[FaultKind] = frozenset({"hide-rows", "duplicate-rows", "wrong-count", "next-loop"})
RECORD_FAULTS: frozenset[FaultKind] = frozenset({"wrong-size", "drop-keys"})
API_FAULTS: frozenset[FaultKind] = frozenset(
    (*REFUSALS, *STATUS_KINDS, *BODY_KINDS, *LIST_FAULTS, "empty", "anonymous")
)
_FILE_ONLY: frozenset[FaultKind] = frozenset({"expired", "revised", "swap", "long", "octet-stream"})
FILE_STATUSES: dict[FaultKind, int] = {"error-429": 429, "error-502": 502, "error-504": 504}
FILE_FAULTS: frozenset[FaultKind] = frozenset((*GET_KINDS, *_FILE_ONLY, *FILE_STATUSES))
HEAD_FAULTS: frozenset[FaultKind] = frozenset((*HEAD_KINDS, "expired", "revised", "octet-stream", *FILE_STATUSES))
# What a client that asks again gets over.
ISIC_PASSING_KINDS: tuple[FaultKind, ...] = (
    "error-429", "error-500", "error-502", "error-503", "error-504", "slow-down", "hangup", "html", "reset", "truncate",
    "flip", "short", "long", "drip", "ignore-range", "swap",
)  # fmt: skip


def bend_record(record: dict[str, Any], fault: Fault) -> dict[str, Any]:
    """A record with a fault. Pure."""
    bent = copy.deepcopy(record)
    if fault.kind == "wrong-size":
        full = bent["files"]["full"]
        full["size"] = 2 * (full["size"] or 0) + 1
        return bent
    for name in fault.names or ("files.full.size",):
        *folders, last = name.split(".")
        inner: Any = bent
        for folder in folders:
            inner = inner.get(folder, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner.pop(last, None)
    return bent


def bend_page(page: Mapping[str, Any], fault: Fault, own: str) -> dict[str, Any]:
    """A page of a list with a fault; `own`: its URL. Pure."""
    bent = dict(page)
    rows = list(bent["results"])
    if fault.kind == "hide-rows":
        rows = [row for row in rows if not {row.get("isic_id"), str(row.get("id"))} & {*fault.names}]
    elif fault.kind == "duplicate-rows":
        rows += rows[:1]
    elif fault.kind == "wrong-count" and bent["count"] is not None:
        bent["count"] += 1
    elif fault.kind == "next-loop":
        bent["next"] = own
    return bent | {"results": rows}
