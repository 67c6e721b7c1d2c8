"""Which images a `[select.isic]` table means: listed in as few calls as can be, then narrowed in a table of their rows.

Where to look: `ids` and `ids_file` are looked up a hundred a call; else each collection is listed, or everything that
`query` finds. What the site's search cannot decide (`conditions`, `where`) is decided on what it lists. `limit` takes
the first ones in the order of listing: collection by collection as the config names them, the oldest images first.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import msgspec

from pipeline.errors import ConfigError
from pipeline.settings import SelectIsic
from pipeline.sources.api_http import RefusedCallError
from pipeline.sources.duck import compose
from pipeline.sources.isic_client import IsicClient
from pipeline.sources.isic_dsl import MAX_QUERY, Selection, join_queries, plan_selection, review_query
from pipeline.sources.isic_inputs import check_id, read_conditions, read_ids
from pipeline.sources.isic_pages import PageTally
from pipeline.sources.isic_rows import Collection, Image
from pipeline.sources.isic_table import NAMES, ImageTable, named_images
from pipeline.sources.where import Where, check_where

SHOWN = 10
BATCH = 100  # ids in one query: as many as a page has images
_ID_LENGTH = 32  # of ` OR isic_id:ISIC_0000001` in a URL


class Unknown(msgspec.Struct, frozen=True):
    """Images of a list that the site does not have: withdrawn, not public, or never there. `names` in order."""

    names: tuple[str, ...] = ()
    asked: int = 0


def choose_collections(wanted: Sequence[str], known: Sequence[Collection]) -> list[Collection]:
    """Find each wanted collection by its number or its exact name, each once, in the order of `wanted`. Pure.

    Raises
    ------
    ConfigError
        For one that is not there, with the nearest that are, and for a name that several have.
    """
    by_id = {each.id: each for each in known}
    by_name: dict[str, list[Collection]] = {}
    for each in known:
        by_name.setdefault((each.name or "").strip(), []).append(each)
    found: dict[int, Collection] = {}
    for value in wanted:
        text = value.strip()
        numbered = by_id.get(int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else None
        matches = [numbered] if numbered is not None else by_name.get(text, [])
        if len(matches) > 1:
            numbers = ", ".join(str(each.id) for each in sorted(matches, key=lambda each: each.id))
            raise ConfigError(
                f"select.isic.collections: {value!r} is the name of several: {numbers}", hint="give the number"
            )
        if not matches:
            raise _explain_collection(value, by_name)
        found[matches[0].id] = matches[0]
    return list(found.values())


def _explain_collection(value: str, by_name: dict[str, list[Collection]]) -> ConfigError:
    folded = {name.casefold(): name for name in by_name if name}
    near = difflib.get_close_matches(value.strip().casefold(), folded, n=3, cutoff=0.5)
    near += [name for name in folded if value.strip().casefold() in name and name not in near][: 3 - len(near)]
    said = ""
    if near:
        names = [f"{folded[name]!r} ({by_name[folded[name]][0].id})" for name in near]
        said = f"; did you mean {' or '.join(names)}?"
    hint = "see `medhaul query isic` for what there is; one that is not public needs credentials"
    return ConfigError(f"select.isic.collections: no {value!r} among the archive's{said}", hint=hint)


def plan_batches(names: Iterable[str], query: str) -> Iterator[tuple[list[str], str]]:
    """Queries that find so many of the named images each, among what `query` finds; with their names. Pure."""
    room = (MAX_QUERY - len(quote(query))) // _ID_LENGTH
    rest = iter(names)
    while part := list(islice(rest, max(1, min(BATCH, room)))):
        yield part, join_queries(query, " OR ".join(f"isic_id:{name}" for name in part))


def describe_unknown(unknown: Unknown) -> str:
    """What to tell of unknown images, in one line. Pure."""
    count = len(unknown.names)
    more = f" and {count - SHOWN:,} more" if count > SHOWN else ""
    shown = ", ".join(unknown.names[:SHOWN])
    return f"{count:,} of {unknown.asked:,} listed images are not in the ISIC Archive: {shown}{more}"


class Finder:
    """Looks up a selection. Making it checks all that can be checked without the site.

    Attributes
    ----------
    collections
        The selected ones, in the config's order.
    notes
        What people should know of it.
    unknown
        Images of `ids_file` that the site does not have.
    pages
        How old the pages are that images were listed on.

    Raises `ConfigError` as `read_ids`, `plan_selection` and `check_where`.
    """

    def __init__(
        self, client: IsicClient, table: ImageTable, wanted: SelectIsic, on_progress: Callable[[int], None]
    ) -> None:
        self._client = client
        self._table = table
        self._wanted = wanted
        self._on_progress = on_progress
        self._where: Where | None = check_where(wanted.where, NAMES, name="select.isic.where") if wanted.where else None
        self._selection: Selection | None = None
        self.notes: list[str] = []
        if wanted.conditions:
            with self._naming_conditions():
                self._selection = plan_selection(read_conditions(Path(wanted.conditions)))
            self.notes += self._selection.notes
        self.pages = PageTally()
        self._names = self._read_names()
        self.collections: list[Collection] = []
        self.unknown = Unknown()
        self._doubts: tuple[str, ...] = ()
        self._listed = 0

    @contextlib.contextmanager
    def _naming_conditions(self) -> Iterator[None]:
        """Say of an error in conditions which file they are in."""
        try:
            yield
        except ConfigError as error:
            named = str(error).startswith("select.isic.conditions")
            text = str(error) if named else f"select.isic.conditions {self._wanted.conditions}: {error}"
            raise ConfigError(text, hint=error.hint) from None

    def _read_names(self) -> list[str] | None:
        """The ids that are asked for, each once; None where none are."""
        wanted = self._wanted
        if not wanted.ids and not wanted.ids_file:
            return None
        typed = list(dict.fromkeys(map(_parse_id, wanted.ids)))
        if not wanted.ids_file:
            return typed
        given = list(read_ids(Path(wanted.ids_file)))
        once = dict.fromkeys(given)
        if len(once) < len(given):
            count = len(given) - len(once)
            self.notes.append(f"{wanted.ids_file}: {count:,} lines repeat an image, which is taken once")
        if not typed:
            return list(once)
        both = [name for name in typed if name in once]
        if not both:
            raise ConfigError("nothing selected: no image is both in ids and in ids_file", hint="drop one of them")
        return both

    def find(self) -> None:
        """Ask the site.

        Raises
        ------
        ConfigError
            For collections, images and values of conditions that are not there, and a query that the site refuses.
        SiteUnavailableError
            When it does not answer as it should.
        """
        wanted = self._wanted
        if self._selection is not None:
            with self._naming_conditions():
                self._doubts = self._client.check_values(self._selection)
            self.notes += self._doubts
        if wanted.collections:
            self.collections = choose_collections(wanted.collections, self._client.collections())
        places = [(number, each.id) for number, each in enumerate(self.collections)] or [(-1, 0)]
        if self._names is not None:
            for place, number in places:
                for _, query in plan_batches(self._names, wanted.query):
                    self._take(query, place, number, most=0)
            self._table.flush()
            self._check_found(self._names)
        else:
            query = join_queries(wanted.query, self._selection.query if self._selection else "")
            # A `where` decides only later which images count.
            most = wanted.limit if self._where is None else 0
            for begun, (place, number) in enumerate(places, 1):
                before = self._table.images
                self._take(query, place, number, most=most)
                if most and self._table.images >= most:
                    # The rest of this list may have images of earlier ones, too.
                    self._find_memberships(places[begun - 1 : begun], before)
                    self._find_memberships(places[begun:], self._table.images)
                    break
            self._table.flush()

    def _take(self, query: str, place: int, number: int, *, most: int) -> None:
        """List what a query finds in a collection (0: anywhere); end once there are `most` images."""
        table, selection = self._table, self._selection
        for images in self._pages(query, number):
            for image in images:
                self._listed += 1
                if selection is None or selection.matches(image):
                    table.add(image, place)
                    if most and table.images >= most:
                        return
            self._on_progress(table.images)

    def _pages(self, query: str, number: int) -> Iterator[Sequence[Image]]:
        with self._explained():
            listing = self._client.image_pages(query, [number] if number else [])
            pages = iter(listing)
        while True:
            with self._explained():
                page = next(pages, None)
            if page is None:
                return
            self.pages.add(page)
            yield page.rows

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a call that the site refuses that the query is to blame."""
        try:
            yield
        except RefusedCallError as error:
            if not self._wanted.query:
                raise
            shown = self._wanted.query[:200]
            raise ConfigError(f"select.isic.query {shown!r}: the site refuses it: {error}", hint=error.hint) from None

    def _find_memberships(self, places: Sequence[tuple[int, int]], first: int) -> None:
        """Look up which of the `first` images that were taken are in collections that were not listed to the end."""
        if not places or not first:
            return
        self._table.flush()
        sql = "SELECT isic_id FROM images WHERE n <= ? ORDER BY n"
        names = [name for (name,) in self._table.stream(sql, [first])]
        for place, number in places:
            for _, query in plan_batches(names, ""):
                for images in self._pages(query, number):
                    for image in images:
                        self._table.add_member(image.isic_id, place)

    def _check_found(self, names: Sequence[str]) -> None:
        """Tell which of the images that were asked for one by one the site does not have."""
        there = {name for (name,) in self._table.stream("SELECT isic_id FROM images")}
        missing = [name for name in names if name not in there]
        if missing and (self.collections or self._wanted.query or self._selection):
            # They may be there, but not among what the other keys select.
            for _, query in plan_batches(missing, ""):
                for images in self._pages(query, 0):
                    there |= {image.isic_id for image in images}
            missing = [name for name in missing if name not in there]
        typed = set(map(_parse_id, self._wanted.ids))
        if wrong := [name for name in missing if name in typed]:
            more = f" and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
            raise ConfigError(
                f"select.isic.ids: {len(wrong):,} of {len(typed):,} not in the ISIC Archive: "
                f"{', '.join(wrong[:SHOWN])}{more}",
                hint="they may be withdrawn, or need credentials; an ids_file goes on without those",
            )
        self.unknown = Unknown(tuple(missing), len(names))
        if not missing:
            return
        said = describe_unknown(self.unknown)
        if len(missing) == len(names):
            raise ConfigError(said, hint="they may be withdrawn, or need credentials; check where the list comes from")
        self.notes.append(said)

    def narrow(self) -> None:
        """Choose among what was listed, into the table `chosen` of their numbers `n`.

        Raises
        ------
        ConfigError
            When nothing is left.
        """
        table, limit = self._table, self._wanted.limit
        condition = self._where.sql if self._where else "true"
        table.run(
            compose(
                "CREATE OR REPLACE TABLE chosen AS SELECT n FROM {images} WHERE {condition} {limit}",
                images=named_images(),
                condition=condition,
                limit=f"ORDER BY n LIMIT {limit}" if limit else "",
            )
        )
        if not table.count("chosen"):
            raise self._explain_nothing()

    def _explain_nothing(self) -> ConfigError:
        steps = [f"{self._listed:,} images listed"]
        if self._selection is not None:
            steps.append(f"{self._table.images:,} after conditions")
        if self._where is not None:
            steps.append(f"0 after where = {self._where.expression[:200]!r}")
        remarks = review_query(self._wanted.query) if not self._listed else []
        hint = "; ".join([*remarks, *self._doubts]) or "all conditions must hold at once; loosen the one that ends at 0"
        return ConfigError(f"nothing selected: {', '.join(steps)}", hint=hint)


def _parse_id(text: str) -> str:
    if not (found := check_id(text)):
        raise ConfigError(f"select.isic.ids: {text[:80]!r} is no ISIC id", hint="they look like ISIC_0000001")
    return found
