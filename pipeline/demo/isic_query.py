"""The search language of the ISIC Archive as its site reads it: parsed by hand, with what its two engines make of it.

Lists and counts come from a database, sizes and facets from a search engine; they differ in `*word*` and `-f:*word`.
Facts: isic/core/dsl.py of https://github.com/ImageMarkup/isic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Literal

Engine = Literal["database", "search"]
Judge = Callable[[Mapping[str, Any]], bool]
Test = Callable[[Any], bool]

_TEXTS = (
    *("isic_id", "copyright_license", "sex", "diagnosis_confirm_type", "image_type", "dermoscopic_type"),
    *("tbp_tile_type", "mel_mitotic_index", "anatom_site_special", "color_tint", "patient_id", "lesion_id"),
    *("rcm_case_id", "image_manipulation", "fitzpatrick_skin_type"),
    *(f"diagnosis_{level}" for level in range(1, 6)),
    *(f"anatom_site_{level}" for level in range(1, 6)),
)
_NUMBERS = ("age_approx", "clin_size_long_diam_mm", "mel_thick_mm")
_FLAGS = (
    *("public", "blurry", "hairy", "marker_pen", "personal_hx_mm", "family_hx_mm", "melanocytic", "mel_ulcer"),
    "concomitant_biopsy",
)
# Understood, but the database has no such columns.
COLUMNLESS = frozenset({"blurry", "hairy", "marker_pen", "color_tint"})
# Older names of values.
_ALIASES = {("image_type", "clinical"): "clinical: close-up", ("image_type", "overview"): "clinical: overview"}
_NUMBER = r"(?:\d+(?:\.\d+)?|\*)"
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:(?P<sign>[()])"""
    r"""|(?P<word>AND|OR)(?![A-Za-z0-9_*-])(?![ \t\r\n]*:)"""
    r"""|(?P<minus>-?)[ \t\r\n]*(?P<field>[a-z_0-9]+)[ \t\r\n]*:[ \t\r\n]*"""
    rf"""(?P<value>"[^"\r\n]*"|[\[{{][ \t]*{_NUMBER}[ \t]+TO[ \t]+{_NUMBER}[ \t]*[\]}}]|[A-Za-z0-9*_.-]+))""",
    re.ASCII,
)
_RANGE = re.compile(rf"([\[{{])\s*({_NUMBER})\s+TO\s+({_NUMBER})\s*([\]}}])", re.ASCII)
_DEPTH = 50


class BadQueryError(ValueError):
    """The site answers 400."""


class ColumnlessError(Exception):
    """The site answers 500."""


def parse_query(query: str, engine: Engine = "database") -> Judge:
    """Read a query into a judge of images' fields.

    Raises
    ------
    BadQueryError
        When it cannot be parsed.
    ColumnlessError
        When it can, but the database cannot answer it.
    """
    tokens: list[re.Match[str]] = []
    at, end = 0, len(query.rstrip())
    while at < end:
        match = _TOKEN.match(query, at)
        if match is None:
            raise BadQueryError(query[at:])
        tokens.append(match)
        at = match.end()
    reader = _Reader(tokens, engine)
    judge = reader.either()
    if reader.place != len(tokens):
        raise BadQueryError("more than a query")
    return judge


class _Reader:
    def __init__(self, tokens: list[re.Match[str]], engine: Engine) -> None:
        self.tokens = tokens
        self.engine = engine
        self.place = 0
        self.depth = 0

    def _peek(self, group: str) -> str | None:
        return self.tokens[self.place][group] if self.place < len(self.tokens) else None

    def either(self) -> Judge:
        judges = [self.both()]
        while self._peek("word") == "OR":
            self.place += 1
            judges.append(self.both())
        return judges[0] if len(judges) == 1 else lambda row: any(judge(row) for judge in judges)

    def both(self) -> Judge:
        judges = [self.sequence()]
        while self._peek("word") == "AND":
            self.place += 1
            judges.append(self.sequence())
        return judges[0] if len(judges) == 1 else lambda row: all(judge(row) for judge in judges)

    def sequence(self) -> Judge:
        if self._peek("sign") == "(":
            self.depth += 1
            if self.depth > _DEPTH:
                raise BadQueryError("too deep")
            self.place += 1
            judge = self.either()
            if self._peek("sign") != ")":
                raise BadQueryError("no closing parenthesis")
            self.place += 1
            self.depth -= 1
            return judge
        judges = []
        while self._peek("field") is not None:
            token = self.tokens[self.place]
            judges.append(_judge_term(token["field"], token["value"], bool(token["minus"]), self.engine))
            self.place += 1
        if not judges:
            raise BadQueryError("no term")
        return judges[0] if len(judges) == 1 else lambda row: all(judge(row) for judge in judges)


def _judge_term(field: str, text: str, negative: bool, engine: Engine) -> Judge:
    if field in _NUMBERS:
        meets = _test_number(text)
    elif field in _FLAGS:
        meets = _test_flag(text)
    elif field in _TEXTS:
        if text[0] in "[{" or (text[0] != '"' and "." in text):
            raise BadQueryError(text)
        bare = text.strip('"')
        meets = _test_text(_ALIASES.get((field, bare), bare), negative, engine)
    else:
        raise BadQueryError(f"no field {field}")
    if field in COLUMNLESS and engine == "database":
        raise ColumnlessError(field)

    def judge(row: Mapping[str, Any]) -> bool:
        value = row.get(field)
        return (value is not None and meets(value)) != negative

    return judge


def _test_text(bare: str, negative: bool, engine: Engine) -> Test:
    if bare == "*":
        return lambda _: True
    if engine == "search" and bare.startswith("*") and bare.endswith("*"):
        return lambda value: bare[1:-1] in value
    if bare.startswith("*"):
        if negative and engine == "database":
            return lambda value: value.startswith(bare[1:])  # as the site has it
        return lambda value: value.endswith(bare[1:])
    if bare.endswith("*"):
        return lambda value: value.startswith(bare[:-1])
    return lambda value: value == bare


def _test_flag(text: str) -> Test:
    if text not in {"true", "false", "*"}:
        raise BadQueryError(text)
    wanted = text == "true"
    return lambda value: text == "*" or value is wanted


def _test_number(text: str) -> Test:
    match = _RANGE.fullmatch(text)
    if match is None and not re.fullmatch(_NUMBER, text, re.ASCII):
        raise BadQueryError(text)
    ends = (match[2], match[3]) if match else (text, text)
    low, high = (None if end == "*" else Decimal(end) for end in ends)
    open_low, open_high = (match[1] == "{", match[4] == "}") if match else (False, False)

    def meets(value: Any) -> bool:
        number = Decimal(value)
        above = low is None or (number > low if open_low else number >= low)
        return above and (high is None or (number < high if open_high else number <= high))

    return meets
