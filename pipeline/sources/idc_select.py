"""What a `[select.idc]` table means as SQL over the IDC index, and what to say when a value in it is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.settings import SelectIdc
from pipeline.sources.where import Where

# Keys whose values people type from memory, and keys whose values they paste; with the index column of each.
NAME_KEYS = {
    "collections": "collection_id",
    "analysis_results": "analysis_result_id",
    "licences": "license_short_name",
    "modalities": "Modality",
}
ID_KEYS = {
    "patients": "PatientID",
    "studies": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "crdc_series": "crdc_series_uuid",
}
FEW_VALUES = 50
_CONTENT = {"original": "analysis_result_id IS NULL", "derived": "analysis_result_id IS NOT NULL", "both": ""}


class Condition(msgspec.Struct, frozen=True):
    """One condition: how people know it, its SQL with `?` for each of `parameters`, and whether that is a join."""

    label: str
    sql: str
    parameters: tuple[Any, ...] = ()
    joins: bool = False


def choose_names(key: str, wanted: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Find each wanted name among the known ones; pure.

    A name is found as it is written, else without regard to case and to the difference between space, `-`, `_` and
    `.`: TCIA's `RIDER Pilot` and `TCGA-BRCA` are IDC's `rider_pilot` and `tcga_brca`.

    Raises
    ------
    ConfigError
        For a name that is not there, with the nearest that are, or that may mean several.
    """
    names = sorted(set(known))
    exact = set(names)
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(fold_name(name), []).append(name)
    found: dict[str, None] = {}
    for name in wanted:
        matches = [name] if name in exact else folded.get(fold_name(name), [])
        if len(matches) > 1:
            raise ConfigError(f"{key}: {name!r} may mean {' or '.join(matches)}", hint="write it exactly")
        if not matches:
            near = difflib.get_close_matches(fold_name(name), folded, n=3, cutoff=0.6)
            near = near or [other for other in folded if fold_name(name) in other][:3]
            nearest = [folded[other][0] for other in near]
            said = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            if not nearest and len(names) <= 40:
                said = f"; there are {', '.join(names)}"
            raise ConfigError(
                f"{key}: no {name!r} in the index{said}", hint="see `medhaul query idc` for what the index holds"
            )
        found[matches[0]] = None
    return tuple(found)


def fold_name(name: str) -> str:
    """A name without case and without the difference between its separators."""
    return re.sub(r"[-\s_.]+", "_", name.strip()).lower()


def plan_conditions(
    selection: SelectIdc, names: Callable[[str, Sequence[str]], tuple[str, ...]], where: Where | None
) -> list[Condition]:
    """List the conditions of a selection, all of which must hold; `names` maps (key, values) to values of the index."""
    found = []
    if sql := _CONTENT[selection.content]:
        found.append(Condition(f"content = {selection.content!r}", sql))
    for key, column in (NAME_KEYS | ID_KEYS).items():
        values: tuple[str, ...] = getattr(selection, key)
        if values:
            exact = names(key, values) if key in NAME_KEYS else tuple(dict.fromkeys(values))
            # A join is faster for many values, but rows come out of it in no order.
            few = len(exact) <= FEW_VALUES
            sql = f'list_contains(?::VARCHAR[], "{column}")' if few else f'"{column}" IN (SELECT unnest(?::VARCHAR[]))'
            found.append(Condition(key, sql, (list(exact),), joins=not few))
    if where is not None:
        found.append(Condition(f"where = {where.expression[:200]!r}", where.sql))
    return found


def explain_missing(key: str, missing: Sequence[str], asked: int, release: str, earlier: dict[str, str]) -> ConfigError:
    """Say which of the asked identifiers are not in the index; `earlier` tells of those that once were. Pure."""
    shown = ", ".join(value + (f" ({earlier[value]})" if value in earlier else "") for value in missing[:10])
    more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
    return ConfigError(
        f"select.idc.{key}: {len(missing):,} of {asked:,} not in the IDC index {release}: {shown}{more}",
        hint="what is only in earlier releases was withdrawn or replaced: select it by its current identifiers"
        if any(value in earlier for value in missing)
        else "check the identifiers, or install the data release that has them",
    )


def explain_nothing(conditions: Sequence[Condition], counts: Sequence[int]) -> ConfigError:
    """Say after which condition nothing was left; `counts` begins with all series of the index. Pure."""
    steps = [f"{counts[0]:,} series in the index"]
    steps += [f"{count:,} after {step.label}" for step, count in zip(conditions, counts[1:], strict=True)]
    return ConfigError(
        f"nothing selected: {', '.join(steps)}", hint="all conditions must hold at once; loosen the one that ends at 0"
    )
