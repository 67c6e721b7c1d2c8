"""Which fields ISIC images use: with counts, types and frequent values, of rows or of what the site counts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

import msgspec

from pipeline.sources.isic_fields import FIELDS
from pipeline.sources.isic_rows import Value

_DISTINCT = 200  # values of a field that are told apart; ids and sizes have more
_SHOWN = 5
_ORDER = {column: place for place, column in enumerate(FIELDS)}


class FieldUse(msgspec.Struct, frozen=True):
    """A field in use.

    Attributes
    ----------
    images
        How many have it.
    distinct
        How many values it has; None: more than are told apart, or nobody says.
    values
        The most frequent ones with their counts.
    """

    field: str
    type: str
    images: int
    distinct: int | None
    values: str
    column: str


class Census:
    """Counts the fields of rows, in memory that does not grow with them."""

    def __init__(self) -> None:
        self.rows = 0
        self._images: Counter[str] = Counter()
        self._values: dict[str, Counter[str]] = {}
        self._full: set[str] = set()
        self._types: dict[str, set[str]] = {}

    def add(self, row: Mapping[str, Value]) -> None:
        """Count a row of `flatten_image`."""
        self.rows += 1
        for column, value in row.items():
            if value is None:
                continue
            self._images[column] += 1
            if column not in FIELDS:
                self._types.setdefault(column, set()).add(_type_name(value))
            if column in self._full:
                continue
            values = self._values.setdefault(column, Counter())
            values[_show(value)] += 1
            if len(values) > _DISTINCT:
                self._full.add(column)
                del self._values[column]

    def result(self) -> list[FieldUse]:
        """The fields in use: those of the registry in its order, then the others by name."""
        found: list[FieldUse] = []
        for column in sorted(self._images, key=lambda each: (_ORDER.get(each, len(_ORDER)), each)):
            values = self._values.get(column)
            field = FIELDS.get(column)
            found.append(
                FieldUse(
                    field=field.name if field else f"other:{column}",
                    type=field.kind if field else " or ".join(sorted(self._types[column])),
                    images=self._images[column],
                    distinct=len(values) if values is not None else None,
                    values=_show_counts(values) if values is not None else "",
                    column=column,
                )
            )
        return found


def read_uses(facets: Mapping[str, Mapping[str, int]]) -> list[FieldUse]:
    """The same of what the site counts, which are a field's most frequent values: `images` is at least so many."""
    names = {field.name: field for field in FIELDS.values()}
    uses = []
    for name, counts in facets.items():
        field = names.get(name)
        uses.append(
            FieldUse(
                field=name,
                type=field.kind if field else "text",
                images=sum(counts.values()),
                distinct=None,
                values=_show_counts(counts),
                column=field.column if field else "",
            )
        )
    return sorted(uses, key=lambda each: (_ORDER.get(each.column, len(_ORDER)), each.field))


def _show_counts(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown = "; ".join(f"{value[:60]} ({count:,})" for value, count in most[:_SHOWN])
    return shown + ("; …" if len(most) > _SHOWN else "")


def _show(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _type_name(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "decimal" if isinstance(value, Decimal) else "text"
