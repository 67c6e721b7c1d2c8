"""What the planner asks of a source: items in order, and the words and tables that go with them."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from pipeline.model import Item


class EncodedItem(NamedTuple):
    """An item that the source has as JSON already, with what the planner must know of it."""

    id: str
    path: str
    files: int
    bytes: int
    licence: str
    json: builtins.bytes


class Selected(NamedTuple):
    """An item with the name of the group (archive) it goes to."""

    group: str
    item: Item | EncodedItem


class PlanSource(Protocol):
    """A source's side of planning.

    Attributes
    ----------
    name, release
        The source, and the data release that the plan is pinned to.
    columns
        Names of the values in each item's `meta`.
    """

    name: str
    release: str
    columns: list[str]

    def select(self) -> Iterator[Selected]:
        """Yield the selected items, sorted by group and, within a group, by path (bytewise)."""
        ...

    def citations(self) -> dict[str, str]:
        """DOI -> citation text of what was selected; complete once `select` has been exhausted."""
        ...


@runtime_checkable
class TellingSource(PlanSource, Protocol):
    """A source that has more to say of a selection than its items; all of it once `select` has been exhausted.

    Attributes
    ----------
    missing
        Number of items that were asked for by name, or selected, and are not among the items.
    """

    @property
    def missing(self) -> int: ...

    def extras(self) -> dict[str, bytes]:
        """Files for the run directory, by name. May ask the site once more; asked only for a run that is new."""
        ...

    def notes(self) -> list[str]:
        """What people should know, a line each; asked last."""
        ...
