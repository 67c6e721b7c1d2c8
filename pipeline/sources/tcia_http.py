"""One call to TCIA's API: see `pipeline.sources.api_http`. Import this module only where it is used."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from pipeline.sources.api_http import ApiSession, BadAnswerError, RefusedCallError, Request
from pipeline.sources.tcia_api import ENDPOINTS, Call, parse_answer

__all__ = ["Api", "BadAnswerError", "RefusedCallError"]

logger = logging.getLogger(__name__)


class Api(ApiSession):
    """The calls of one client. `close` it. Parameters as of `ApiSession`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(parse_answer, logger, **options)

    def ask(self, root: str, call: Call, end: float, *, fresh: bool = False, attempts: int = 0) -> Any:
        """What a call gives, read; None when the site keeps saying nothing. Parameters and errors as `ask_request`.

        `attempts`: failures after which it is given up, if the policy has more patience.
        """
        kept = ENDPOINTS[call.endpoint].kept
        request = Request(
            url=f"{root}/{call.path}", path=call.endpoint, method=call.method, params=call.params, kept=kept
        )
        policy = self.policy
        if attempts:
            self.policy = msgspec.structs.replace(policy, attempts=min(attempts, policy.attempts))
        try:
            answer = self.ask_request(request, end, fresh=fresh)
        finally:
            self.policy = policy
        return answer.value if answer else None
