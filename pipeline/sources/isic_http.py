"""One call to the ISIC Archive's API: see `pipeline.sources.api_http`. Import this module only where it is used."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

from pipeline.errors import CredentialsError, MedhaulError, SiteUnavailableError
from pipeline.sources.api_body import clean_text
from pipeline.sources.api_http import Answer, ApiSession, BadAnswerError, RefusedCallError, Request
from pipeline.sources.isic_api import classify_path, explain_error, parse_answer
from pipeline.sources.isic_dsl import review_query

logger = logging.getLogger(__name__)
_MAX_BYTES = 64 << 20  # a page has about 65 KB


class NotThereError(SiteUnavailableError):
    """The site has no such thing, or not for us (404 in its own words): no fault where one thing was asked for."""


class IsicApi(ApiSession):
    """The calls of one client. `close` it. Parameters as of `ApiSession`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(parse_answer, logger, **{"max_bytes": _MAX_BYTES, "may_keep": may_keep, **options})

    def ask(self, request: Request, end: float, *, fresh: bool = False) -> Answer:
        """What a request gives. Parameters as of `ask_request`.

        Raises
        ------
        RefusedCallError
            For a query or parameter that the site cannot read, explained.
        CredentialsError
            Where an account is needed, or another one.
        NotThereError
            For 404 in the site's own words.
        SiteUnavailableError, InterruptedRunError
            As `ask_request`; for nothing at all, too.
        """
        answer = self.ask_request(request, end, fresh=fresh)
        if answer is None:
            raise BadAnswerError(f"{request.show()}: an empty answer", hint="try again later")
        expected = classify_path(request.path)
        if expected is None or answer.value.kind != expected[0]:
            text = f"{request.show()}: a redirection to something else, {answer.value.kind}"
            raise BadAnswerError(text, hint="check the base URL of ISIC")
        return Answer(answer.value.value, answer.kept, answer.at)

    def _refuse(self, response: requests.Response, message: str) -> MedhaulError | None:
        """The error for an answer that asking again does not mend."""
        status, said = response.status_code, explain_error(response.content or b"")
        said = self._token.scrub(said) if self._token else said
        where = message.partition(": ")[0]
        if status in {400, 422}:
            return RefusedCallError(f"{where}: {said or message.partition(': ')[2]}", hint=_explain_query(response))
        if status in {401, 403}:
            hint = "it needs an account with the right to it: give a token, or a newer one (they last a day)"
            return CredentialsError(f"{where}: {status} {said or clean_text(response.reason or '')}", hint=hint)
        if status == 404 and said:
            return NotThereError(f"{where}: {status} {said}", hint="check the base URL of ISIC")
        if status == 404:
            return SiteUnavailableError(f"{where}: 404, no such path", hint="check the base URL of ISIC")
        return None


def _explain_query(response: requests.Response) -> str:
    queries = parse_qs(urlsplit(response.url or "").query).get("query", [])
    remarks = [remark for query in queries for remark in review_query(query)]
    if remarks:
        return "; ".join(remarks)
    if "ursor" in explain_error(response.content or b""):
        return "the site does not take this cursor any more: list from the beginning"
    return 'a query is as diagnosis_1:Malignant AND age_approx:[50 TO *] AND image_type:"TBP tile: close-up"'


def may_keep(response: requests.Response) -> bool:
    """Whether an answer may be cached: not with signed URLs, which are secrets for as long as they are good."""
    return b"Signature=" not in (response.content or b"")
