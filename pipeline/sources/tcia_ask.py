"""A question to TCIA: which host and version to ask, and what to make of an empty answer.

The API says `200` with nothing in it for "no match", for a failing database and for an expired token alike. So an empty
answer is believed only after it was repeated, another version said the same, the site listed its collections, and the
list of series does not contradict it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from pipeline.errors import ConfigError, SiteUnavailableError, UsageError
from pipeline.sources.tcia_api import NLST, Parameter, Version, plan_call
from pipeline.sources.tcia_http import Api, BadAnswerError, RefusedCallError
from pipeline.sources.tcia_rows import Series

T = TypeVar("T")

# Filters, and the field of a series that each one compares.
_FIELDS = {
    "collection": "collection",
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
}
# Values that series need not have: no value, although there are series, is no contradiction.
_COLUMNS = {
    "getModalityValues": "Modality",
    "getBodyPartValues": "BodyPartExamined",
    "getManufacturerValues": "Manufacturer",
}
# Calls whose answer is empty only when no series matches.
_OF_SERIES = {
    *("getSeries", "getPatient", "getPatientStudy", "getPatientByCollectionAndModality", "getSeriesSize"),
    *("getSOPInstanceUIDs", "getSeriesMetadata", "getSeriesMetaData", "getDicomTags", *_COLUMNS),
}
_TRY_LATER = "the site's database may be failing: try again later"
_OUTAGE = 300.0  # seconds for which a host that did not answer is not asked again


class NlstUnavailableError(SiteUnavailableError):
    """The main host certainly has nothing, and the host of NLST, which may, does not answer as it should."""


class Outage:
    """What one client remembers of the host of NLST, so that not each question waits for a host that is down."""

    def __init__(self) -> None:
        self._error: SiteUnavailableError | None = None
        self._until = 0.0

    def recall(self, now: float) -> SiteUnavailableError | None:
        """Why the host did not answer, if that was a moment ago; `now` of the same clock as for `note`."""
        return self._error if now < self._until else None

    def note(self, error: SiteUnavailableError, now: float) -> None:
        """Remember that there was no answer at all; an answer that is wrong is one."""
        if not isinstance(error, BadAnswerError):
            self._error, self._until = error, now + _OUTAGE


class Hosts(msgspec.Struct, frozen=True):
    """Roots of the services: the main host's, and of the host with the collection NLST (the same, or "" for none)."""

    main: str
    nlst: str

    def choose(self, params: Mapping[str, Parameter]) -> tuple[str, ...]:
        """Choose which hosts may have the answer, in the order to ask them."""
        collection = params.get("collection")
        if isinstance(collection, str):
            return (self.nlst or self.main,) if is_nlst(collection) else (self.main,)
        named = {"patient", "study", "series", "instance", "list"} & set(params)
        return (self.main, self.nlst) if named and self.is_apart(self.nlst) else (self.main,)

    def is_apart(self, root: str) -> bool:
        """Say whether it is the host that NLST has for itself."""
        return root == self.nlst and root not in {"", self.main}


def is_nlst(collection: str) -> bool:
    """Say whether a collection is the one with a host of its own."""
    return collection.strip().upper() == NLST


def match_series(found: Sequence[Series], params: Mapping[str, Parameter]) -> list[Series]:
    """The series that meet all filters, case aside, as the site compares them. Pure."""
    wanted = {_FIELDS[key]: str(value).casefold() for key, value in params.items() if key in _FIELDS}
    return [
        row for row in found if all((getattr(row, name) or "").casefold() == value for name, value in wanted.items())
    ]


class Question:
    """One question with one end in time, however many calls it takes. For one thread."""

    def __init__(self, api: Api, hosts: Hosts, versions: Sequence[Version], outage: Outage | None = None) -> None:
        self._api = api
        self._hosts = hosts
        self._versions = versions
        self._outage = outage or Outage()
        self._end = api.runtime.clock() + api.policy.deadline
        self._names: dict[str, list[str]] = {}

    def ask(self, name: str, params: Mapping[str, Parameter]) -> Any:
        """The answer of the host that has one; None when there is certainly nothing.

        Raises
        ------
        ConfigError
            For a collection that the site does not have, or a call that it refuses.
        SiteUnavailableError
            When the site does not answer, or contradicts itself; `NlstUnavailableError` when only NLST's host does so.
        CredentialsError, InterruptedRunError
            As `Api.ask`.
        """
        refusal: RefusedCallError | None = None
        for root in self._hosts.choose(params):
            try:
                if self._hosts.is_apart(root):
                    found = self.on_nlst(lambda: self.ask_host(self._hosts.nlst, name, params))
                else:
                    found = self.ask_host(root, name, params)
            except RefusedCallError as error:  # so the main host answers for what another one has
                refusal = refusal or error
                continue
            if found:
                return found
        if refusal:
            raise refusal
        return None

    def on_nlst(self, work: Callable[[], T]) -> T:
        """Ask the host of NLST for something. Raises `NlstUnavailableError`, and what else the work raises."""
        clock = self._api.runtime.clock
        known = self._outage.recall(clock())
        if known is None:
            try:
                return work()
            except SiteUnavailableError as error:
                self._outage.note(error, clock())
                known = error
        raise NlstUnavailableError(f"the host of NLST fails: {known}", hint=known.hint or _TRY_LATER)

    def now(self) -> float:
        """Seconds of the clock that ends are of."""
        return self._api.runtime.clock()

    def share(self, part: float) -> float:
        """The end of a part of the time that is left."""
        now = self.now()
        return now + max(0.0, self._end - now) * part

    def ask_version(
        self,
        root: str,
        name: str,
        version: Version,
        params: Mapping[str, Parameter],
        *,
        attempts: int = 0,
        end: float | None = None,
    ) -> Any:
        """What one version says; None when it says nothing, which is not compared with anything. Raises as `Api.ask`.

        `attempts`: with less patience than the client has; `end`: and with an earlier end, of `share`.
        """
        call = plan_call(name, version, params)
        assert call is not None, "the caller knows what the version has"
        return self._api.ask(root, call, self._end if end is None else min(end, self._end), attempts=attempts)

    def ask_host(self, root: str, name: str, params: Mapping[str, Parameter]) -> Any:
        """The answer of one host, by the first version that has one; else as `ask`."""
        failure: BadAnswerError | RefusedCallError | None = None
        calls = [call for version in self._versions if (call := plan_call(name, version, params))]
        if not calls:
            raise UsageError(f"{name} is not in {' or '.join(self._versions)} of the API", hint="allow another version")
        for call in calls:
            try:
                found = self._api.ask(root, call, self._end)
            except (BadAnswerError, RefusedCallError) as error:  # one version may refuse what another one answers
                failure = failure or error
                continue
            if found:
                return found
        if failure:
            raise failure
        self.confirm_empty(root, name, params)
        return None

    def confirm_empty(self, root: str, name: str, params: Mapping[str, Parameter]) -> None:
        """Return when it is plausible that there is nothing; else raise as `ask`."""
        where = f"{root}: {name}"
        listed = self._collections(root)
        collection = params.get("collection")
        if isinstance(collection, str) and name != "getCollectionDescriptions":
            self._check_collection(root, collection, listed)
        if name == "getCollectionValues" or (name.endswith("Counts") and not params):
            raise SiteUnavailableError(f"{where}: nothing, but there are {len(listed)} collections", hint=_TRY_LATER)
        if name not in _OF_SERIES:
            return
        wide: dict[str, Parameter]
        if isinstance(collection, str):
            wide = {"collection": collection}
        elif isinstance(params.get("list"), str):
            wide = {"series": str(params["list"]).partition(",")[0]}
        else:
            wide = {key: value for key, value in params.items() if key in _FIELDS}
        if name == "getSeries" and wide == dict(params):
            if isinstance(collection, str) or not wide:
                whose = f"no series of the collection {collection}" if collection else "no series at all"
                raise SiteUnavailableError(f"{where}: {whose}, although the site lists it", hint=_TRY_LATER)
            return
        if not wide:  # all there is: something there must be
            raise SiteUnavailableError(f"{where}: nothing at all", hint=_TRY_LATER)
        series = match_series(self.ask_host(root, "getSeries", wide) or [], params)
        column = _COLUMNS.get(name)
        if column:
            series = [row for row in series if getattr(row, column) is not None]
        if series:
            text = f"{where}: nothing, although getSeries lists {len(series)} such series"
            raise BadAnswerError(f"{text}, as {series[0].SeriesInstanceUID}", hint=_TRY_LATER)

    def _check_collection(self, root: str, collection: str, listed: list[str]) -> None:
        by_case = {name.casefold(): name for name in listed}
        if collection.casefold() in by_case:
            return
        near = [by_case[n] for n in difflib.get_close_matches(collection.casefold(), by_case, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "`collections` lists what it has"
        raise ConfigError(f"{root}: no collection {collection!r} among {len(listed)}", hint=hint)

    def _collections(self, root: str) -> list[str]:
        """What the site lists right now: also a sign that its database answers."""
        if root not in self._names:
            failure: BadAnswerError | None = None
            for version in self._versions:
                call = plan_call("getCollectionValues", version, {})
                assert call is not None
                try:
                    found = self._api.ask(root, call, self._end, fresh=True)
                except BadAnswerError as error:
                    failure = failure or error
                    continue
                if found:
                    self._names[root] = found
                    break
            else:
                text = f"{root}: lists no collections" + (f" ({failure})" if failure else "")
                raise SiteUnavailableError(text, hint=_TRY_LATER)
        return self._names[root]
