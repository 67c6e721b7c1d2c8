"""What the commands of `medhaul query tcia` share: the site's client, options, conditions, and manifests of series."""

from __future__ import annotations

import contextlib
import functools
import html
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from pipeline.cli.common import make_echo
from pipeline.cli.query_demo import ask_demo
from pipeline.cli.query_table import Output, choose_form, form_options, print_lines
from pipeline.errors import ConfigError, UsageError
from pipeline.sources.tcia_rows import Description, Patient, Row, Series, SeriesMetadata, Study, sql_columns
from pipeline.sources.tcia_search import FoundPatient
from pipeline.units import parse_duration, render_size

if TYPE_CHECKING:
    from pipeline.sources.tcia_client import TciaClient

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Row)

DAY = click.DateTime(["%Y-%m-%d"])
SILENCE = 8.0  # seconds after which people are told that the site is slow
RECOUNTED = 100  # series at most, each of which costs the site a slow query
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>")
FILTERS = {
    "collection": "Collection, in any case.",
    "patient": "PatientID.",
    "study": "StudyInstanceUID.",
    "series": "SeriesInstanceUID.",
    "modality": "DICOM modality.",
    "body_part": "BodyPartExamined.",
    "manufacturer": "Manufacturer.",
    "model": "ManufacturerModelName.",
}
_SERIES_TABLE = (
    *("SeriesInstanceUID", "Modality", "ImageCount", "FileSize", "BodyPartExamined", "PatientID", "collection"),
    *("StudyDate", "Manufacturer", "LicenseName", "SeriesDescription"),
)
# What a table shows of records that have more; CSV and JSON have all.
_TABLES: dict[type[msgspec.Struct], tuple[str, ...]] = {
    Series: _SERIES_TABLE,
    SeriesMetadata: (*_SERIES_TABLE[:4], "SliceThickness", "PixelSpacing", *_SERIES_TABLE[4:]),
    Patient: ("PatientID", "collection", "PatientSex", "EthnicGroup", "Phantom", "SpeciesDescription"),
    Study: ("StudyInstanceUID", "StudyDate", "SeriesCount", "PatientID", "collection", "StudyDescription"),
    FoundPatient: ("PatientID", "collection", "studies", "series", "modalities", "body_parts", "species"),
    Description: ("collection", "DataDescriptionURI", "description"),
}
_MANIFEST = """\
downloadServerUrl={server}
includeAnnotation=true
noOfrRetry=4
databasketId=manifest-{number}.tcia
manifestVersion=3.0
ListOfSeriesToDownload=
"""
_SERVER = "https://nbia.cancerimagingarchive.net/nbia-download/servlet/DownloadServlet"


def _parse_seconds(_: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return float(parse_duration(int(value) if value.isascii() and value.isdecimal() else value))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


_SITE_OPTIONS = (
    click.option(
        "--base-url", envvar="MEDHAUL_TCIA_BASE_URL", help="Of the API: .../nbia-api/services (TCIA's), or demo."
    ),
    click.option(
        "--api",
        type=click.Choice(["auto", "v4", "v1"]),
        default="auto",
        show_default=True,
        help="Version of the API; auto: v4, and the elder where that fails.",
    ),
    click.option(
        "--expire",
        default="1 d",
        show_default=True,
        callback=_parse_seconds,
        help="Keep answers for so long; 0: not at all.",
    ),
    click.option("--refresh", is_flag=True, help="Ask anew."),
    click.option("--offline", is_flag=True, help="Use kept answers only, however old; send nothing."),
    click.option(
        "--wait", default="10 min", show_default=True, callback=_parse_seconds, help="Patience with the site."
    ),
)


def asks_site(command: F) -> F:
    """Give a command the client as `client`, by the options of its connection, and an `Output` as `output`."""

    @functools.wraps(command)
    def run(form: str, columns: tuple[str, ...] = (), limit: int | None = None, **options: Any) -> None:
        site = {name: options.pop(name) for name in ("base_url", "api", "expire", "refresh", "offline", "wait")}
        note = make_echo(quiet=False, verbose=False).note
        waiting = threading.Timer(SILENCE, note, ["waiting for the site; `medhaul -v query ...` tells of repetitions"])
        waiting.daemon = True
        with open_client(**site) as client, contextlib.ExitStack() as stack:
            waiting.start()
            stack.callback(waiting.cancel)
            command(client=client, output=Output(choose_form(form), columns, limit, _TABLES), **options)

    wrapped: Any = form_options(run)
    for option in reversed(_SITE_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def row_options(command: F) -> F:
    """Add `--columns` and `--limit` to a command."""
    command = click.option("--limit", type=click.IntRange(min=1), help="Print at most so many rows.")(command)
    return click.option("--columns", multiple=True, metavar="A,B,...", help="These columns, in this order.")(command)


def filter_options(*names: str) -> Callable[[F], F]:
    """Add options that select by a value, each of which may be given more than once."""

    def add(command: F) -> F:
        for name in reversed(names):
            command = click.option(f"--{name.replace('_', '-')}", name, multiple=True, help=FILTERS[name])(command)
        return command

    return add


all_option = click.option("--all", "everything", is_flag=True, help="All series of the site: slow, and large.")
where_option = click.option("--where", default="", help="SQL condition over the rows; see `columns`.")
since_option = click.option("--since", type=DAY, required=True, metavar="YYYY-MM-DD", help="On that day or later.")


def list_options(command: F) -> F:
    """Add the options of commands that give series."""
    for option in (
        click.option("--manifest", type=click.Path(path_type=Path, dir_okay=False), help="Write a .tcia manifest."),
        click.option("--uids", is_flag=True, help="Print only SeriesInstanceUIDs, one a line."),
        where_option,
    ):
        command = option(command)
    return row_options(command)


@contextlib.contextmanager
def open_client(
    *, base_url: str | None, api: Any, expire: float, refresh: bool, offline: bool, wait: float
) -> Iterator[TciaClient]:
    """Yield a client as the options and the environment say.

    Raises
    ------
    UsageError, ConfigError, CredentialsError, StorageError
        Where these cannot be.
    """
    from pipeline.sources.tcia_api import BASE_URL
    from pipeline.sources.tcia_client import TciaClient
    from pipeline.sources.tcia_token import find_credentials
    from pipeline.transport.retry import Policy

    if refresh and offline:
        raise UsageError("--refresh and --offline contradict each other", hint="give one of them")
    if logging.getLogger("medhaul").isEnabledFor(logging.DEBUG):
        logging.getLogger("pipeline.sources").setLevel(logging.INFO)  # repetitions and their reasons
    with (
        ask_demo(base_url or BASE_URL, "tcia") as place,
        TciaClient(
            place.base_url,
            api=api,
            credentials=find_credentials(),
            cache_dir=place.cache_dir,
            expire=expire,
            refresh=refresh,
            offline=offline,
            policy=Policy(attempts=5, deadline=wait),
            attempt_seconds=min(wait, 300.0),
        ) as client,
    ):
        yield client


def combine(chosen: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """One question for each combination of the values that options have. Pure."""
    given = {name: list(dict.fromkeys(values)) for name, values in chosen.items() if values}
    return (dict(zip(given, values, strict=True)) for values in product(*given.values()))


def gather(ask: Callable[..., Iterable[R]], chosen: Mapping[str, Sequence[str]]) -> list[R]:
    """What all questions together give, each row once."""
    return list(dict.fromkeys(row for each in combine(chosen) for row in ask(**each)))


def make_filter(where: str, kind: type[R]) -> Callable[[list[R]], list[R]]:
    """Check a condition over records, before anybody is asked, and return what keeps those for which it holds.

    Raises
    ------
    ConfigError
        When the condition is none; the filter too, where it cannot be computed for a row.
    """
    if not where:
        return lambda rows: rows
    from pipeline.sources.where import check_where

    types = sql_columns(kind)
    condition = check_where(where, types, name="--where")

    def keep(rows: list[R]) -> list[R]:
        import tempfile

        from pipeline.sources.duck import compose, connect, quote_name, reading, storing

        names = list(condition.columns)
        made = ", ".join(f"{quote_name(name)} {types[name]}" for name in names)
        lists = ", ".join(f"unnest(?::{types[name]}[])" for name in names)
        kept: list[R] = []
        with storing("--where"), tempfile.TemporaryDirectory(prefix="medhaul-") as folder:
            connection = connect(folder, keep_order=True)
            try:
                with reading("--where", "write it so that it can be computed for every row"):
                    connection.execute(
                        compose("CREATE TABLE source (place BIGINT{made})", made=f", {made}" if made else "")
                    )
                    for start in range(0, len(rows), 10_000):
                        some = rows[start : start + 10_000]
                        values: list[Any] = [list(range(len(some)))]
                        values += [[getattr(row, name) for row in some] for name in names]
                        connection.execute("DELETE FROM source")
                        connection.execute(
                            compose(
                                "INSERT INTO source SELECT unnest(?::BIGINT[]){lists}",
                                lists=f", {lists}" if lists else "",
                            ),
                            values,
                        )
                        sql = compose("SELECT place FROM source WHERE {sql} ORDER BY place", sql=condition.sql)
                        kept += [some[place] for (place,) in connection.execute(sql).fetchall()]
            finally:
                connection.close()
        return kept

    return keep


def render_manifest(uids: Iterable[str], server: str, number: int) -> str:
    """A `.tcia` manifest as TCIA's portal writes it, for a list of series; `number` tells one from another. Pure."""
    return _MANIFEST.format(server=server, number=number) + "".join(f"{uid}\n" for uid in uids)


def choose_server(root: str) -> str:
    """What a manifest calls the server of a site whose services are at `root`. Pure."""
    start, services, _ = root.partition("/nbia-api/services")
    return f"{start}/nbia-download/servlet/DownloadServlet" if services else _SERVER


def write_manifest(
    client: TciaClient, path: Path, uids: Sequence[str], collections: Iterable[str | None], size: str = ""
) -> None:
    """Write a manifest, and say so. Raises `ConfigError` when there is nothing to write, `StorageError`."""
    from pipeline.atomic import write_atomic

    if not uids:
        raise ConfigError(f"{path}: nothing matches, so there is no manifest", hint="loosen the conditions")
    roots = {client.base_url_for(name or "") for name in collections}
    server = choose_server(roots.pop() if len(roots) == 1 else client.base_url_for(""))
    write_atomic(path, render_manifest(uids, server, int(time.time() * 1000)).encode())
    make_echo(quiet=False, verbose=False).note(f"{path}: {len(uids):,} series{size}")


def check_uids(names: Iterable[str]) -> None:
    """Raise `ConfigError` when the site names a series by something else than a UID: lists are for other programs."""
    for name in names:
        if not re.fullmatch(r"[0-9.]{1,64}", name):
            raise ConfigError(f"TCIA lists a series {name[:80]!r}, which is no UID", hint="leave it out by --where")


def give_series(
    client: TciaClient, output: Output, found: Iterable[R], kind: type[R], *, uids: bool, manifest: Path | None
) -> None:
    """Print series, or their UIDs, or write a manifest of them."""
    rows: list[Any] = list(islice(found, output.limit))
    names = list(dict.fromkeys(row.SeriesInstanceUID for row in rows))
    if uids or manifest is not None:
        check_uids(names)
    if manifest is not None:
        size = f", {render_size(sum(row.FileSize or 0 for row in rows))}"
        write_manifest(client, manifest, names, (row.collection for row in rows), size)
    if uids:
        print_lines(names)
    elif manifest is None:
        output.records(rows, kind)


def strip_markup(text: str) -> str:
    """HTML as one line of text. Pure."""
    return " ".join(html.unescape(_MARKUP.sub(" ", text)).split())
