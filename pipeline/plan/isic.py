"""Planning from the ISIC Archive: images as its API lists them become items in path order, each once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from pipeline.config_check import ISIC_FIELDS
from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.model import IsicLocation, Item
from pipeline.plan.paths import FolderTemplate
from pipeline.plan.source import Selected
from pipeline.rundir import encode_record
from pipeline.settings import Config, SourceIsic
from pipeline.sources.duck import compose, quote_name
from pipeline.sources.isic_api import parse_root
from pipeline.sources.isic_body import UNKNOWN_EXTENSION
from pipeline.sources.isic_client import IsicClient
from pipeline.sources.isic_meta import (
    ADDED,
    LICENCE_URLS,
    added_values,
    collection_name,
    name_others,
    unfold_other,
)
from pipeline.sources.isic_pages import PageTally
from pipeline.sources.isic_rows import ImageFile
from pipeline.sources.isic_select import SHOWN, Finder
from pipeline.sources.isic_table import COLUMNS, MAX_OTHER, ImageTable, named_images
from pipeline.sources.isic_token import find_token
from pipeline.transport.retry import Runtime

DEMO = "demo"
# The collection of images that were selected without any: the archive does not say in which ones an image is.
NO_COLLECTION = "isic"
RELEASE = "isic-archive api v2"
_PLACED = {"n": "BIGINT", "grp": "VARCHAR", "path": "VARCHAR"}
_FIELD_COLUMNS = {"isic_id": "isic_id", "licence": "copyright_license"} | {
    name: f"metadata.clinical.{name}" for name in ("lesion_id", "patient_id")
}


class IsicPlanSource:
    """The ISIC Archive, seen by the planner. Use it in a `with` block, or close it.

    Parameters
    ----------
    config
        With `[select.isic]`; endpoints as they are to be asked.
    named_url
        What items say of the API's address in place of the one that was asked: `demo`, whose port changes.
    cache_dir
        Of the API's answers; by default the user's.
    clock
        Seconds since 1970; tells the day of what is asked.
    refresh
        Ask anew for all that is kept: pages of lists, for weeks, and other answers, for a day.
    on_progress
        Called while images are listed, with how many there are.

    Raises as `IsicClient`, `find_token` and `Finder`.

    Attributes
    ----------
    columns
        The registry's, then those that only the listed images have, then `ADDED`: complete when `select` yields.
    """

    name = "isic"

    def __init__(
        self,
        config: Config,
        *,
        named_url: str = "",
        cache_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
        refresh: bool = False,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        select = config.select.isic
        assert select is not None, "the caller chose this source by its table"
        self._config, self._select = config, select
        self._base = named_url or parse_root(config.sources.isic.base_url)
        self._client = make_client(config.sources.isic, cache_dir, refresh=refresh, clock=clock)
        self._table = ImageTable()
        try:
            self._finder = Finder(self._client, self._table, select, on_progress)
        except BaseException:
            self.close()
            raise
        # The site has no releases, and the day must not be here: this is part of what the manifest's SHA-256 is of.
        self.release = RELEASE
        self.columns = [*COLUMNS, *ADDED]
        self._lacking: list[str] = []
        self._bare: list[str] = []  # images that have no thumbnail
        self._selected = 0
        self._used: set[int] = set()
        self._licences: set[str] = set()
        self._problems: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections, memory and temporary files."""
        self._client.close()
        self._table.close()

    # -- selection -------------------------------------------------------------------------------------------------

    def select(self) -> Iterator[Selected]:
        """Yield the selected images by group and path.

        Raises
        ------
        ConfigError
            When nothing is selected, or a collection or image that was asked for by name is not there.
        SiteUnavailableError
            When the archive does not answer as it should.
        """
        self._finder.find()
        self._finder.narrow()
        others = name_others(self._table.other, MAX_OTHER)
        self.columns = [*COLUMNS, *others, *ADDED]
        self._table.load("placed", _PLACED, self._place())
        if not self._table.count("placed"):
            raise ConfigError(f"none of {len(self._lacking):,} selected images has a file", hint="select other images")
        names = ", ".join(f"c.{quote_name(name)}" for name in COLUMNS)
        rows = self._table.stream_ranked(
            "SELECT n FROM placed ORDER BY grp, path",
            f"c.n, p.grp, c.place, c.places, c.other, {names}, p.path",
            compose("{images} c JOIN placed p ON p.n = c.n", images=named_images(members=True)),
        )
        encode = msgspec.json.Encoder().encode
        for _, group, place, places, other, *values, path in rows:
            row = dict(zip(COLUMNS, values, strict=True))
            shown = self._hide_address(row)
            meta = [*shown.values(), *unfold_other(others, other), *self._added(row, place, places)]
            files = choose_files(row, thumbnails=self._select.thumbnails)
            self._selected += 1
            if self._select.thumbnails and len(files) == 1:
                self._bare.append(row["isic_id"])
            yield Selected(
                group,
                Item(
                    id=row["isic_id"],
                    path=path,
                    files=len(files),
                    bytes=planned_bytes(files),
                    location=self._locate(files, signed=row["public"] is False),
                    licence=row["copyright_license"] or "",
                    meta=msgspec.Raw(encode(meta)),
                ),
            )

    def _place(self) -> Iterator[dict[str, Any]]:
        """Say of each image which group and path it has; those without a file are left out, and noted."""
        template = self._config.archive.path.removesuffix(".{ext}")
        fill = FolderTemplate(f"{template}/", ISIC_FIELDS)
        group_by = self._config.archive.group_by
        texts = ", ".join(quote_name(_FIELD_COLUMNS[field]) for field in ISIC_FIELDS if field != "collection")
        sql = compose(
            'SELECT n, place, "files.full.url", {texts} FROM {images} JOIN chosen USING (n) ORDER BY n',
            texts=texts,
            images=named_images(members=True),
        )
        for number, place, url, *texts_ in self._table.stream(sql):
            values = dict(zip((f for f in ISIC_FIELDS if f != "collection"), texts_, strict=True))
            if not url:
                self._lacking.append(values["isic_id"])
                continue
            values["collection"] = self._collection_name(place)
            group = {"collection": values["collection"], "licence": values["licence"] or "unknown"}
            path = fill([values[field] or "" for field in ISIC_FIELDS])
            yield {"n": number, "grp": group.get(group_by, self._config.run.name), "path": path}

    def _collection_name(self, place: int | None) -> str:
        return NO_COLLECTION if place is None else collection_name(self._finder.collections[place])

    def _added(self, row: dict[str, Any], place: int | None, places: str | None) -> list[Any]:
        licence = row["copyright_license"] or ""
        self._licences.add(licence)
        numbers = [int(number) for number in (places or "").split()]
        self._used.update(numbers)
        return added_values(licence, self._collection_name(place), [self._finder.collections[n] for n in numbers])

    def _hide_address(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row without an address that changes from one plan to the next."""
        if self._base != DEMO:
            return row
        urls = {name: row[name] for name in ("files.full.url", "files.thumbnail_256.url") if row[name]}
        return row | {name: plain_url(url, signed=False, named=True)[:-1] for name, url in urls.items()}

    def _locate(self, files: list[tuple[str, ImageFile]], *, signed: bool) -> IsicLocation:
        urls = tuple(plain_url(file.url, signed=signed, named=self._base == DEMO) for _, file in files)
        return IsicLocation(self._base, urls, tuple(name for name, _ in files))

    # -- what goes with it -----------------------------------------------------------------------------------------

    def citations(self) -> dict[str, str]:
        """What to cite for each DOI of a selected collection that images are in."""
        found: dict[str, str] = {}
        for place in sorted(self._used):
            each = self._finder.collections[place]
            if each.doi:
                url = each.doi_url or f"https://doi.org/{each.doi}"
                found.setdefault(each.doi, f"{collection_name(each)}. International Skin Imaging Collaboration. {url}")
        return found

    def extras(self) -> dict[str, bytes]:
        """Files for the run directory: licence texts, attributions, and the images that are not there."""
        found = {"attribution.txt": self._attributions()}
        if licences := self._fetch_licences():
            found["licences.json"] = encode_record(licences)
        if names := [*self._finder.unknown.names, *sorted(self._lacking)]:
            found["unknown-images.txt"] = "".join(f"{name}\n" for name in names).encode()
        return found

    def _attributions(self) -> bytes:
        """Who is to be named, the most images first; "Anonymous" last, as the archive has it in its own bundles."""
        sql = (
            "SELECT attribution FROM images JOIN placed USING (n) WHERE attribution <> '' GROUP BY 1 "
            "ORDER BY attribution = 'Anonymous', count(*) DESC, attribution"
        )
        names = [name for (name,) in self._table.stream(sql)]
        return ("\n\n".join(names) or "The source states no attribution.").encode("utf-8", "backslashreplace") + b"\n"

    def _fetch_licences(self) -> dict[str, str]:
        """The text of each licence that images have, by its name."""
        texts: dict[str, str] = {}
        for name in sorted(self._licences & LICENCE_URLS.keys()):
            try:
                texts[name] = self._client.licence(name)  # type: ignore[arg-type]
            except (SiteUnavailableError, ConfigError) as error:
                self._problems.append(f"no licence text of {name}: {error}")
        return texts

    @property
    def missing(self) -> int:
        """Images that were asked for by name, or selected, and are not in the plan."""
        return len(self._finder.unknown.names) + len(self._lacking)

    def notes(self) -> list[str]:
        """What people should know of the plan, a line each; complete once all else has been asked."""
        notes = [f"the ISIC Archive has no data releases: {describe_pages(self._finder.pages)}"]
        if len(self._finder.collections) > 1:
            sql = "SELECT count(*) FROM (SELECT 1 FROM members GROUP BY isic_id HAVING count(DISTINCT place) > 1)"
            if shared := next(self._table.stream(sql))[0]:
                notes.append(f"{shared:,} images are in several of the collections, and stored in the first of these")
        if self._lacking:
            notes.append(f"{len(self._lacking):,} images have no file, and are left out: {_show(self._lacking)}")
        if self._bare:
            notes.append(f"{len(self._bare):,} of {self._selected:,} images have no thumbnail: {_show(self._bare)}")
        return notes + self._finder.notes + self._problems


def make_client(
    source: SourceIsic,
    cache_dir: Path | None = None,
    *,
    refresh: bool = False,
    clock: Callable[[], float] = time.time,
) -> IsicClient:
    """A client as a config wants it. `refresh`: ask anew; else pages of lists that are kept are used, and told of."""
    token = find_token(Path(source.credentials) if source.credentials else None)
    runtime = Runtime(wall=clock)
    return IsicClient(source.base_url, token=token, cache_dir=cache_dir, refresh=refresh, runtime=runtime)


def describe_pages(pages: PageTally) -> str:
    """When images were listed, and how much of that is not of today's asking. Pure."""
    first, last = pages.days
    when = f"listed on {first} (UTC)" if first == last else f"listed between {first} and {last} (UTC)"
    if not pages.kept:
        return when
    return (
        f"{when}; {pages.kept:,} of {pages.total:,} pages are KEPT FROM EARLIER LISTINGS, and what changed since about"
        " their images is not seen (medhaul plan --refresh asks anew)"
    )


def _show(names: list[str]) -> str:
    """The first of some images."""
    return ", ".join(sorted(names)[:SHOWN]) + (" and more" if len(names) > SHOWN else "")


def choose_files(row: dict[str, Any], *, thumbnails: bool) -> list[tuple[str, ImageFile]]:
    """The files of an image, each with its name in the archive: a suffix of the item's path. Pure."""
    full = ImageFile(row["files.full.url"], row["files.full.size"])
    files = [(name_extension(full), full)]
    if thumbnails and row["files.thumbnail_256.url"] not in {None, full.url}:
        small = ImageFile(row["files.thumbnail_256.url"], row["files.thumbnail_256.size"])
        files.append((f".thumbnail{name_extension(small)}", small))
    return files


def name_extension(file: ImageFile) -> str:
    """The extension of a file's URL, or what stands for none. Pure."""
    return file.extension if re.fullmatch(r"\.[a-z0-9]{1,8}", file.extension) else UNKNOWN_EXTENSION


def planned_bytes(files: list[tuple[str, ImageFile]]) -> int:
    """Bytes of the files as the archive counted them when they came in; -1 where it does not say. Pure.

    A thumbnail of unstated size adds next to nothing; `pipeline.sizes` says what an image of unstated size counts as.
    """
    sizes = [max(0, file.size or 0) for _, file in files]
    return sum(sizes) if sizes[0] else -1


def plain_url(url: str, *, signed: bool, named: bool) -> str:
    """A file's URL as a manifest may hold it: `?` at its end where it is only good with a signature. Pure.

    `named`: of a site whose address changes; what is left is the path, and it has to be asked for, too.
    """
    if named:
        return f"{DEMO}:{urlsplit(url).path}?"
    return f"{url}?" if signed else url
