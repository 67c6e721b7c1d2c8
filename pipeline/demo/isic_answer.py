"""Answers of the demo ISIC Archive's API: its JSON, its errors in their words, and how they are put on their way."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec

from pipeline.demo import wire
from pipeline.demo.faults import Fault
from pipeline.demo.isic_faults import REFUSALS
from pipeline.demo.wire import Reply

CORS = "Access-Control-Allow-Origin: *"
_GZIP_FROM = 200  # as Django has it
BAD_QUERY = "Could not parse search query."


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; its body is `body`, or the pieces of `stream`, sent without a length."""

    status: int = 200
    content_type: str = "application/json; charset=utf-8"
    body: bytes = b""
    headers: tuple[str, ...] = ()
    stream: Iterator[bytes] | None = None


class CallError(Exception):
    """A request that is answered by an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def answer_json(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status=status, body=msgspec.json.encode(value))


def answer_page(status: int, *headers: str) -> Answer:
    """A page of HTML, as the server or the router before it shows."""
    phrase = HTTPStatus(status).phrase
    text = f"<!doctype html><html><head><title>{phrase}</title></head><body><h1>{phrase}</h1></body></html>\n"
    return Answer(status=status, content_type="text/html; charset=utf-8", body=text.encode(), headers=headers)


def answer_text(text: str, status: int = 200) -> Answer:
    """Plain text."""
    return Answer(status=status, content_type="text/plain; charset=utf-8", body=text.encode())


def not_found() -> CallError:
    """Of what is not there, or not for this user."""
    return CallError(answer_json({"detail": "Not Found"}, 404))


def unauthorized() -> CallError:
    """Of what needs an account, or another one."""
    return CallError(answer_json({"detail": "Unauthorized"}, 401))


def bad_query() -> CallError:
    """Of a query that cannot be read."""
    return CallError(answer_json({"message": BAD_QUERY}, 400))


def unprocessable(errors: list[dict[str, Any]]) -> CallError:
    """Of parameters that are wrong."""
    return CallError(answer_json({"detail": errors}, 422))


def plan_refusal(fault: Fault) -> Answer | None:
    """The answer of a fault that needs no data; None for the others. Pure."""
    if fault.kind == "html":
        return answer_page(200)
    if fault.kind == "empty":
        return Answer()
    status = REFUSALS.get(fault.kind)
    if status is None:
        return None
    waits = fault.kind in {"error-429", "slow-down"} and fault.seconds
    extra = (f"Retry-After: {fault.seconds:.0f}",) if waits else ()
    if status == 400:
        return bad_query().answer
    if status == 401:
        return unauthorized().answer
    if status == 404:
        return not_found().answer
    return answer_page(status, *extra)


def make_reply(answer: Answer, fault: Fault | None, *, zipped: bool) -> Reply:
    """An answer from memory on its way out; `zipped`: the client takes gzip. Pure."""
    body, extra = answer.body, answer.headers
    if zipped and len(body) >= _GZIP_FROM and len(short := gzip.compress(body, 5, mtime=0)) < len(body):
        body, extra = short, (*extra, "Content-Encoding: gzip")
    headers = (f"Content-Type: {answer.content_type}", "Vary: Accept-Encoding", CORS, *extra)
    reply = wire.make_reply(answer.status, headers, body, head_only=False)
    return msgspec.structs.replace(reply, fault=fault)
