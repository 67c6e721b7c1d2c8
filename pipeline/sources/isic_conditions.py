"""Conditions `[path, operator, value]` on images, as older modules had them: checked, combined, and decided row by row.

A condition that could never hold because of a misspelt path, an operator that does not fit the field, or a value that
the field cannot have, is an error instead of an empty selection. A missing value meets no condition but `is None` and
its like. Everything here is pure.
"""

from __future__ import annotations

import decimal
import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.sources.isic_fields import Field, resolve_path
from pipeline.sources.isic_rows import Image, Value, flatten_image

_ALIASES = {
    "~": "match",
    "!~": "not match",
    "is none": "is None",
    "is not none": "is not None",
    "=": "==",
    "not is": "is not",
    "not is None": "is not None",
}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS = (
    *("==", "!=", "<", "<=", ">", ">=", "in", "not in", "ni", "not ni", "match", "not match"),
    *("is", "is not", "is None", "is not None"),
)
_EXACT = frozenset({"==", "!=", "in", "not in"})
_SHOWN = 30  # values in a message
_IDS = frozenset({"isic_id", "patient_id", "lesion_id", "rcm_case_id"})
_WRITE = 'write [PATH, OPERATOR, VALUE], as ["diagnosis_1", "==", "Malignant"]'


class Condition(msgspec.Struct, frozen=True):
    """One checked condition. `value` is of the field's type: text, Decimal, bool, None, or a tuple of these."""

    field: Field
    operator: str
    value: Any = None


class All(msgspec.Struct, frozen=True):
    """All of the parts hold; none: always."""

    parts: tuple[Expression, ...] = ()


class Some(msgspec.Struct, frozen=True):
    """At least one of the parts holds; none: never."""

    parts: tuple[Expression, ...] = ()


class Not(msgspec.Struct, frozen=True):
    """The part does not hold."""

    part: Expression


Expression = Condition | All | Some | Not
# By field or column: values that there are, beside those of the registry; `FacetCounts` tell of others that there are.
Known = Mapping[str, Iterable[str]]


def parse_conditions(conditions: object, known: Known | None = None) -> tuple[All, tuple[str, ...]]:
    """Check conditions that must all hold: a list of `[path, operator, value]`, or a single one.

    Returns
    -------
    expression, notes
        What was read as something else than written, for people.

    Raises
    ------
    ConfigError
        With the number of the condition, what is wrong with it, and what was probably meant.
    """
    if not isinstance(conditions, Sequence) or isinstance(conditions, (str, bytes)):
        raise ConfigError(f"conditions are a list, not {type(conditions).__name__}", hint=_WRITE)
    listed = [conditions] if conditions and isinstance(conditions[0], str) else list(conditions)
    parts: list[Expression] = []
    notes: list[str] = []
    for number, each in enumerate(listed, 1):
        try:
            condition, note = _parse_condition(each, known or {})
        except ConfigError as error:
            raise ConfigError(f"condition {number}: {error}", hint=error.hint) from None
        parts.append(condition)
        notes += [note] if note and note not in notes else []
    return All(tuple(parts)), tuple(notes)


def _parse_condition(condition: object, known: Known) -> tuple[Condition, str]:
    if not isinstance(condition, Sequence) or isinstance(condition, (str, bytes)) or len(condition) not in {2, 3}:
        raise ConfigError(f"{_show(condition)} is not one", hint=_WRITE)
    path, name, value = condition[0], condition[1], condition[2] if len(condition) == 3 else None
    if not isinstance(path, str) or not isinstance(name, str):
        raise ConfigError(f"{_show(condition)} has a path or operator that is no text", hint=_WRITE)
    squeezed = " ".join(name.split())
    kind = _ALIASES.get(squeezed, squeezed)
    if kind not in OPERATORS:
        near = "match" if "re" in kind.lower() else next(iter(difflib.get_close_matches(kind, OPERATORS, n=1)), "")
        hint = f"did you mean {near!r}?" if near else f"operators: {', '.join(OPERATORS)}"
        raise ConfigError(f"{path}: no operator {name[:40]!r}", hint=hint)
    if len(condition) == 2 and "None" not in kind:
        raise ConfigError(f"{path} {kind}: no value", hint=_WRITE)
    if value is None and kind in {"==", "is", "!=", "is not"}:
        kind = "is None" if kind in {"==", "is"} else "is not None"
    found = resolve_path(path)
    field, note = found.field, found.note
    if "None" in kind:
        return Condition(field, kind), note
    values = value if kind in {"in", "not in"} else [value]
    if not isinstance(values, (Sequence, set, frozenset)) or isinstance(values, (str, bytes)):
        raise ConfigError(f"{path} {kind}: takes a list of values, not {_show(value)}", hint='write ["a", "b"]')
    if not values:
        raise ConfigError(f"{path} {kind}: an empty list", hint="leave the condition out, or list values")
    checked: list[Value] = []
    for each in sorted(values, key=repr) if isinstance(values, (set, frozenset)) else values:
        fit = _check_type(path, field, kind, each)
        if found.old and isinstance(fit, str) and fit in found.old.values:
            renamed = found.old.values[fit]
            if renamed != fit:
                note += f"{'; ' if note else ''}{fit!r} is read as {renamed!r}"
            fit = renamed
        if kind in _EXACT and (doubt := _check_value(path, field, fit, known)):
            note += f"{'; ' if note else ''}{doubt}"
        checked.append(fit)
    if kind in {"is", "is not"}:
        kind = "==" if kind == "is" else "!="
    return Condition(field, kind, tuple(checked) if kind in {"in", "not in"} else checked[0]), note


def _check_type(path: str, field: Field, kind: str, value: object) -> Value:
    """The value as the field's type; raises `ConfigError` where the operator has no use for it."""
    what = f"{path} {kind} {_show(value)}"
    if kind in {"is", "is not"} and not isinstance(value, bool):
        raise ConfigError(f"{what}: `{kind}` is for true, false and None", hint="use == or !=")
    if kind in {"ni", "not ni", "match", "not match"}:
        if field.kind != "text":
            raise ConfigError(f"{what}: {field.name} is no text, but {field.kind}", hint="use ==, < or >")
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{what}: takes a text", hint=_WRITE)
        if kind.endswith("match"):
            _compile(value)
        return value
    if field.kind == "bool":
        if kind in _ORDER:
            raise ConfigError(f"{what}: {field.name} is true or false, which have no order", hint="use ==")
        if not isinstance(value, bool):
            raise ConfigError(f"{what}: {field.name} is true or false", hint="write true or false without quotes")
        return value
    if field.kind == "text":
        if not isinstance(value, str):
            raise ConfigError(f"{what}: {field.name} is a text", hint=f'write "{value}"')
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
        raise ConfigError(f"{what}: {field.name} is a number", hint="write it without quotes")
    if not math.isfinite(value):
        raise ConfigError(f"{what}: no number", hint="leave the condition out")
    return decimal.Decimal(str(value))


def _check_value(path: str, field: Field, value: Value, known: Known) -> str:
    """What is doubtful about a value; raises `ConfigError` for one that the field cannot have."""
    if not isinstance(value, str):
        return ""
    if field.name == "isic_id" and not re.fullmatch(r"ISIC_\d{7,12}", value, re.ASCII):
        raise ConfigError(f"{path}: {value[:80]!r} is no ISIC id", hint="they look like ISIC_0000001")
    listed = {*known.get(field.name, ()), *known.get(field.column, ())}
    if not field.values and not listed:
        return ""
    possible = [*field.values, *sorted(listed - set(field.values))]
    if value in possible:
        return ""
    by_case = {each.casefold(): each for each in possible}
    folded = value.casefold()
    near = [folded] if folded in by_case else difflib.get_close_matches(folded, by_case, n=3, cutoff=0.5)
    if folded not in by_case:
        near += [each for each in by_case if folded in each and each not in near][: 3 - len(near)]
    if any(getattr(known.get(name), "others", 0) for name in (field.name, field.column)):
        meant = f" (did you mean {' or '.join(repr(by_case[each]) for each in near)}?)" if near else ""
        return f"{field.name}: the site lists its most frequent values only, and {value[:80]!r} is none of them{meant}"
    more = "; …" if len(possible) > _SHOWN else ""
    hint = f"did you mean {' or '.join(by_case[each] for each in near)}?" if near else ""
    hint = hint or f"values: {'; '.join(possible[:_SHOWN])}{more}"
    before = "" if path == field.name else f"{path}: "
    raise ConfigError(f"{before}{field.name} is never {value[:80]!r}", hint=hint)


def open_fields(expression: Expression) -> tuple[str, ...]:
    """Fields of which an expression names values that nobody but the site can list. Pure."""
    fields = [each.field for each in _conditions(expression) if each.operator in _EXACT]
    named = [each.name for each in fields if each.kind == "text" and each.searchable and not each.values]
    return tuple(dict.fromkeys(name for name in named if name not in _IDS))


def check_values(expression: Expression, known: Known) -> tuple[str, ...]:
    """What is doubtful about the values that an expression names, for people. Pure.

    Parameters
    ----------
    known
        As `IsicClient.facets` gives it.

    Raises
    ------
    ConfigError
        For a value that no image has, with the nearest that some have.
    """
    notes: list[str] = []
    asked = open_fields(expression)
    for condition in _conditions(expression):
        field = condition.field
        if condition.operator not in _EXACT or field.name not in asked:
            continue
        if not known.get(field.name) and not known.get(field.column):
            notes.append(f"{field.name}: the site lists no values, so those of conditions could not be checked")
        values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
        notes += [_check_value(field.name, field, value, known) for value in values]
    return tuple(dict.fromkeys(filter(None, notes)))


def _conditions(expression: Expression) -> Iterator[Condition]:
    if isinstance(expression, Condition):
        yield expression
    elif isinstance(expression, Not):
        yield from _conditions(expression.part)
    else:
        for part in expression.parts:
            yield from _conditions(part)


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{pattern[:80]!r} is no regular expression: {error}", hint="see Python's re") from None


def _show(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        text = type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}…"


def meets(expression: Expression, row: Mapping[str, Value] | Image) -> bool:
    """Whether a row (`flatten_image`) or image meets an expression."""
    if isinstance(row, Image):
        row = flatten_image(row)
    if isinstance(expression, All):
        return all(meets(part, row) for part in expression.parts)
    if isinstance(expression, Some):
        return any(meets(part, row) for part in expression.parts)
    if isinstance(expression, Not):
        return not meets(expression.part, row)
    return _holds(expression, row.get(expression.field.column))


def _holds(condition: Condition, value: Any) -> bool:
    kind, wanted = condition.operator, condition.value
    if kind == "is None" or value is None:
        return kind == "is None" and value is None
    if kind == "is not None":
        return True
    if kind in _ORDER:
        return _ORDER[kind](value, wanted)
    if kind in {"==", "!="}:
        return bool((value == wanted) == (kind == "=="))
    if kind in {"in", "not in"}:
        return (value in wanted) == (kind == "in")
    if kind in {"ni", "not ni"}:
        return (wanted in value) == (kind == "ni")
    return (_compile(wanted).search(value) is not None) == (kind == "match")
