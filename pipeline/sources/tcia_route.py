"""By which route a series of TCIA comes: from the IDC's buckets, which are fast, or from NBIA. Pure.

Both may have a series, and nothing says which revision is the newer one. What tells are counts and sizes: NBIA's
ImageCount and FileSize, the index's instanceCount and series_size_MB. The rule, with `route = "auto"`:

- in the IDC's index only: from IDC (`only-idc`); not in the index: from NBIA (`only-nbia`);
- one has more files: from there (`more-files`), since revisions rarely take files away;
- as many files of as many bytes, or one side does not state them: from IDC (`same`, `unstated`);
- as many files of other bytes: from NBIA (`other-bytes`), which is where series are revised first.

`route = "idc"` and `route = "nbia"` take everything from there (`forced`); what is not there does not come at all.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pipeline.settings import Route

Way = Literal["idc", "nbia"]
Reason = Literal["only-idc", "only-nbia", "more-files", "same", "unstated", "other-bytes", "forced"]


class Stated(msgspec.Struct, frozen=True):
    """Files and bytes of a series as one side states them; -1 where it states nothing."""

    files: int = -1
    bytes: int = -1


class Choice(msgspec.Struct, frozen=True):
    """A route, and why."""

    way: Way
    reason: Reason


def choose_route(route: Route, nbia: Stated | None, idc: Stated | None) -> Choice | None:
    """Choose the route of a series from what each side states (None: it has no such series); None: there is no way."""
    if route == "idc":
        return Choice("idc", "forced") if idc is not None else None
    if route == "nbia":
        return Choice("nbia", "forced") if nbia is not None else None
    if idc is None or nbia is None:
        return Choice("idc", "only-idc") if idc is not None else Choice("nbia", "only-nbia") if nbia else None
    counted = nbia.files >= 0 and idc.files >= 0
    if counted and nbia.files != idc.files:
        return Choice("nbia" if nbia.files > idc.files else "idc", "more-files")
    weighed = nbia.bytes >= 0 and idc.bytes >= 0
    if weighed and nbia.bytes != idc.bytes:
        return Choice("nbia", "other-bytes")
    return Choice("idc", "same" if counted and weighed else "unstated")
