"""Planning from the IDC index: selected series become items with archive paths, in path order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pipeline.config import ITEM_FIELDS, Config
from pipeline.model import IdcLocation, Item
from pipeline.plan.paths import FolderTemplate, compile_folder
from pipeline.plan.source import Selected
from pipeline.sources.duck import quote_name, quote_text
from pipeline.sources.idc_index import IdcIndex

# The index column of each path template field.
_COLUMN = {field: field for field in ITEM_FIELDS} | {"collection": "collection_id"}


class IdcPlanSource:
    """The IDC index, seen by the planner."""

    name = "idc"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._index = IdcIndex.open(config.sources.idc)
        self.release = self._index.release
        self.columns = list(self._index.column_types())
        self._dois: set[str] = set()

    def select(self) -> Iterator[Selected]:
        """Yield the selected series by group and path. Raises `ConfigError` when nothing is selected."""
        selection = self._index.select(self._config.select.idc)
        group_by = self._config.archive.group_by
        fill = compile_folder(self._config.archive.path, ITEM_FIELDS)
        group_column = {"collection": "collection_id", "licence": "license_short_name", "run": ""}[group_by]
        columns = [_COLUMN[field] for field in ITEM_FIELDS]
        sort_words: dict[str, str] = {}
        # Paths that begin with their group's own folder bring groups together by themselves; short keys sort faster.
        by_path = not group_column or (
            group_by == "collection" and self._config.archive.path.startswith("{collection}/")
        )

        def sort_key(group: str, path: str) -> str:
            if by_path:
                return path
            word = sort_words.get(group)
            if word is None:
                word = sort_words[group] = _sort_word(group)
            # A space sorts before all that a path may hold; groups are encoded so that they hold none.
            return f"{word} {path}"

        def sort_keys() -> Iterator[tuple[int, str]]:
            plain, path = plain_path_sql(fill, columns)
            group = f"coalesce({quote_name(group_column)}, '')" if group_column and not by_path else "''"
            for rows in selection.stream(f"file_row_number, {group}, {path}", f"AND ({plain}) IS TRUE"):
                yield from [(number, sort_key(group, path)) for number, group, path in rows]
            texts = ", ".join(f"coalesce({quote_name(column)}, '')" for column in columns)
            for rows in selection.stream(f"file_row_number, {group}, {texts}", f"AND ({plain}) IS NOT TRUE"):
                yield from [(number, sort_key(group, fill(values))) for number, group, *values in rows]

        for row in selection.ordered(sort_keys()):
            if row.source_DOI:
                self._dois.add(row.source_DOI)
            group = getattr(row, group_column) or "unknown" if group_column else self._config.run.name
            yield Selected(
                group,
                Item(
                    id=row.SeriesInstanceUID,
                    path=row.path if by_path else row.path.partition(" ")[2],
                    files=row.instanceCount,
                    bytes=row.size_bytes,
                    location=IdcLocation(row.aws_bucket, row.crdc_series_uuid),
                    licence=row.license_short_name,
                    meta=msgspec.Raw(row.meta.encode("utf-8", "surrogatepass")),
                ),
            )

    def citations(self) -> dict[str, str]:
        """Citation texts that are packaged with the index."""
        return {doi: text for doi, (text, _) in self._index.citations(self._dois).items()}


def plain_path_sql(template: FolderTemplate, columns: Sequence[str]) -> tuple[str, str]:
    """SQL of the condition that a row's path is made of plain values, and of that path. Pure.

    The database makes nearly all paths this way, several times as fast as Python; the others are left to the template.
    """
    plain = [f"regexp_full_match({quote_name(columns[i])}, {quote_text(pattern)})" for i, pattern in template.plain]
    path = [quote_text(p) if isinstance(p, str) else quote_name(columns[p]) for p in template.literal]
    return " AND ".join(plain), " || ".join(path)


def _sort_word(group: str) -> str:
    """A group as letters that sort like its bytes and hold no space or sign."""
    return group.encode("utf-8", "surrogatepass").hex()
