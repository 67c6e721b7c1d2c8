"""The ISIC Archive's search language as the site reads it: a judge for queries that are written for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from pipeline.sources.isic_fields import FIELDS

Judge = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>[()])|(?P<word>(?:AND|OR)\b(?!\s*:))|(?P<minus>-?)\s*(?P<field>[a-z_0-9]+)\s*:\s*"""
    r"""(?P<value>"[^"]*"|[\[{]\s*\S+\s+TO\s+\S+?\s*[\]}]|[A-Za-z0-9*_.-]+))""",
    re.ASCII,
)
_COLUMNS = {field.name: field for field in FIELDS.values() if field.searchable}


class BadQueryError(ValueError):
    """The site would answer 400."""


def parse_query(query: str) -> Judge:
    """Read a query; raises `BadQueryError` where the site does."""
    tokens: list[re.Match[str]] = []
    at = 0
    while at < len(query.rstrip()):
        match = _TOKEN.match(query, at)
        if not match:
            raise BadQueryError(query[at:])
        tokens.append(match)
        at = match.end()

    def either(place: int) -> tuple[Judge, int]:
        judge, place = both(place)
        while place < len(tokens) and tokens[place]["word"] == "OR":
            other, place = both(place + 1)
            judge = _join(any, judge, other)
        return judge, place

    def both(place: int) -> tuple[Judge, int]:
        judge, place = sequence(place)
        while place < len(tokens) and tokens[place]["word"] == "AND":
            other, place = sequence(place + 1)
            judge = _join(all, judge, other)
        return judge, place

    def sequence(place: int) -> tuple[Judge, int]:
        if place < len(tokens) and tokens[place]["sign"] == "(":
            judge, place = either(place + 1)
            if place >= len(tokens) or tokens[place]["sign"] != ")":
                raise BadQueryError("no )")
            return judge, place + 1
        judges = []
        while place < len(tokens) and tokens[place]["field"]:
            judges.append(_term(tokens[place]))
            place += 1
        if not judges:
            raise BadQueryError("no term")
        return (lambda row: all(judge(row) for judge in judges)), place

    judge, end = either(0)
    if end != len(tokens):
        raise BadQueryError("more than a query")
    return judge


def _join(how: Callable[[Iterable[bool]], bool], *judges: Judge) -> Judge:
    return lambda row: how(judge(row) for judge in judges)


def _term(token: re.Match[str]) -> Judge:
    field = _COLUMNS.get(token["field"])
    if field is None:
        raise BadQueryError(f"no field {token['field']}")
    text = token["value"]
    meets: Callable[[Any], bool]
    if field.kind in {"int", "decimal"}:
        meets = _numbers(text)
    elif field.kind == "bool":
        if text not in {"true", "false", "*"}:
            raise BadQueryError(text)
        wanted = text == "true"
        meets = lambda value: text == "*" or value == wanted  # noqa: E731
    elif text[0] in "[{":
        raise BadQueryError(text)
    else:
        bare = text.strip('"')
        if bare == "*":
            meets = lambda _: True  # noqa: E731
        elif bare.endswith("*"):
            meets = lambda value: value.startswith(bare[:-1])  # noqa: E731
        elif bare.startswith("*"):
            meets = lambda value: value.endswith(bare[1:])  # noqa: E731
        else:
            meets = lambda value: value == bare  # noqa: E731
    negative = bool(token["minus"])

    def judge(row: Mapping[str, Any]) -> bool:
        value = row.get(field.column)
        return (value is not None and meets(value)) != negative

    return judge


def _numbers(text: str) -> Callable[[Any], bool]:
    match = re.fullmatch(r"([\[{])\s*(\S+)\s+TO\s+(\S+?)\s*([\]}])", text)
    ends = (match[2], match[3]) if match else (text, text)
    if any(not re.fullmatch(r"\*|\d+(\.\d+)?", end, re.ASCII) for end in ends):
        raise BadQueryError(text)
    low, high = (None if end == "*" else Decimal(end) for end in ends)
    open_low, open_high = bool(match) and match[1] == "{", bool(match) and match[4] == "}"

    def meets(value: Any) -> bool:
        above = low is None or (value > low if open_low else value >= low)
        return above and (high is None or (value < high if open_high else value <= high))

    return meets
