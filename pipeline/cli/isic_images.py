"""The images that options of ISIC commands select: by collections, queries, conditions and ids, as they come."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pipeline.cli.progress import PLAIN_SECONDS
from pipeline.errors import ConfigError
from pipeline.sources.isic_dsl import Selection, join_queries, plan_selection
from pipeline.sources.isic_fields import FIELDS, OLD_NAMES
from pipeline.sources.isic_pages import PageTally
from pipeline.sources.isic_rows import Image, flatten_image

if TYPE_CHECKING:
    from pipeline.sources.isic_client import IsicClient

Keep = Callable[[list[Image]], list[Image]]
Tell = Callable[[int, int | None], None]


class Wanted(msgspec.Struct, frozen=True):
    """Which images: all that is given must hold. `ids` None: no list was given. `all`: nothing was given at all."""

    query: str = ""
    collections: tuple[str, ...] = ()
    where: str = ""
    conditions: Selection | None = None
    ids: tuple[str, ...] | None = None

    @property
    def all(self) -> bool:
        """Whether nothing chooses."""
        return self == Wanted()


def read_wanted(
    query: str, collections: Sequence[str], where: str, conditions: Path | None, ids: Path | None
) -> Wanted:
    """Read what options name. Raises `ConfigError` for files and conditions that cannot be used."""
    from pipeline.sources.isic_inputs import read_conditions, read_ids

    chosen = plan_selection(read_conditions(conditions, "--conditions")) if conditions else None
    listed = tuple(dict.fromkeys(read_ids(ids, "--ids"))) if ids else None
    return Wanted(query.strip(), tuple(dict.fromkeys(collections)), where.strip(), chosen, listed)


class Images:
    """The wanted images: iterate once. The condition of `where` is checked at once, before anybody is asked.

    Attributes
    ----------
    numbers
        Collections by number, once the iteration has begun.
    listed
        Images that came, before conditions were looked at here.
    missing
        Ids of the list that the archive does not have.
    pages
        How old the pages are that they were listed on.
    """

    def __init__(self, client: IsicClient, wanted: Wanted, tell: Tell = lambda _done, _total: None) -> None:
        self._client = client
        self._wanted = wanted
        self._tell = tell
        self._where = check_image_where(wanted.where)
        self.numbers: tuple[int, ...] = ()
        self.listed = 0
        self.missing: list[str] = []
        self.pages = PageTally()
        self._checked = wanted.conditions is None

    def __iter__(self) -> Iterator[Image]:
        """Images, oldest first, or in the order of the list of ids. Raises as `IsicClient.image_pages`."""
        self.check_conditions()
        self.resolve()
        with self._where() as keep:
            for images in self._lists():
                met = self._wanted.conditions
                yield from keep([each for each in images if met is None or met.matches(each)])

    def check_conditions(self) -> None:
        """Ask the site, once, whether values of conditions may be; warn of doubts. Raises `ConfigError`."""
        if self._wanted.conditions is not None and not self._checked:
            self._checked = True
            for doubt in self._client.check_values(self._wanted.conditions):
                click.echo(f"warning: {doubt}", err=True)

    def resolve(self) -> tuple[int, ...]:
        """The numbers of the collections."""
        if self._wanted.collections and not self.numbers:
            self.numbers = find_collections(self._client, self._wanted.collections)
        return self.numbers

    def names(self) -> dict[int, str]:
        """The names of the collections."""
        return {number: self._client.collection(number).name or str(number) for number in self.resolve()}

    @property
    def query(self) -> str:
        """What the site is asked."""
        conditions = self._wanted.conditions
        return join_queries(self._wanted.query, conditions.query if conditions else "")

    def _lists(self) -> Iterator[list[Image]]:
        if self._wanted.ids is None:
            yield from self._pages(self.query, self.numbers)
            return
        from pipeline.sources.isic_select import plan_batches

        total, asked = len(self._wanted.ids), 0
        for some, query in plan_batches(self._wanted.ids, self.query):
            found = {each.isic_id: each for page in self._pages(query, self.numbers, quiet=True) for each in page}
            self.missing += [isic_id for isic_id in some if isic_id not in found]
            asked += len(some)
            self._tell(asked, total)
            yield [found[isic_id] for isic_id in some if isic_id in found]
        if self.missing and (self.query or self.numbers):
            # They may be there, but not among what the other options select.
            there = {
                each.isic_id
                for _, query in plan_batches(self.missing, "")
                for page in self._pages(query, (), quiet=True)
                for each in page
            }
            self.missing = [isic_id for isic_id in self.missing if isic_id not in there]

    def _pages(self, query: str, numbers: Sequence[int], *, quiet: bool = False) -> Iterator[list[Image]]:
        listing = self._client.image_pages(query, numbers)
        for page in listing:
            self.listed += len(page.rows)
            if not quiet:
                self._tell(listing.listed, listing.counted)
            self.pages.add(page)
            yield list(page.rows)

    def memberships(self, names: Sequence[str] | None = None) -> dict[str, int]:
        """By image, a bit for each of several collections, in their order.

        Asks for each collection's images, or only for those of `names`, a hundred at a time.
        """
        from pipeline.sources.isic_select import plan_batches

        self.check_conditions()
        before = self.listed
        queries = [self.query] if names is None else [query for _, query in plan_batches(names, "")]
        found: dict[str, int] = {}
        for place, number in enumerate(self.resolve()):
            for query in queries:
                for images in self._pages(query, [number], quiet=True):
                    for each in images:
                        found[each.isic_id] = found.get(each.isic_id, 0) | 1 << place
        self.listed = before
        return found


def find_collections(client: IsicClient, names: Iterable[str]) -> tuple[int, ...]:
    """Numbers of collections that are given by number or by name, each once.

    Raises
    ------
    ConfigError
        For a name that no collection has, with the nearest ones, or that several have, with their numbers.
    """
    known: dict[str, list[int]] = {}
    spelt: dict[str, str] = {}
    numbers: dict[int, None] = {}
    for name in names:
        if re.fullmatch(r"[0-9]{1,9}", name.strip(), re.ASCII):
            numbers[client.collection(int(name)).id] = None
            continue
        if not known:
            for each in client.collections():
                spelt.setdefault(_fold(each.name or ""), each.name or "")
                known.setdefault(_fold(each.name or ""), []).append(each.id)
        found = known.get(_fold(name), [])
        if len(found) != 1:
            near = [spelt[each] for each in difflib.get_close_matches(_fold(name), known, n=3)]
            hint = f"did you mean {' or '.join(near)}?" if near else "`medhaul query isic collections` lists them"
            if found:
                hint = f"give a number: {', '.join(map(str, sorted(found)))}"
            text = f"ISIC has {len(found) or 'no'} collection{'s' if found else ''} named {name[:100]!r}"
            raise ConfigError(text, hint=hint)
        numbers[found[0]] = None
    return tuple(numbers)


def _fold(name: str) -> str:
    return " ".join(name.split()).casefold()


def check_image_where(where: str) -> Callable[[], contextlib.AbstractContextManager[Keep]]:
    """Check a condition over images, and return what opens a filter by it.

    Raises
    ------
    ConfigError
        When the condition is none; the filter too, where it cannot be computed for a row.
    """
    if not where:
        return lambda: contextlib.nullcontext(lambda images: images)
    from pipeline.sources.isic_table import NAMES
    from pipeline.sources.where import check_where

    try:
        condition = check_where(where, NAMES, name="--where")
    except ConfigError as error:
        old = [name for name in OLD_NAMES if OLD_NAMES[name].new != name and re.search(rf"\b{name}\b", where)]
        hints = [f"{name}: {OLD_NAMES[name].note}" for name in old if name in str(error)]
        hint = "; ".join(hints) or "`medhaul query isic fields` lists the columns; text stands in single quotes"
        raise ConfigError(str(error), hint=hint) from None

    @contextmanager
    def open_filter() -> Iterator[Keep]:
        from pipeline.sources.duck import compose, connect, quote_name, reading, storing

        names = list(condition.columns)
        column_of = {field.name: field.column for field in FIELDS.values()}
        made = "".join(f", {quote_name(name)} {NAMES[name]}" for name in names)
        lists = "".join(f", unnest(?::{NAMES[name]}[])" for name in names)
        insert = compose("INSERT INTO source SELECT unnest(?::BIGINT[]){lists}", lists=lists)
        select = compose("SELECT place FROM source WHERE {sql} ORDER BY place", sql=condition.sql)
        with storing("--where"):
            folder = tempfile.TemporaryDirectory(prefix="medhaul-")
        with folder:
            connection = connect(folder.name, keep_order=True)

            def keep(images: list[Image]) -> list[Image]:
                if not images:
                    return []
                rows = [flatten_image(each) for each in images]
                values: list[Any] = [list(range(len(rows)))]
                values += [[row[column_of.get(name, name)] for row in rows] for name in names]
                with reading("--where", "write it so that it can be computed for every row"):
                    connection.execute("DELETE FROM source")
                    connection.execute(insert, values)
                    return [images[place] for (place,) in connection.execute(select).fetchall()]

            try:
                connection.execute(compose("CREATE TABLE source (place BIGINT{made})", made=made))
                yield keep
            finally:
                connection.close()

    return open_filter


@contextmanager
def image_progress(label: str, *, quiet: bool) -> Iterator[Tell]:
    """Yield a function to tell (images done, in all or None); a bar on a terminal, lines now and then elsewhere."""
    if quiet:
        yield lambda _done, _total: None
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        yield plain_image_progress(label, lambda line: click.echo(line, err=True))


def plain_image_progress(label: str, write: Callable[[str], None], *, clock: Callable[[], float] | None = None) -> Tell:
    """Return a function that writes a line every `PLAIN_SECONDS`; work that is shorter writes none."""
    now = clock or time.monotonic
    written = now()

    def show(done: int, total: int | None) -> None:
        nonlocal written
        if now() >= written + PLAIN_SECONDS:
            written = now()
            write(f"{label}: {done:,}{f' of {total:,}' if total is not None else ''} images")

    return show


def tell_kept(pages: PageTally) -> str:
    """One line on pages that were not asked for now; "" where all were. Pure."""
    if not pages.kept:
        return ""
    return (
        f"{pages.kept:,} of {pages.total:,} pages of lists are kept from {pages.days[0]} or later; what changed since"
        " about their images is not seen: --refresh asks anew"
    )


def tell_missing(missing: Sequence[str], asked: int) -> str:
    """One line on ids that did not come. Pure."""
    more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    return f"{len(missing):,} of {asked:,} images: {', '.join(missing[:5])}{more}"
