"""The search language of the ISIC Archive: conditions written in it, and queries that it refuses explained. Pure.

The language is a subset of Lucene's: `field:value`, "quotes", `*` wildcards, `[a TO b]`, `-` to negate, AND, OR and
parentheses (isic/core/dsl.py of https://github.com/ImageMarkup/isic). It negates single terms only, and a negated term
finds images without the field, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from pipeline.errors import ConfigError
from pipeline.sources.isic_conditions import All, Condition, Expression, Known, Not, Some, meets, parse_conditions
from pipeline.sources.isic_fields import FIELDS, OLD_NAMES
from pipeline.sources.isic_rows import Image

# Characters of an encoded query: routers refuse request lines of more than 8 KiB.
MAX_QUERY = 4000
STEPS = ("select", "refine", "add", "remove")
_SEARCHABLE = {field.name: field for field in FIELDS.values() if field.searchable}
_PLAIN = re.compile(r"(?!(?:AND|OR|TO|NOT)$)[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?", re.ASCII)
_ALWAYS = ("isic_id", "public", "copyright_license")  # no image lacks them


class Selection(msgspec.Struct, frozen=True):
    """Which images are wanted: what the site searches for, and what is decided here.

    Attributes
    ----------
    query
        In the search language; it finds all wanted images, and others too unless `exact`.
    notes
        What was read as something else than written, for people.
    """

    expression: Expression
    query: str
    exact: bool
    notes: tuple[str, ...] = ()

    def matches(self, image: Image) -> bool:
        """Whether an image is wanted."""
        return meets(self.expression, image)

    def refine(self, conditions: object, known: Known | None = None) -> Selection:
        """Of these images, those that meet conditions. Raises as `parse_conditions`."""
        return self._then("refine", conditions, known)

    def add(self, conditions: object, known: Known | None = None) -> Selection:
        """These images, and those that meet conditions. Raises as `parse_conditions`."""
        return self._then("add", conditions, known)

    def remove(self, conditions: object, known: Known | None = None) -> Selection:
        """These images without those that meet conditions. Raises as `parse_conditions`."""
        return self._then("remove", conditions, known)

    def _then(self, step: str, conditions: object, known: Known | None) -> Selection:
        more, notes = parse_conditions(conditions, known)
        if not more.parts:
            raise ConfigError(f"{step}: no conditions", hint="leave the step out")
        together: Expression
        if step == "refine":
            together = All((self.expression, more))
        else:
            together = Some((self.expression, more)) if step == "add" else All((self.expression, Not(more)))
        return _select(together, (*self.notes, *(note for note in notes if note not in self.notes)))


def plan_selection(conditions: object, known: Known | None = None) -> Selection:
    """Plan a selection.

    Parameters
    ----------
    conditions
        A list of `[path, operator, value]`, all to be met; or steps in order, `["select", [...]]` and then `refine`,
        `add` and `remove`, each with a list of these; a step may be a table, too: `{"add": [...]}`. No conditions:
        everything.
    known
        By field, values that it has beside those in the registry, as from `IsicClient.facets`.

    Raises
    ------
    ConfigError
        See `parse_conditions`; for a misspelt step, too.
    """
    steps = _parse_steps(conditions)
    if steps is None:
        return _select(*parse_conditions(conditions, known))
    selection: Selection | None = None
    for number, (step, each) in enumerate(steps, 1):
        if (step == "select") != (selection is None):
            hint = "the first step is `select`, and no other one is"
            raise ConfigError(f"step {number} is {step!r}", hint=hint)
        try:
            if selection is None:
                selection = _select(*parse_conditions(each, known))
            else:
                selection = getattr(selection, step)(each, known)
        except ConfigError as error:
            raise ConfigError(f"step {number} ({step}): {error}", hint=error.hint) from None
    assert selection is not None
    return selection


def _parse_steps(conditions: object) -> list[tuple[str, object]] | None:
    """Steps, or None where it is a list of conditions."""
    if not isinstance(conditions, Sequence) or isinstance(conditions, (str, bytes)) or not conditions:
        return None
    steps: list[tuple[str, object]] = []
    for each in conditions:
        if isinstance(each, dict) and len(each) == 1:
            step, inner = next(iter(each.items()))
        elif isinstance(each, Sequence) and len(each) == 2 and isinstance(each[1], (list, tuple)):
            step, inner = each[0], each[1]
        else:
            return None
        if step not in STEPS:
            near = difflib.get_close_matches(str(step)[:40], STEPS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"steps: {', '.join(STEPS)}"
            raise ConfigError(f"no step {str(step)[:40]!r}", hint=hint)
        steps.append((step, inner))
    return steps


def _select(expression: Expression, notes: tuple[str, ...]) -> Selection:
    query, exact = render_query(expression)
    return Selection(expression, query, exact, notes)


def render_query(expression: Expression) -> tuple[str, bool]:
    """Write the query that finds all that meet an expression, and say whether it finds nothing else.

    What the language cannot say is left out, and so are the longest parts of a query that would get too long.
    """
    terms = _terms(expression, positive=True)
    exact = None not in terms
    parts = [term for term in terms if term is not None]
    while parts and len(quote(" AND ".join(parts))) > MAX_QUERY:
        parts.remove(max(parts, key=len))
        exact = False
    return " AND ".join(dict.fromkeys(parts)), exact


def _terms(expression: Expression, *, positive: bool) -> list[str | None]:
    """What must all hold, None for each that cannot be said. Parts of a list may stand beside AND as they are."""
    if isinstance(expression, Not):
        return _terms(expression.part, positive=not positive)
    if isinstance(expression, Condition):
        return [_render_condition(expression, positive=positive)]
    if isinstance(expression, All) == positive:
        return [term for part in expression.parts for term in _terms(part, positive=positive)]
    choices: list[str] = []
    exact = True
    for part in expression.parts:
        terms = _terms(part, positive=positive)
        said = [term for term in terms if term is not None]
        exact = exact and len(said) == len(terms)
        if not said:  # this choice may be anything, so the whole may
            return [None] if terms else []
        choices.append(f"({' AND '.join(said)})" if len(said) > 1 else said[0])
    if not choices:
        return [None]
    joined = f"({' OR '.join(dict.fromkeys(choices))})" if len(set(choices)) > 1 else choices[0]
    return [joined] if exact else [joined, None]


def _render_condition(condition: Condition, *, positive: bool) -> str | None:
    field, kind = condition.field, condition.operator
    name = field.name
    if not field.searchable or (name in _ALWAYS and "None" in kind):
        return None
    if kind in {"is None", "is not None"}:
        return f"-{name}:*" if (kind == "is None") == positive else f"{name}:*"
    if kind in {"<", "<=", ">", ">="}:
        number = _render_value(condition.value)
        if field.kind not in {"int", "decimal"} or number is None:
            return None
        ranges = {
            "<": f"[* TO {number}}}",
            "<=": f"[* TO {number}]",
            ">": f"{{{number} TO *]",
            ">=": f"[{number} TO *]",
        }
        return f"{'' if positive else '-'}{name}:{ranges[kind]}"
    if kind not in {"==", "!=", "in", "not in"}:
        return None
    wanted = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    values = [_render_value(value) for value in wanted]
    if None in values:
        return None
    terms = [f"{name}:{value}" for value in values]
    if (kind in {"==", "in"}) == positive:
        found = terms if positive or name in _ALWAYS else [f"-{name}:*", *terms]
        return found[0] if len(found) == 1 else f"({' OR '.join(found)})"
    found = [f"-{term}" for term in terms]
    found = [f"{name}:*", *found] if positive and name not in _ALWAYS else found
    return found[0] if len(found) == 1 else f"({' AND '.join(found)})"


def _render_value(value: object) -> str | None:
    """A value as the language has it, or None where it has no way."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        text = f"{value:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text if re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text) else None
    if '"' in value or "*" in value or "\\" in value or not value.isprintable() or not value.strip():
        return None
    if value != value.strip() or not value.isascii():
        return None  # the site's reader of text drops blanks, and is not known to take other alphabets
    return value if _PLAIN.fullmatch(value) else f'"{value}"'


def join_queries(*queries: str) -> str:
    """A query that finds what all of these find; empty ones find everything."""
    parts = [query.strip() for query in queries if query.strip()]
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)


def review_query(query: str) -> list[str]:
    """Remarks on what the search language would refuse in a query, or silently find nothing for."""
    remarks: list[str] = []
    outside = re.sub(r'"[^"]*"', '""', query)
    if query.count('"') % 2:
        remarks.append('a quotation mark (") is not closed')
    if outside.count("(") != outside.count(")"):
        remarks.append("parentheses do not match")
    if "'" in outside:
        remarks.append('text stands in double quotes: "…"')
    if not outside.isascii():
        remarks.append("values with other than ASCII letters stand in double quotes")
    if re.search(r"[<>=]", outside):
        remarks.append("comparisons are ranges: age_approx:[50 TO *]")
    remarks += [
        f"write {word.upper()} in capital letters" for word in ("and", "or", "to") if re.search(rf"\s{word}\s", outside)
    ]
    if re.search(r"\bNOT\b|(?<![\w])!", outside):
        remarks.append("to negate, write - before a term: -sex:male")
    for match in re.finditer(r'(?<![\w."])([A-Za-z_][\w.]*)\s*:\s*("[^"]*"?|[^\s()]*)', query, re.ASCII):
        remarks += _review_term(match[1], match[2])
    if query.strip() and ":" not in outside:
        remarks.append("each term is field:value, as diagnosis_1:Malignant")
    return list(dict.fromkeys(remarks))


def _review_term(name: str, value: str) -> list[str]:
    field = _SEARCHABLE.get(name)
    if field is None:
        old = OLD_NAMES.get(name)
        if old:
            return [f"{name}: {old.note}"]
        if any(name in {each.name, each.column} for each in FIELDS.values()):
            at = next(each for each in FIELDS.values() if name in {each.name, each.column})
            return [f"search for {at.name}, not {name}" if at.searchable else f"{name} cannot be searched for"]
        near = difflib.get_close_matches(name, _SEARCHABLE, n=2)
        return [
            f"no field {name}; "
            + (f"did you mean {' or '.join(near)}?" if near else f"fields: {', '.join(_SEARCHABLE)}")
        ]
    bare = value.strip('"')
    if len(bare) > 2 and bare.startswith("*") and bare.endswith("*"):
        return [f"{name}:{value} finds nothing: a * may stand at one end only"]
    legacy = OLD_NAMES[name].values if name in OLD_NAMES else {}
    if field.values and bare and "*" not in bare and bare not in field.values and bare not in legacy:
        return [f"{name} is one of {'; '.join(field.values)} (capital letters count)"]
    return []
