"""Planning from TCIA: series as NBIA lists them, each by the route that suits it, become items in path order."""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.model import IdcLocation, Item, Location, NbiaLocation
from pipeline.plan.paths import FolderTemplate
from pipeline.plan.source import Selected
from pipeline.rundir import encode_record
from pipeline.settings import ITEM_FIELDS, Config, SourceTcia
from pipeline.sizes import SERIES_FILES
from pipeline.sources.duck import compose, quote_name
from pipeline.sources.idc_index import IdcIndex, plain_text
from pipeline.sources.tcia_api import parse_base_url
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_inputs import SeriesList, read_series_list
from pipeline.sources.tcia_route import Choice, Stated, choose_route
from pipeline.sources.tcia_select import SHOWN, Finder, Unknown, group_reasons
from pipeline.sources.tcia_table import COLUMNS, MEMORY, SeriesTable
from pipeline.sources.tcia_token import find_credentials, shared_token
from pipeline.units import render_size

# What a row's meta holds beside what TCIA says of the series.
ADDED = ("source_DOI", "route", "route_reason", "crdc_series_uuid")
DEMO = "demo"
MAX_CITATION = 1000  # characters; a longer paragraph of a description is no citation
LICENCES_SECONDS = 300.0  # for all licence texts
_PLACED = {"n": "BIGINT", "grp": "VARCHAR", "path": "VARCHAR", "way": "VARCHAR", "reason": "VARCHAR"}
_GROUPS = {"collection": "collection", "licence": "LicenseName", "run": ""}


class TciaPlanSource:
    """TCIA, seen by the planner. Use it in a `with` block, or close it.

    Parameters
    ----------
    config
        With `[select.tcia]`; endpoints as they are to be asked.
    named_url
        What items say of NBIA's address in place of the one that was asked: `demo`, whose port changes.
    cache_dir
        Of the API's answers; by default the user's.
    clock
        Seconds since 1970; tells the day of the listing.

    Raises as `TciaClient`, `IdcIndex.open` and `read_series_list`.
    """

    name = "tcia"

    def __init__(
        self,
        config: Config,
        *,
        named_url: str = "",
        cache_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        select, source = config.select.tcia, config.sources.tcia
        assert select is not None, "the caller chose this source by its table"
        self._config, self._select, self._route = config, select, source.route
        self._named_url = named_url
        listed: SeriesList | None = read_series_list(Path(select.manifest)) if select.manifest else None
        self._client = make_client(source, cache_dir)
        self._use_index = self._route != "nbia"
        self._index: IdcIndex | None = None
        if self._use_index or (listed is not None and listed.kind == "idc"):
            self._index = self._open_index()
        self._table = SeriesTable(self._index)
        self._finder = Finder(self._client, self._table, select, listed, use_index=self._use_index)
        # The site has no releases, and the day must not be here: this is part of what the manifest's SHA-256 is of.
        self.release = f"nbia, idc {self._index.release}" if self._index is not None else "nbia"
        self.columns = [*COLUMNS, *ADDED]
        self._day = dt.datetime.fromtimestamp(clock(), dt.UTC).date().isoformat()
        self._ways: Counter[Choice] = Counter()
        self._lacking: list[str] = []
        self._wrong: list[str] = []  # series of which NBIA states what cannot be
        self._stop = threading.Event()

    def _open_index(self) -> IdcIndex:
        try:
            return IdcIndex.open(self._config.sources.idc, memory=MEMORY)
        except ConfigError as error:
            hint = f"{error.hint}; or take all from NBIA: sources.tcia.route = 'nbia'"
            raise ConfigError(str(error), hint=hint) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections, memory and temporary files."""
        self._stop.set()
        self._client.close()
        self._table.close()
        if self._index is not None:
            self._index.close()

    # -- selection -------------------------------------------------------------------------------------------------

    def select(self) -> Iterator[Selected]:
        """Yield the selected series by group and path.

        Raises
        ------
        ConfigError
            When nothing is selected, a name or identifier is nowhere, or no series comes by the route that is forced.
        SiteUnavailableError
            When TCIA does not answer as it should.
        """
        self._finder.find()
        self._finder.narrow()
        columns = ", ".join(f"{name} {kind}" for name, kind in _PLACED.items())
        self._table.run(compose("CREATE TABLE placed ({columns})", columns=columns))
        self._table.load("placed", _PLACED, self._place())
        if not self._ways:
            raise ConfigError(
                f"none of {len(self._lacking):,} selected series comes by route {self._route}",
                hint="use route = 'auto', or select other series",
            )
        names = ", ".join(f"c.{quote_name(name)}" for name in COLUMNS)
        rows = self._table.stream_ranked(
            "SELECT n FROM placed ORDER BY grp, path",
            f"c.n, p.grp, p.way, p.reason, i.bucket, i.uuid, i.files, i.bytes, {names}, p.path",
            "chosen c JOIN placed p ON p.n = c.n LEFT JOIN idc i ON i.uid = c.SeriesInstanceUID",
        )
        urls: dict[str, Location] = {}
        encode = msgspec.json.Encoder().encode
        for _, group, way, reason, bucket, uuid, files, size, *values, path in rows:
            row = dict(zip(COLUMNS, values, strict=True))
            location: Location
            if way == "idc":
                location, count, total = IdcLocation(bucket, uuid), files, size
            else:
                location = self._nbia(urls, row["collection"] or "")
                stated, _ = read_stated(row["ImageCount"], row["FileSize"])
                count, total = stated.files, stated.bytes
            meta = [*values, parse_doi(row["DataDescriptionURI"]), way, reason, uuid if way == "idc" else None]
            yield Selected(
                group,
                Item(
                    id=row["SeriesInstanceUID"],
                    path=path,
                    files=count,
                    bytes=total,
                    location=location,
                    licence=row["LicenseName"] or "",
                    meta=msgspec.Raw(encode(meta)),
                ),
            )

    def _place(self) -> Iterator[dict[str, Any]]:
        """Say of each series which group, path and route it has; those without a route are left out, and noted."""
        config = self._config
        fill = FolderTemplate(config.archive.path, ITEM_FIELDS)
        column = _GROUPS[config.archive.group_by]
        group = f"coalesce({quote_name(column)}, '')" if column else "''"
        texts = ", ".join(f"coalesce({quote_name(field)}, '')" for field in ITEM_FIELDS)
        sql = compose(
            'SELECT n, {group}, "ImageCount", "FileSize", i.files, i.bytes, i.uid IS NOT NULL, '
            "SeriesInstanceUID IN (SELECT SeriesInstanceUID FROM only_idc), {texts} "
            "FROM chosen LEFT JOIN idc i ON i.uid = SeriesInstanceUID ORDER BY n",
            group=group,
            texts=texts,
        )
        for number, name, count, size, files, total, in_idc, not_nbia, *values in self._table.stream(sql):
            stated, wrong = read_stated(count, size)
            if wrong and not not_nbia:
                self._wrong.append(f"{values[-1]} ({count or 'no'} images, {render_size(size or 0)})")
            choice = choose_route(self._route, None if not_nbia else stated, Stated(files, total) if in_idc else None)
            if choice is None:
                self._lacking.append(values[-1])
                continue
            self._ways[choice] += 1
            shown = (name or "unknown") if column else config.run.name
            yield {"n": number, "grp": shown, "path": fill(values), "way": choice.way, "reason": choice.reason}

    def _nbia(self, urls: dict[str, Location], collection: str) -> Location:
        found = urls.get(collection)
        if found is None:
            url = self._named_url or self._client.base_url_for(collection)
            found = urls[collection] = NbiaLocation(url)
        return found

    # -- what goes with it -----------------------------------------------------------------------------------------

    def citations(self) -> dict[str, str]:
        """Citation of each DOI: the IDC index's, else the paragraph of TCIA's description that names the DOI."""
        sql = "SELECT DISTINCT collection, DataDescriptionURI FROM chosen JOIN placed USING (n) ORDER BY ALL"
        collections: dict[str, list[str]] = {}
        for name, uri in self._table.fetch(sql):
            if doi := parse_doi(uri):
                collections.setdefault(doi, []).append(name or "")
        found: dict[str, str] = {}
        if self._index is not None:
            found = {doi: text for doi, (text, _) in self._index.citations(collections).items() if text}
        described: dict[str, str] = {}
        if len(found) < len(collections):
            try:
                described = {each.collection: each.description or "" for each in self._client.descriptions()}
            except (SiteUnavailableError, ConfigError) as error:
                self._finder.notes.append(f"without the collections' descriptions, citations are bare: {error}")
        for doi, names in collections.items():
            texts = [find_citation(described.get(name, ""), doi) for name in names]
            bare = f"{', '.join(filter(None, names))}. The Cancer Imaging Archive. {render_doi(doi)}"
            found.setdefault(doi, next(filter(None, texts), bare))
        return found

    def extras(self) -> dict[str, bytes]:
        """Files for the run directory: licence texts by collection and licence, and the series that are not there."""
        found = {}
        if licences := self._fetch_licences():
            found["licences.json"] = encode_record(licences)
        if self.missing:
            found["unknown-series.txt"] = render_unknown(self._finder.unknown, self._lacking).encode()
        return found

    def _fetch_licences(self) -> dict[str, str]:
        """The licence text of each collection and licence of which a series comes from NBIA, with the smallest one."""
        from pipeline.sources.tcia_licence import fetch_texts

        wanted = self._table.fetch(
            "SELECT collection, coalesce(LicenseName, ''), "
            "arg_min(SeriesInstanceUID, (coalesce(FileSize, 9e18), SeriesInstanceUID)) "
            "FROM chosen JOIN placed USING (n) WHERE way = 'nbia' AND collection IS NOT NULL "
            "GROUP BY 1, 2 ORDER BY 1, 2"
        )
        texts, problems = fetch_texts(
            wanted, self._client.base_url_for, self._bearer, seconds=LICENCES_SECONDS, stop=self._stop
        )
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._finder.notes.append(f"no licence text of {problems[0]}{more}")
        return texts

    def _bearer(self, url: str) -> str:
        """A token for the services that the settings name; "" for any other, and without credentials."""
        source = self._config.sources.tcia
        credentials = find_credentials(Path(source.credentials) if source.credentials else None)
        if credentials is None:
            return ""
        main = parse_base_url(source.base_url, secret=True)
        trusted = {main, parse_base_url(source.nlst_base_url, secret=True) if source.nlst_base_url else main}
        return shared_token(f"{main}/oauth/token", credentials).get(self._stop) if url in trusted else ""

    @property
    def missing(self) -> int:
        """Series that were asked for by name, or selected, and are not in the plan."""
        return len(self._finder.unknown.names) + len(self._lacking)

    def notes(self) -> list[str]:
        """What people should know of the plan, a line each; complete once all else has been asked."""
        notes = [f"TCIA has no data releases: listed on {self._day} (UTC)"]
        for way, site in (("idc", "IDC"), ("nbia", "NBIA")):
            reasons = {each.reason: count for each, count in self._ways.items() if each.way == way}
            if reasons:
                said = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
                notes.append(f"{sum(reasons.values()):,} series from {site} ({said})")
        if self._lacking:
            more = " and more" if len(self._lacking) > SHOWN else ""
            shown = ", ".join(sorted(self._lacking)[:SHOWN])
            notes.append(f"{len(self._lacking):,} series do not come by route {self._route}: {shown}{more}")
        if self._wrong:
            more = " and more" if len(self._wrong) > SHOWN else ""
            shown = ", ".join(sorted(self._wrong)[:SHOWN])
            notes.append(f"{len(self._wrong):,} series state what no series has, taken as not stated: {shown}{more}")
        return notes + self._finder.notes


# More than any series has, of which the largest have some ten thousand; a zip of more would not be read either.
MOST_IMAGES = 100_000
# Bytes of a series, and of one image of it: native pixel data have a length of 32 bits (PS3.5 section 7.1.1), and those
# of whole slides are compressed, seldom to as much. More would be cut into pieces without end, for no scratch to hold.
MOST_BYTES, MOST_IMAGE_BYTES = 1 << 40, 4 << 30


def make_client(source: SourceTcia, cache_dir: Path | None = None) -> TciaClient:
    """A client as a config wants it.

    Who names a host of their own in `base_url` alone means it for NLST too: a mirror or a test server must not send
    anybody to TCIA.
    """
    default = SourceTcia()
    own = source.base_url != default.base_url and source.nlst_base_url == default.nlst_base_url
    return TciaClient(
        source.base_url,
        nlst_url=source.base_url if own else source.nlst_base_url,
        credentials=find_credentials(Path(source.credentials) if source.credentials else None),
        cache_dir=cache_dir,
        refresh=True,  # a plan from yesterday's answers would leave out what came since; they are few
    )


def render_unknown(unknown: Unknown, lacking: Iterable[str]) -> str:
    """What was asked for and is not in the plan, a line each, under a comment that says why where that is known. Pure.

    It is a list that may be planned from again.
    """
    plain, *others = group_reasons(unknown).items()
    lines = [*plain[1], *sorted(lacking)]
    for why, names in others:
        lines += [f"# {why}", *names]
    return "".join(f"{line}\n" for line in lines)


def parse_doi(uri: str | None) -> str | None:
    """The DOI in a DataDescriptionURI; the URI itself where there is none. Pure."""
    match = re.fullmatch(r"\s*(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/\S+)\s*", uri or "", re.IGNORECASE)
    return match[1] if match else uri


def render_doi(doi: str) -> str:
    """A DOI, or what stands in its place, as a URL. Pure."""
    return f"https://doi.org/{doi}" if doi.startswith("10.") else doi


def find_citation(description: str, doi: str) -> str:
    """The paragraph of a description in HTML that names a DOI, as plain text; "" when there is none. Pure."""
    for paragraph in re.split(r"(?i)</?(?:p|div|li|ul|ol|br|tr|td|h[1-6])\b[^<>]{0,1000}>", description[: 1 << 20]):
        if doi.lower() in paragraph.lower():
            text = plain_text(paragraph)
            if doi.lower() in text.lower() and len(text) <= MAX_CITATION:
                return text
    return ""


def read_stated(count: int | None, size: int | None) -> tuple[Stated, bool]:
    """Images and bytes of a series as NBIA states them, and whether something else is stated that cannot be. Pure.

    -1 for what is not stated, for 0, which no series has, and for what no series can have.
    """
    files = count if count is not None and 0 < count <= MOST_IMAGES else -1
    most = min(MOST_BYTES, MOST_IMAGE_BYTES * (files if files > 0 else SERIES_FILES))
    total = size if size is not None and 0 < size <= most else -1
    return Stated(files, total), (count or 0) > MOST_IMAGES or (size or 0) > most
