"""What NBIA is asked for a series, what its refusals mean, and how much of scratch a zip may take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from pipeline.errors import ItemError
from pipeline.model import Entry, Item, RemoteFile
from pipeline.sizes import item_bytes, zip_bytes
from pipeline.sources.api_body import explain_refusal
from pipeline.sources.base import Body, cut_files
from pipeline.sources.idc import choose_error
from pipeline.sources.tcia_series import Found, SeriesFile

# Where the manifest states no bytes: most bytes of a series, and the share of free scratch for its zip and its images:
# of one that comes alone, and of each while others come, which are to have more than a share of what one leaves.
MAX_BYTES = 1 << 40
FREE_SHARE, BESIDE_SHARE = 0.5, 0.125
# Beside its images' bytes, what a zip may have: a licence, the list of MD5s, and headers of each image.
ZIP_ROOM, ZIP_ROOM_EACH = 64 << 20, 2048


def judge_status(status: int, document: bytes) -> ItemError | None:
    """Say what an error status of an image call means for the item; None for what it means everywhere.

    NBIA answers 400 for a series that is unknown, withdrawn or restricted alike, and never 404 for one.
    """
    text = f"{status}: {explain_refusal(document)}" if document.strip() else str(status)
    if status == 400:
        reason = "unavailable"
        if "not been granted" in text:
            reason = "forbidden"
        elif "not in public domain" in text:
            reason = "withdrawn"
        return ItemError(reason, text)
    if status in {404, 410}:
        return ItemError("unavailable", f"{text}; the site has no such call")
    return ItemError("forbidden", text) if status in {401, 403} else None


def choose_refusal(errors: Sequence[tuple[str, ItemError]]) -> ItemError:
    """Make one error of what each version of the API said.

    A version that does not know the call says nothing about the series.
    """
    telling = [each for each in errors if each[1].reason != "unavailable" or each[1].transient]
    chosen = choose_error(telling or errors)
    said = "; ".join(f"{version}: {error}" for version, error in errors)
    return ItemError(chosen.reason, said, transient=chosen.transient)


def plan_calls(uid: str, *, secret: bool) -> tuple[tuple[str, str], ...]:
    """Versions and what to ask of each, in order: v4, and an elder where that fails."""
    series = {"SeriesInstanceUID": uid}
    newer = urlencode({**series, "NewFileNames": "Yes", "IncludeMD5": "Yes"})
    elder = "v2" if secret else "v1"  # v2 knows accounts, v1 only the public
    return ("v4", f"v4/getImage?{newer}"), (elder, f"{elder}/getImageWithMD5Hash?{urlencode(series)}")


def plan_limits(item: Item, free: int, promised: int = 0) -> tuple[int, int]:
    """Most bytes of an item's zip and of its images, with so many bytes of scratch free, and promised of those.

    Where no bytes are stated it is one bound for both together, which lie there at one time: a share of what nobody was
    promised, but not less than the item was planned with while that is no more than the share of all.
    """
    if item.bytes >= 0:
        room = ZIP_ROOM + ZIP_ROOM_EACH * max(item.files, 0)
        return item.bytes + item.bytes // 100 + room, item.bytes
    share = int((free - promised) * (BESIDE_SHARE if promised else FREE_SHARE))
    planned = item_bytes(item) + zip_bytes(item)
    bound = min(MAX_BYTES, max(share, min(planned, int(free * FREE_SHARE))))
    return bound, bound


def choose_piece(files: list[SeriesFile], entry: Entry) -> list[SeriesFile]:
    """The files of an entry: all, or those of its piece."""
    if entry.pieces == 1:
        return files
    counts = cut_files([file.size for file in files], entry.pieces)
    begin = sum(counts[: entry.piece])
    return files[begin : begin + counts[entry.piece]]


def unwritten(files: list[SeriesFile], by_md5: Mapping[str, Found], entry: Entry) -> int:
    """Bytes of an entry's files that are in their zip only."""
    return sum(file.size for file in choose_piece(files, entry) if not by_md5[file.md5].sha256)


def name_body(entry: Entry, file: SeriesFile) -> Body:
    """A file as a body: known by its content, for nothing else of a zip lasts."""
    key = f"{entry.item.id}/{file.sop or file.md5}"
    return Body(entry, RemoteFile(key, file.size, file.md5), f"nbia:{entry.item.id}:{file.md5}")
