"""What lies beside an archive of ISIC images: the rows of `medhaul metadata isic`, whom to name, licences. Pure.

The order of attributions is that of the site's own downloads: the most images first, then by name, "Anonymous" last,
with blank lines between (https://github.com/ImageMarkup/isic).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.archive.tar import join_path
from pipeline.model import IsicLocation, Item
from pipeline.sources.api_body import clean_text
from pipeline.sources.isic_cells import (
    COLLECTION_IDS,
    COLLECTION_NAMES,
    Column,
    field_columns,
    pick_cells,
    render_csv_lines,
)
from pipeline.sources.isic_meta import LICENCE_URLS, Described
from pipeline.sources.isic_rows import Value

ANONYMOUS = "Anonymous"
# Where the archive names nobody; and, of a licence, nothing.
NOBODY = "(no attribution stated)"
UNSTATED = "(no licence stated)"
_TOLD = (*field_columns(), Column("collection_ids", COLLECTION_IDS), Column("collections", COLLECTION_NAMES))
COLUMNS = (*_TOLD, Column("archive_path", ""), Column("archive_thumbnail_path", ""))

Credits = Counter[tuple[str, str]]


def find_members(item: Item) -> tuple[str | None, str | None]:
    """Paths in the archive of an image's file and, where it was taken along, of its thumbnail."""
    names = item.location.names if isinstance(item.location, IsicLocation) else ()
    paths = [join_path(item.path, name) for name in names]
    return (paths[0] if paths else None, paths[1] if len(paths) > 1 else None)


def make_row(image: Described, item: Item) -> list[Value]:
    """An archived image's row, a value for each of `COLUMNS`."""
    return [*pick_cells(_TOLD, image.row), *find_members(item)]


def render_metadata(rows: Iterable[Sequence[Value]]) -> Iterable[str]:
    """Lines of metadata.csv, byte for byte as `medhaul metadata isic` writes them."""
    return render_csv_lines(COLUMNS, rows)


def credit_of(image: Described, licence: str) -> tuple[str, str]:
    """Whom an image names, as one line of text, and its licence."""
    return clean_text(str(image.row.get("attribution") or "")), clean_text(licence)


def render_attribution(credited: Mapping[tuple[str, str], int]) -> str:
    """attribution.txt from the number of images by attribution and licence: an entry of two lines each."""
    named: dict[str, Counter[str]] = {}
    for (name, licence), count in credited.items():
        named.setdefault(name, Counter())[licence] += count
    order = sorted(named, key=lambda name: (not name, name == ANONYMOUS, -named[name].total(), name))
    return "\n\n".join(f"{name or NOBODY}\n{_count_licences(named[name])}" for name in order) + "\n"


def _count_licences(licences: Counter[str]) -> str:
    total = licences.total()
    order = sorted(licences, key=lambda name: (-licences[name], name))
    parts = [f"{licences[name]:,} {name or UNSTATED}" if len(order) > 1 else name or UNSTATED for name in order]
    return f"    {total:,} image{'s' if total != 1 else ''}: {', '.join(parts)}"


def render_licence(name: str, text: str) -> str:
    """The file of a licence: its text as the archive hands it out, else where it is, and that there was none."""
    if text.strip():
        return text if text.endswith("\n") else f"{text}\n"
    return f"{name}\n{LICENCE_URLS[name]}\n\nThe ISIC Archive did not hand out the text when this run was planned.\n"


def licence_files(used: Iterable[str], texts: Mapping[str, str]) -> dict[str, str]:
    """Text of `licence.NAME.txt` for each licence that the archive may have; "": it has no image of it."""
    have = set(used)
    return {
        f"licence.{name}.txt": render_licence(name, texts.get(name, "")) if name in have else ""
        for name in LICENCE_URLS
    }
