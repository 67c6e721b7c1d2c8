"""What the commands that ask the ISIC Archive share: its client, options, sorted and chosen rows."""

from __future__ import annotations

import contextlib
import functools
import heapq
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.common import make_echo
from pipeline.cli.isic_images import Images, Wanted, read_wanted, tell_kept
from pipeline.cli.query_demo import ask_demo
from pipeline.cli.query_table import Form, Output, choose_columns, choose_form, form_options, print_lines, printing
from pipeline.errors import ConfigError, UsageError
from pipeline.process import signal_handlers
from pipeline.sources.isic_dsl import review_query
from pipeline.sources.isic_fields import FIELDS, resolve_path
from pipeline.sources.isic_rows import Image
from pipeline.units import parse_duration

if TYPE_CHECKING:
    from pipeline.sources.isic_client import IsicClient

F = TypeVar("F", bound=Callable[..., Any])

SILENCE = 8.0  # seconds after which people are told that the site is slow
_PAGES_EXPIRE = 30 * 86_400.0  # of pages of images, which do not change while the site only adds images
OTHER = "other"
IMAGE_HEADER = (*(field.name for field in FIELDS.values()), OTHER)
IMAGE_TABLE = (
    *("isic_id", "image_type", "diagnosis_1", "diagnosis_3", "age_approx", "sex", "anatom_site_1"),
    *("copyright_license", "pixels_x", "pixels_y"),
)


def _parse_seconds(_: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return float(parse_duration(int(value) if value.isascii() and value.isdecimal() else value))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


_SITE_OPTIONS = (
    click.option(
        "--base-url", envvar="MEDHAUL_ISIC_BASE_URL", help="Of the API: .../api/v2 (the ISIC Archive's), or demo."
    ),
    click.option(
        "--expire",
        callback=_parse_seconds,
        help="Keep answers for so long; 0: not at all. Otherwise a day, and 30 d for pages of lists of images.",
    ),
    click.option("--refresh", is_flag=True, help="Ask anew."),
    click.option("--offline", is_flag=True, help="Use kept answers only, however old; send nothing."),
    click.option(
        "--wait", default="10 min", show_default=True, callback=_parse_seconds, help="Patience with the site."
    ),
)


def site_options(command: F) -> F:
    """Add the options of the connection to a command."""
    for option in reversed(_SITE_OPTIONS):
        command = option(command)
    return command


def asks_site(*usual: str, sortable: bool = True) -> Callable[[F], F]:
    """Give a command the client as `client`, by the options of its connection, and an `Output` as `output`.

    `usual`: the columns that a table shows. `sortable`: rows have `--sort`, `--columns` and `--limit`, too.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(form: str, columns: tuple[str, ...] = (), limit: int | None = None, **options: Any) -> None:
            site = {name: options.pop(name) for name in ("base_url", "expire", "refresh", "offline", "wait")}
            chosen = choose_form(form)
            rows = Rows(chosen, columns or (usual if chosen.kind == "table" else ()), limit, options.pop("sort", ""))
            with ended_by_sigterm(), open_client(**site) as client, patience(), printing():
                command(client=client, output=rows, **options)

        wrapped = site_options(form_options(run))
        return row_options(wrapped) if sortable else wrapped  # type: ignore[return-value]

    return decorate


def row_options(command: F) -> F:
    """Add `--columns`, `--sort` and `--limit` to a command."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Print at most so many rows."),
        click.option("--sort", default="", metavar="COLUMN", help="Sort by a column; -COLUMN: the largest first."),
        click.option("--columns", multiple=True, metavar="A,B,...", help="These columns, in this order."),
    ):
        command = option(command)
    return command


def select_options(command: F) -> F:
    """Add the options that select images, and give the command what they say as `wanted`."""

    @functools.wraps(command)
    def run(
        query: str,
        collection: tuple[str, ...],
        where: str,
        conditions: Path | None,
        ids: Path | None,
        **options: Any,
    ) -> None:
        wanted = read_wanted(query, collection, where, conditions, ids)
        for note in wanted.conditions.notes if wanted.conditions else ():
            make_echo(quiet=False, verbose=False).note(note)
        command(wanted=wanted, **options)

    wrapped: Any = run
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--ids", type=file, metavar="FILE", help="Only these ISIC ids, of a text or CSV file."),
        click.option(
            "--conditions", type=file, metavar="FILE", help="JSON: [[path, operator, value], ...] of older tools."
        ),
        click.option("--where", default="", metavar="SQL", help="SQL condition over the fields, decided here."),
        click.option("--collection", multiple=True, help="Collection, by number or name; several: in any of them."),
        click.option("--query", default="", metavar="DSL", help="In the archive's own search language."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as SIGINT does: what is unfinished is taken away, and the exit code is 75."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    with signal_handlers({signal.SIGTERM: signal.default_int_handler}):
        yield


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Tell people who wait for long what they wait for."""
    note = make_echo(quiet=False, verbose=False).note
    waiting = threading.Timer(SILENCE, note, ["waiting for the site; `medhaul -v ...` tells of repetitions"])
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


@contextlib.contextmanager
def open_client(
    *, base_url: str | None, expire: float | None, refresh: bool, offline: bool, wait: float
) -> Iterator[IsicClient]:
    """Yield a client as the options and the environment say.

    Raises
    ------
    UsageError, ConfigError, CredentialsError, StorageError
        Where these cannot be.
    """
    from pipeline.sources.isic_client import BASE_URL, IsicClient
    from pipeline.sources.isic_token import find_token
    from pipeline.transport.retry import Policy

    if refresh and offline:
        raise UsageError("--refresh and --offline contradict each other", hint="give one of them")
    if logging.getLogger("medhaul").isEnabledFor(logging.DEBUG):
        logging.getLogger("pipeline.sources").setLevel(logging.INFO)  # repetitions and their reasons
    with (
        ask_demo(base_url or BASE_URL, "isic") as place,
        IsicClient(
            place.base_url,
            token=find_token(),
            cache_dir=place.cache_dir,
            expire=86_400.0 if expire is None else expire,
            pages_expire=_PAGES_EXPIRE if expire is None else expire,
            refresh=refresh,
            offline=offline,
            policy=Policy(attempts=6, deadline=wait),
            attempt_seconds=min(wait, 300.0),
        ) as client,
    ):
        yield client


class Rows(Output):
    """An `Output` whose rows may be sorted, and whose decimals and left-over values fit each form."""

    def __init__(self, form: Form, columns: Sequence[str], limit: int | None, sort: str) -> None:
        super().__init__(form, (), limit)
        self._sort = sort
        self.choose(*columns)

    @property
    def sorts(self) -> bool:
        """Whether the rows are sorted before they are limited."""
        return bool(self._sort)

    def choose(self, *columns: str) -> None:
        """Show these columns, each argument one or several joined by commas; none: all."""
        self.wanted = tuple(name.strip() for each in columns for name in each.split(",") if name.strip())

    def show(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print rows of cells. Raises `UsageError` for a column that there is not."""
        places = choose_columns(header, self.wanted or header)
        ordered = iter(sort_rows(header, rows, self._sort, self.limit))
        first = list(islice(ordered, 1))  # so that no header is printed before what may fail
        cells = ([_fit_cell(row[place], self.kind) for place in places] for row in chain(first, ordered))
        self.rows([header[place] for place in places], cells)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines, at most as many as are wanted."""
        print_lines(islice(lines, self.limit))


def _fit_cell(value: Any, kind: str) -> Any:
    if isinstance(value, Mapping):
        values = {name: str(each) if isinstance(each, Decimal) else each for name, each in value.items()}
        if kind == "json":
            return values
        return json.dumps(values, ensure_ascii=False, sort_keys=True) if values else None
    return float(value) if kind == "json" and isinstance(value, Decimal) else value


def sort_rows(
    header: Sequence[str], rows: Iterable[Sequence[Any]], sort: str, limit: int | None = None
) -> Iterable[Sequence[Any]]:
    """Rows sorted by a column, the first `limit` of them; what has no value there comes last. Pure.

    Raises
    ------
    UsageError
        For a column that there is not.
    """
    if not sort:
        return rows
    place = choose_columns(header, [sort.removeprefix("-")])[0]
    down = sort.startswith("-")

    def key(row: Sequence[Any]) -> tuple[Any, ...]:
        value = row[place]
        number = isinstance(value, (int, float, Decimal))
        # Missing last in either direction: `nlargest` turns the order round.
        return (value is None) != down, not number, value if number else str(value).casefold()

    if limit is not None:
        return heapq.nlargest(limit, rows, key) if down else heapq.nsmallest(limit, rows, key)
    return sorted(rows, key=key, reverse=down)


def image_cells(image: Image) -> list[Any]:
    """An image as cells of `IMAGE_HEADER`; signatures of URLs are left out."""
    from pipeline.sources.isic_table import image_row

    row, other = image_row(image)
    return [*row.values(), other]


def name_columns(columns: Sequence[str]) -> list[str]:
    """Names of columns of images, older names of fields as what they are now, with a note on stderr.

    Raises
    ------
    UsageError
        For an unknown one.
    """
    names: list[str] = []
    known = {name.casefold() for name in IMAGE_HEADER}
    for name in (part.strip() for each in columns for part in each.split(",")):
        if not name or name.casefold() in known:
            names += [name] if name else []
            continue
        try:
            found = resolve_path(name)
        except ConfigError as error:
            raise UsageError(str(error), hint=error.hint) from None
        if found.note:
            make_echo(quiet=False, verbose=False).note(found.note)
        names.append(found.field.name)
    return names


def note_kept(images: Images) -> None:
    """Tell people that part of what came was not asked for now."""
    if said := tell_kept(images.pages):
        make_echo(quiet=False, verbose=False).note(said)


def explain_nothing(images: Images, wanted: Wanted) -> str:
    """Why nothing may have come: what the site would not say. Pure."""
    remarks = review_query(wanted.query) if not images.listed else []
    return "; ".join(remarks)
