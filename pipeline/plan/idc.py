"""Planning from the IDC index: selected series become items with archive paths, in path order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.plan.paths import FolderTemplate
from pipeline.plan.source import EncodedItem, Selected
from pipeline.settings import ITEM_FIELDS, Config
from pipeline.sources.duck import quote_name, quote_text
from pipeline.sources.idc_index import IdcIndex
from pipeline.sources.idc_rows import BYTES, FILES

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
        assert self._config.select.idc is not None, "the caller chose this source by its table"
        selection = self._index.select(self._config.select.idc)
        group_by = self._config.archive.group_by
        fill = FolderTemplate(self._config.archive.path, ITEM_FIELDS)
        group_column = {"collection": "collection_id", "licence": "license_short_name", "run": ""}[group_by]
        run_name = self._config.run.name
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

        group = f"coalesce({quote_name(group_column)}, '')" if group_column else "''"
        values = f"{group}, {', '.join(PLAN_VALUES)}, {item_sql(selection.meta_sql())}"
        encode = str.encode
        for rows in selection.ordered_values(sort_keys(), values):
            for key, name, uid, files, size, licence, doi, tail in rows:
                path = key if by_path else key.partition(" ")[2]
                if doi not in self._dois:
                    self._dois.add(doi)
                # A path needs no escapes: it is made of letters, digits and a few signs.
                json = encode(f'{{"path":"{path}",{tail}')
                yield Selected(
                    (name or "unknown") if group_column else run_name,
                    EncodedItem(uid, path, files, size, licence, json),
                )

    def citations(self) -> dict[str, str]:
        """Citation texts that are packaged with the index."""
        return {doi: text for doi, (text, _) in self._index.citations(self._dois - {""}).items()}


# What the planner must know of a row.
PLAN_VALUES = (
    "coalesce(\"SeriesInstanceUID\", '')",
    FILES,
    BYTES,
    "coalesce(license_short_name, '')",
    "coalesce(\"source_DOI\", '')",
)


def item_sql(meta: str) -> str:
    """SQL of an `Item` as JSON, all but its first key, the path: made by the database, a row at a time. Pure.

    A test compares it with what msgspec makes of the same item.
    """

    def text(column: str) -> str:
        return f"to_json(coalesce({quote_name(column)}, ''))::VARCHAR"

    parts = [
        "'\"id\":'",
        text("SeriesInstanceUID"),
        "',\"files\":'",
        f"({FILES})::VARCHAR",
        "',\"bytes\":'",
        f"({BYTES})::VARCHAR",
        '\',"location":{"source":"idc","bucket":\'',
        text("aws_bucket"),
        "',\"uuid\":'",
        text("crdc_series_uuid"),
        "'},\"licence\":'",
        text("license_short_name"),
        "',\"meta\":'",
        f"{meta}::VARCHAR",
        "'}'",
    ]
    return " || ".join(parts)


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
