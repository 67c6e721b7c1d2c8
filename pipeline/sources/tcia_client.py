"""Exploring The Cancer Imaging Archive (NBIA) from Python: what it holds, how large it is, what is new.

with TciaClient() as tcia:
    for found in tcia.series(collection="RIDER Pilot", modality="CT"):
        print(found.SeriesInstanceUID, found.FileSize)
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pipeline.errors import ConfigError, ItemError, SiteUnavailableError, UsageError
from pipeline.sources.tcia_api import BASE_URL, NLST_URL, Parameter, Version, parse_base_url
from pipeline.sources.tcia_rows import (
    Description,
    DoiEntry,
    Instance,
    Patient,
    Series,
    SeriesMetadata,
    SeriesSize,
    Study,
    Tag,
)
from pipeline.sources.tcia_search import Count, Criterion, SearchResult, render_search
from pipeline.sources.tcia_token import Credentials, TokenSource, shared_token
from pipeline.transport.retry import Policy, Runtime

if TYPE_CHECKING:
    from pipeline.sources.tcia_ask import Hosts, Outage, Question
    from pipeline.sources.tcia_metadata import MetadataLookup

logger = logging.getLogger(__name__)
Api = Literal["auto", "v4", "v1"]
T = TypeVar("T")
Day = dt.date | str
Counted = Literal["collection", "modality", "body_part", "manufacturer", "species"]

_COUNTS: dict[Counted, str] = {
    "collection": "getCollectionValuesAndCounts",
    "modality": "getModalityValuesAndCounts",
    "body_part": "getBodyPartValuesAndCounts",
    "manufacturer": "getManufacturerValuesAndCounts",
    "species": "getSpeciesValuesAndCounts",
}


class TciaClient:
    """TCIA's API, for planning and for people. Use it in a `with` block, or close it. One thread at a time.

    Parameters
    ----------
    base_url
        With or without the version at its end. The collection NLST is asked at `nlst_url`: by default TCIA's own host
        for it when `base_url` is the default, else `base_url`; "" for nowhere but `base_url`.
    api
        `auto`: v4, and v1 where v4 fails or says nothing (v2 with credentials); or only one of them.
    credentials
        Public collections need none: see `find_credentials`. `token_url`: by default `oauth/token` below the services.
    cache_dir, expire, refresh, offline
        Answers are kept in the user's cache folder for `expire` seconds; `refresh` asks anew for each, once; `offline`
        uses what is kept, however old, and sends nothing. Answers to an account are kept apart.
    policy
        Attempts, waits, and the `deadline` in seconds of one method with all its requests.
    timeout
        Seconds to connect, and without a byte; `attempt_seconds` for a whole request.
    stop
        Set it to end what is going on with `InterruptedRunError`.

    Every method may raise `SiteUnavailableError` (no answer, a wrong one, or none in the cache), `ConfigError` (a
    collection that there is not, a call that the site refuses), `CredentialsError` (the site refuses the credentials)
    and `StorageError` (no cache folder). Rows have one spelling whatever the version (`pipeline.sources.tcia_rows`),
    each once, in a fixed order. An empty list is certain: asked again, and compared with what else the site says.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        nlst_url: str | None = None,
        api: Api = "auto",
        credentials: Credentials | None = None,
        token_url: str = "",
        cache_dir: Path | None = None,
        expire: float = 86_400.0,
        refresh: bool = False,
        offline: bool = False,
        policy: Policy | None = None,
        runtime: Runtime | None = None,
        stop: threading.Event | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
        attempt_seconds: float = 300.0,
    ) -> None:
        secret = credentials is not None
        self._main = parse_base_url(base_url, secret=secret)
        if nlst_url is None:
            nlst_url = NLST_URL if self._main == parse_base_url(BASE_URL) else base_url
        self._nlst = parse_base_url(nlst_url, secret=secret) if nlst_url else ""
        elder: Version = "v2" if secret else "v1"
        self._versions: tuple[Version, ...] = {"auto": ("v4", elder), "v4": ("v4",), "v1": (elder,)}[api]
        self._token: TokenSource | None = None
        if credentials is not None:
            url = parse_base_url(token_url, secret=True) if token_url else f"{self._main}/oauth/token"
            self._token = shared_token(url, credentials)
        self._options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "expire": expire,
            "refresh": refresh,
            "offline": offline,
            "token": self._token,
            "account": f"{self._main} {credentials.username}" if credentials else "",
            "policy": policy or Policy(attempts=5, deadline=600.0),
            "runtime": runtime,
            "stop": stop,
            "timeout": timeout,
            "attempt_seconds": attempt_seconds,
        }
        self._api: Any = None
        self._outage: Outage | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TciaClient({self._main!r})"

    def close(self) -> None:
        """Close the connections."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def base_url_for(self, collection: str) -> str:
        """Where a collection's series are had: the root of the services, without a version."""
        return self._hosts().choose({"collection": collection})[0]

    def collections(self, *, nlst: bool = True) -> list[str]:
        """All collections. Where the host of NLST does not answer, that one is left out with a warning.

        `nlst=False`: those of the main host, and the other one is not asked.
        """
        from pipeline.sources.tcia_ask import is_nlst

        names = set(self._ask(str, "getCollectionValues"))
        if nlst and self._hosts().is_apart(self._nlst):
            question = self._question()
            try:
                found = question.on_nlst(lambda: question.ask_host(self._nlst, "getCollectionValues", {}))
                names |= {name for name in found if is_nlst(name)}
            except SiteUnavailableError as error:
                logger.warning("NLST is not among the collections: %s", error)
        return sorted(names)

    def modalities(self, *, collection: str | None = None, body_part: str | None = None) -> list[str]:
        """Values of Modality, such as `CT`."""
        return self._ask(str, "getModalityValues", collection=collection, body_part=body_part)

    def body_parts(self, *, collection: str | None = None, modality: str | None = None) -> list[str]:
        """Values of BodyPartExamined; series without one are not among them."""
        return self._ask(str, "getBodyPartValues", collection=collection, modality=modality)

    def manufacturers(
        self, *, collection: str | None = None, modality: str | None = None, body_part: str | None = None
    ) -> list[str]:
        """Values of Manufacturer."""
        return self._ask(str, "getManufacturerValues", collection=collection, modality=modality, body_part=body_part)

    def patients(self, collection: str | None = None, *, patient: str | None = None) -> list[Patient]:
        """Patients; one in two collections comes twice."""
        return _sorted(self._ask(Patient, "getPatient", collection=collection, patient=patient))

    def patients_by_modality(self, collection: str, modality: str) -> list[str]:
        """PatientIDs of a collection's patients with images of a modality."""
        return self._ask(str, "getPatientByCollectionAndModality", collection=collection, modality=modality)

    def studies(
        self, collection: str | None = None, *, patient: str | None = None, study: str | None = None
    ) -> list[Study]:
        """The studies of a collection or patient."""
        return _sorted(self._ask(Study, "getPatientStudy", collection=collection, patient=patient, study=study))

    def series(
        self,
        collection: str | None = None,
        *,
        patient: str | None = None,
        study: str | None = None,
        series: str | None = None,
        modality: str | None = None,
        body_part: str | None = None,
        manufacturer: str | None = None,
        model: str | None = None,
    ) -> list[Series]:
        """Series that meet all filters; with none, all of the main host."""
        filters = {"collection": collection, "patient": patient, "study": study, "series": series}
        device = {"body_part": body_part, "manufacturer": manufacturer, "model": model}
        return _sorted(self._ask(Series, "getSeries", **filters, modality=modality, **device))

    def series_size(self, series: str) -> SeriesSize:
        """Bytes and number of a series' files, counted by the site: slow, and the same as in `series`."""
        sizes = self._ask(SeriesSize, "getSeriesSize", series=_uid(series))
        if len(sizes) != 1:
            raise ConfigError(f"TCIA has no series {series}", hint="it may be withdrawn; see `series`")
        return sizes[0]

    def instances(self, series: str) -> list[str]:
        """SOPInstanceUIDs of a series, sorted."""
        return sorted(found.SOPInstanceUID for found in self._ask(Instance, "getSOPInstanceUIDs", series=_uid(series)))

    def series_metadata(self, series: Iterable[str]) -> list[SeriesMetadata]:
        """All that the site says about series, in the order asked for. What it does not know is not in the list.

        Where only some could not be asked for, a warning names one; see `look_up` for which and why.
        """
        found = self.look_up().ask(list(map(_uid, series)))
        if found.unanswered:
            uid, said = next(iter(found.unanswered.items()))
            if not found.rows:
                raise SiteUnavailableError(f"{uid}: {said}", hint="try again later")
            logger.warning("nobody can tell of %d series, as %s: %s", len(found.unanswered), uid, said)
        return found.rows

    def look_up(self) -> MetadataLookup:
        """Ask for the metadata of very many series, piece by piece, and learn of those that did not come why."""
        from pipeline.sources.tcia_metadata import MetadataLookup

        return MetadataLookup(self._question, self._hosts(), self._versions)

    def image_md5(self, instance: str) -> str | None:
        """The MD5 that the site has for an instance, if any."""
        md5: str | None = self._ask_one("getMD5HashForImage", instance=_uid(instance))
        return md5

    def single_image(self, series: str, instance: str, path: Path | str) -> Path:
        """Download one instance to `path`: whole, of these UIDs and of the site's MD5 if it states one, or not at all.

        Raises
        ------
        ItemError
            What is wrong with the file.
        StorageError
            When `path` cannot be written.
        """
        import hashlib
        import tempfile

        from pipeline.atomic import atomic_file
        from pipeline.dicom.check import check_dicom

        path = Path(path)
        data: bytes | None = self._ask_one("getSingleImage", series=_uid(series), instance=_uid(instance))
        if not data:
            raise ItemError("unavailable", f"{instance}: the site gives nothing", transient=True)
        stated = self.image_md5(instance)
        if stated and hashlib.md5(data, usedforsecurity=False).hexdigest() != stated:
            raise ItemError("checksum", f"{instance}: not the bytes that the site's MD5 stands for", transient=True)
        with tempfile.TemporaryDirectory(prefix="medhaul-") as folder:
            checked = Path(folder) / "image.dcm"
            checked.write_bytes(data)
            header = check_dicom(checked, series_uid=series)
        if header.sop_instance_uid != instance:
            raise ItemError("wrong-uid", f"asked for {instance}, came {header.sop_instance_uid}")
        with atomic_file(path) as file:
            file.write(data)
        return path

    def new_patients(self, collection: str, since: Day) -> list[Patient]:
        """Patients added to a collection on or after a day; perhaps some of the day before."""
        return _sorted(self._ask(Patient, "NewPatientsInCollection", collection=collection, since=_day(since)))

    def new_studies(self, collection: str, since: Day, *, patient: str | None = None) -> list[Study]:
        """Studies added to a collection on or after a day; perhaps some of the day before."""
        found = self._ask(
            Study, "NewStudiesInPatientCollection", collection=collection, patient=patient, since=_day(since)
        )
        return _sorted(found)

    def updated_series(self, since: Day) -> list[Series]:
        """Series of the main host that were released or changed on or after a day; perhaps some of the day before."""
        return _sorted(self._ask(Series, "getUpdatedSeries", since=_day(since)))

    def cart(self, name: str) -> list[Series]:
        """The series of a shared cart, by its name."""
        from pipeline.sources.tcia_ask import Question

        elder: tuple[Version, ...] = ("v2",) if self._token else ("v1",)  # v4 has none
        question = Question(self._connect(), self._hosts(), elder)
        found: list[Series] | None = question.ask("getContentsByName", {"name": name})
        if not found:
            raise ConfigError(f"TCIA has no shared cart {name!r}", hint="check its name, case included")
        return _sorted(found)

    def descriptions(self, collection: str | None = None) -> list[Description]:
        """What the site says about collections, in HTML, with their DOIs."""
        return _sorted(self._ask(Description, "getCollectionDescriptions", collection=collection))

    def dicom_tags(self, series: str) -> list[Tag]:
        """The DICOM elements of a series' first image, in its order."""
        tags = self._ask(Tag, "getDicomTags", series=_uid(series))
        if not tags:
            raise ConfigError(f"TCIA has no series {series}", hint="it may be withdrawn; see `series`")
        return tags

    def search(self, criteria: Mapping[str, Criterion], *, start: int = 0, size: int = 100) -> SearchResult:
        """Patients by the simple search, a page of them, with counts over all. See `tcia_search.CRITERIA`.

        Raises
        ------
        UsageError
            For an unknown criterion, or none.
        """
        found: SearchResult | None = self._ask_one("getSimpleSearch", form=render_search(criteria, start, size))
        return found or SearchResult(patients=(), total=0)

    def search_series(self, criteria: Mapping[str, Criterion]) -> list[str]:
        """SeriesInstanceUIDs of all that a simple search finds. Raises as `search`."""
        return self._ask(str, "getManifestForSimpleSearch", form=render_search(criteria, 0, 1_000_000))

    def counts(
        self,
        of: Counted,
        *,
        collection: str | None = None,
        modality: str | None = None,
        body_part: str | None = None,
    ) -> list[Count]:
        """Values of a column, and how many patients have each."""
        return self._ask(Count, _COUNTS[of], collection=collection, modality=modality, body_part=body_part)

    def doi(self, doi: str, *, series: bool = False) -> list[DoiEntry]:
        """The collections, or the `series`, that a DOI stands for."""
        doi = re.sub(r"^(?:https?://(?:dx\.)?doi\.org/|doi:)", "", doi.strip(), flags=re.IGNORECASE)
        form = [("DOI", doi), ("CollectionOrSeries", "series" if series else "")]
        return _sorted(self._ask(DoiEntry, "getCollectionOrSeriesForDOI", form=form))

    def _hosts(self) -> Hosts:
        from pipeline.sources.tcia_ask import Hosts

        return Hosts(self._main, self._nlst)

    def _connect(self) -> Any:
        from pipeline.sources.tcia_http import Api

        if self._api is None:
            self._api = Api(**self._options)
        return self._api

    def _question(self) -> Question:
        from pipeline.sources.tcia_ask import Outage, Question

        self._outage = self._outage or Outage()
        return Question(self._connect(), self._hosts(), self._versions, self._outage)

    def _ask_one(self, name: str, **params: Parameter | None) -> Any:
        return self._question().ask(name, {key: value for key, value in params.items() if value is not None})

    def _ask(self, _: type[T], name: str, **params: Parameter | None) -> list[T]:
        found: list[T] = self._ask_one(name, **params) or []
        return found


def _sorted(rows: Iterable[T]) -> list[T]:
    """Rows in the order of what names them: the site's own order is arbitrary."""
    names = ("collection", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    return sorted(rows, key=lambda row: tuple(getattr(row, name, None) or "" for name in names))


def _uid(text: str) -> str:
    if not re.fullmatch(r"[0-9.]{1,64}", text):
        raise UsageError(f"{text[:80]!r} is no DICOM UID", hint="digits and dots, 64 at most")
    return text


def _day(day: Day) -> dt.date:
    if isinstance(day, str):
        try:
            return dt.date.fromisoformat(day)
        except ValueError:
            raise UsageError(f"{day!r} is no date", hint="write it as 2026-12-31") from None
    return day.date() if isinstance(day, dt.datetime) else day
