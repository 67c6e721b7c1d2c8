"""Metadata of series by their UIDs, a thousand a call, where a row, a UID, a version or a host may fail.

A batch that fails is halved, down to single UIDs, so that one at which the site fails costs itself only; what is
missing in an answer, be it all, is asked for again. What v4 then still fails for is asked of the elder version, one UID
a call, and so is a sample of what v4 has no row of: as long as one of those is there after all, no such part of the
batch is believed to be gone. All of that takes a bounded number of calls; where they do not suffice, the site is not
usable, which is an error, or what is missing counts as unanswered. NLST's host is asked only for what the main host
does not have, and its failure costs only that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from pipeline.errors import SiteUnavailableError
from pipeline.sources.tcia_api import NLST, Version
from pipeline.sources.tcia_ask import Hosts, NlstUnavailableError, Question
from pipeline.sources.tcia_http import BadAnswerError, RefusedCallError
from pipeline.sources.tcia_rows import SeriesMetadata

BATCH = 1000  # UIDs in one request
SINGLE_CALLS = 200  # in one look-up, one for each series at which the batched call fails
_FAILURES = 40  # of calls with parts of one batch: about four UIDs at which it fails
SAMPLE = 20  # of what is missing in answers, asked one by one of the elder version; it stands for the rest
_IN_VAIN = 3  # calls of the elder version that fail before any succeeds
_ATTEMPTS = 2  # of a call that repeats, in another form, what was asked patiently before
_V4_SHARE = 0.5  # of the time of a batch; the elder version has the rest
_HUNG = 30.0  # seconds without an answer, after which no more of v4's calls are sent to find out why
_V4, _ELDER = "getSeriesMetadata", "getSeriesMetaData"
_LATER = "try again later"

_Failure = SiteUnavailableError | RefusedCallError


class Looked(msgspec.Struct, frozen=True):
    """What came of UIDs, each of which is in one of the three.

    Attributes
    ----------
    rows
        In the order asked for.
    unknown
        What the site does not have, and what it said of it ("": nothing).
    unanswered
        What could not be asked for, and why.
    """

    rows: list[SeriesMetadata]
    unknown: dict[str, str]
    unanswered: dict[str, str]


class _Host:
    """What one host said of the UIDs of a batch."""

    def __init__(self, root: str, v4_end: float) -> None:
        self.root = root
        self.v4_end = v4_end
        self.found: dict[str, SeriesMetadata] = {}
        self.said: dict[str, str] = {}  # in refusals
        self.failed: dict[str, _Failure] = {}  # asked alone and in vain, or missing without a doubtless reason
        self.stuck: dict[str, _Failure] = {}  # not even asked alone
        self.answered = False

    def take(self, asked: Collection[str], rows: Sequence[SeriesMetadata] | None) -> None:
        self.answered = True
        for row in rows or ():
            if row.SeriesInstanceUID in asked:
                self.found.setdefault(row.SeriesInstanceUID, row)


class MetadataLookup:
    """Asks for the metadata of series. For one thread.

    Parameters
    ----------
    make_question
        Of the client; each has an end in time of its own.
    """

    def __init__(self, make_question: Callable[[], Question], hosts: Hosts, versions: Sequence[Version]) -> None:
        self._make_question = make_question
        self._hosts = hosts
        self._new: Version | None = "v4" if "v4" in versions else None
        self._elder = next((version for version in versions if version != "v4"), None)
        self._singles = 0  # calls for what v4 fails at
        self._doubts = 0  # calls for what v4 has no row of, after one of those was there
        self._broken: set[str] = set()  # hosts whose v4 fails whatever is asked

    def ask(self, uids: Sequence[str], elsewhere: Collection[str] = ()) -> Looked:
        """Look up series. `elsewhere`: those that are certainly none of NLST's.

        Raises
        ------
        SiteUnavailableError
            When the main host does not answer as it should, beyond single series.
        CredentialsError, InterruptedRunError
            As `Question.ask`.
        """
        self._singles = self._doubts = 0
        asked = list(dict.fromkeys(uids))
        found: dict[str, SeriesMetadata] = {}
        unknown: dict[str, str] = {}
        unanswered: dict[str, str] = {}
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            question = self._make_question()
            main = self._ask_host(question, self._hosts.main, batch)
            rest = {uid: main.said.get(uid, "") for uid in batch if uid not in main.found}
            failed = {uid: str(error) for uid, error in main.failed.items()}
            apart = [uid for uid in rest if uid not in elsewhere] if self._hosts.is_apart(self._hosts.nlst) else []
            if apart:
                failed |= self._ask_nlst(self._make_question(), apart, found)
            found |= main.found
            unanswered |= {uid: said for uid, said in failed.items() if uid not in found}
            unknown |= {uid: said for uid, said in rest.items() if uid not in found and uid not in unanswered}
        return Looked([found[uid] for uid in asked if uid in found], unknown, unanswered)

    def _ask_nlst(self, question: Question, uids: list[str], found: dict[str, SeriesMetadata]) -> dict[str, str]:
        """Put what NLST's host has into `found`; return what it could not be asked for, and why."""
        try:
            host = question.on_nlst(lambda: self._ask_host(question, self._hosts.nlst, uids))
        except (NlstUnavailableError, RefusedCallError) as error:
            return dict.fromkeys(uids, f"not at {self._hosts.main}, and {error}")
        for uid, row in host.found.items():  # a row without it would be fetched from the main host
            found[uid] = row if row.collection else msgspec.structs.replace(row, collection=NLST)
        return {uid: f"the host of NLST fails: {error}" for uid, error in host.failed.items()}

    def _ask_host(self, question: Question, root: str, uids: Sequence[str]) -> _Host:
        host = _Host(root, question.share(_V4_SHARE))
        if self._new is None:
            self._ask_elder(question, host, uids)
            return host
        self._ask_batch(question, host, uids, first=True)
        missing = _missing(uids, host)
        if missing and host.found:  # none at all is another matter: that was asked twice, and compared
            self._ask_batch(question, host, missing, first=False)
            missing = _missing(uids, host)
        if host.failed or host.stuck:
            self._ask_elder(question, host, [*host.failed, *host.stuck])
        self._settle(question, host, missing)
        return host

    # -- v4 --------------------------------------------------------------------------------------------------------

    def _ask_batch(self, question: Question, host: _Host, uids: Sequence[str], *, first: bool) -> None:
        """Ask v4, halving what fails. `first`: an answer of nothing to all of it has to be plausible."""
        parts = [list(uids)]
        failures = 0
        while parts:
            part = parts.pop()
            whole = first and failures == 0
            patient = whole and host.root not in self._broken
            began = question.now()
            try:
                host.take(part, self._ask_v4(question, host, part, patient=patient, confirm=whole))
                continue
            except (SiteUnavailableError, RefusedCallError) as error:
                failures += 1
                failure: _Failure = error
            hung = not isinstance(failure, BadAnswerError | RefusedCallError) and question.now() - began >= _HUNG
            if len(part) == 1:
                host.failed[part[0]] = failure
            elif host.root in self._broken or (failures == 1 and (hung or not self._probe(question, host, part))):
                self._broken.add(host.root)
                host.stuck |= dict.fromkeys(part, failure)
            elif failures > _FAILURES:
                host.stuck |= dict.fromkeys(part, failure)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _ask_v4(
        self, question: Question, host: _Host, uids: list[str], *, patient: bool = False, confirm: bool = False
    ) -> list[SeriesMetadata] | None:
        assert self._new is not None
        params = {"list": ",".join(uids)}
        attempts = 0 if patient else _ATTEMPTS
        rows: list[SeriesMetadata] | None = question.ask_version(
            host.root, _V4, self._new, params, attempts=attempts, end=host.v4_end
        )
        if not rows and confirm:
            question.confirm_empty(host.root, _V4, params)
        return rows

    def _probe(self, question: Question, host: _Host, uids: list[str]) -> bool:
        """Say whether v4 answers for any one of some UIDs of a batch that failed."""
        for uid in dict.fromkeys((uids[0], uids[len(uids) // 2], uids[-1])):
            try:
                rows = self._ask_v4(question, host, [uid])
            except (SiteUnavailableError, RefusedCallError):
                continue
            if rows:  # nothing is also what a failing database says
                host.take([uid], rows)
                return True
        return False

    # -- the elder version -----------------------------------------------------------------------------------------

    def _ask_elder(self, question: Question, host: _Host, uids: Sequence[str]) -> None:
        """Ask one by one; raise unless each is answered, or was asked alone, and in vain, of a site that answers.

        That there is nothing has to be plausible, for v4 did not say so.
        """
        failure = next((host.failed.get(uid) or host.stuck.get(uid) for uid in uids), None)
        if self._elder and failure and self._singles + len(uids) > SINGLE_CALLS:
            text = f"{failure}; {len(uids):,} series are more than are asked for one by one ({SINGLE_CALLS} a look-up)"
            raise SiteUnavailableError(text, hint=_LATER)
        in_vain = 0
        for uid in uids if self._elder else ():
            self._singles += 1
            try:
                host.take([uid], self._ask_one(question, host.root, uid, confirm=True))
            except (SiteUnavailableError, RefusedCallError) as error:
                failure = failure or error
                if self._new is None:
                    host.failed[uid] = error
                in_vain += 1
                if in_vain >= _IN_VAIN and not host.answered:
                    break
                continue
            host.stuck.pop(uid, None)
            host.failed.pop(uid, None)
        if failure is not None and (host.stuck or not host.answered):
            raise failure

    def _ask_one(self, question: Question, root: str, uid: str, *, confirm: bool) -> list[SeriesMetadata] | None:
        assert self._elder is not None
        params = {"series": uid}
        rows: list[SeriesMetadata] | None = question.ask_version(root, _ELDER, self._elder, params, attempts=_ATTEMPTS)
        if not rows and confirm:
            question.confirm_empty(root, _ELDER, params)
        return rows

    # -- what is missing -------------------------------------------------------------------------------------------

    def _settle(self, question: Question, host: _Host, missing: list[str]) -> None:
        """Put into `host` what v4 has no row of and is there, or that nobody could tell of; the others are not there.

        A part of them counts as not there when none of its sample is. Else it is halved, and v4 asked for the halves.
        """
        parts = [missing] if missing else []
        doubt = False
        while parts:
            part = parts.pop()
            sample = choose_sample(part)
            if doubt and self._doubts + len(sample) > SINGLE_CALLS:
                text = f"{self._new} has no row of it, nor of others that {self._elder} has; all of those are more than"
                error = SiteUnavailableError(f"{text} are asked for one by one ({SINGLE_CALLS} a look-up)", hint=_LATER)
                host.failed |= dict.fromkeys(part, error)
                continue
            self._doubts += len(sample) if doubt else 0
            known = len(host.found)
            failure = self._ask_sample(question, host, sample)
            if len(host.found) == known:
                if failure:
                    text = f"{self._new} has no row of it, and nothing else tells of any such: {failure}"
                    error = SiteUnavailableError(text, hint=failure.hint or _LATER)
                    host.failed |= dict.fromkeys([uid for uid in part if uid not in host.failed], error)
                continue
            doubt = True
            rest = [uid for uid in part if uid not in sample]
            for half in filter(None, (rest[: len(rest) // 2], rest[len(rest) // 2 :])):
                self._ask_batch(question, host, half, first=False)
                parts += filter(None, [_missing(half, host)])
        host.failed |= host.stuck

    def _ask_sample(self, question: Question, host: _Host, uids: Sequence[str]) -> _Failure | None:
        """Ask for each alone; return why nobody can tell of others like them, if nobody can."""
        failure: _Failure | None = None
        answers = in_vain = 0
        for uid in uids:
            if in_vain >= _IN_VAIN and not answers:
                break
            try:
                if self._elder:
                    rows = self._ask_one(question, host.root, uid, confirm=False)
                else:  # the list of series is all that there is to compare with
                    rows = self._ask_v4(question, host, [uid], confirm=True)
            except RefusedCallError as error:
                host.said[uid] = str(error)  # v4 has no row of it either
            except SiteUnavailableError as error:
                host.failed[uid] = failure = error
                in_vain += 1
                continue
            else:
                host.take([uid], rows)
            answers += 1
        return failure if not answers or not self._elder else None


def choose_sample(uids: Sequence[str]) -> list[str]:
    """Choose those to ask for alone, spread evenly from the first to the last; all where they are few. Pure."""
    if len(uids) <= SAMPLE:
        return list(uids)
    return [uids[number * (len(uids) - 1) // (SAMPLE - 1)] for number in range(SAMPLE)]


def _missing(uids: Sequence[str], host: _Host) -> list[str]:
    return [uid for uid in uids if uid not in host.found and uid not in host.failed and uid not in host.stuck]
