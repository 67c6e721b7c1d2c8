"""Which series a `[select.tcia]` table means: asked of TCIA in few calls, then narrowed in a table of their rows.

Where to look: the lists (`series`, `cart`, `manifest`) if there are any, else `collections`, else `studies`, else
`patients`. One call lists a collection, a study or a patient; lists are looked up a thousand series a call. All other
keys choose among what is found.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from pipeline.dicom.header import is_uid
from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.settings import SelectTcia
from pipeline.sources.duck import compose, quote_name
from pipeline.sources.idc_select import Condition, fold_name
from pipeline.sources.tcia_api import NLST
from pipeline.sources.tcia_ask import NlstUnavailableError, is_nlst
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_inputs import SeriesList
from pipeline.sources.tcia_lines import explain_no_uid
from pipeline.sources.tcia_metadata import BATCH
from pipeline.sources.tcia_rows import Series
from pipeline.sources.tcia_table import COLUMNS, SeriesTable
from pipeline.sources.where import check_where

NAME_KEYS = {
    "collections": "collection",
    "modalities": "Modality",
    "body_parts": "BodyPartExamined",
    "manufacturers": "Manufacturer",
    "licences": "LicenseName",
    "patients": "PatientID",
}
ID_KEYS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}
# What is looked for as a whole.
KINDS = {"collections": "collection", "patients": "patient", "studies": "study"}
SHOWN = 10
_AT_ONCE = 10 * BATCH
_FIELDS = tuple(COLUMNS)


class Unknown(msgspec.Struct, frozen=True):
    """What was asked for and is not there: withdrawn, restricted, never there, or on a host that does not answer.

    Attributes
    ----------
    names
        SeriesInstanceUIDs; others begin with what they are, such as `collection NLST`. In order.
    said
        Why, where more is known than that nobody has it.
    """

    names: tuple[str, ...] = ()
    asked: int = 0
    said: dict[str, str] = {}


def choose_values(
    key: str, wanted: Sequence[str], known: Iterable[str], place: str, *, fold: bool = True
) -> tuple[str, ...]:
    """Find each wanted value among the known ones, in TCIA's own sense: case does not matter. Pure.

    A value that is not found so is sought (`fold`) without the difference between space, `-`, `_` and `.`; all known
    values that agree are meant, since TCIA spells one manufacturer in several ways.

    Raises
    ------
    ConfigError
        For a value that is not there, with the nearest that are. `place` says where it was sought.
    """
    names = sorted(set(known))
    cases: dict[str, list[str]] = {}
    folded: dict[str, list[str]] = {}
    for name in names:
        cases.setdefault(name.casefold(), []).append(name)
        folded.setdefault(fold_name(name), []).append(name)
    found: dict[str, None] = {}
    for value in wanted:
        matches = cases.get(value.strip().casefold()) or (folded.get(fold_name(value)) if fold else None)
        if not matches:
            near = difflib.get_close_matches(fold_name(value), folded, n=3, cutoff=0.6)
            near = near or [other for other in folded if fold_name(value) in other][:3]
            said = f"; did you mean {' or '.join(folded[other][0] for other in near)}?" if near else ""
            if not near and len(names) <= 40:
                said = f"; there are {', '.join(names)}" if names else "; there are none"
            hint = "see `medhaul query tcia` for what the site holds"
            raise ConfigError(f"select.tcia.{key}: no {value!r} {place}{said}", hint=hint)
        found |= dict.fromkeys(matches)
    return tuple(found)


def explain_missing(key: str, missing: Sequence[str], asked: int, place: str) -> ConfigError:
    """Say which of the asked identifiers are not there. Pure."""
    more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    return ConfigError(
        f"select.tcia.{key}: {len(missing):,} of {asked:,} not {place}: {', '.join(missing[:SHOWN])}{more}",
        hint="check the identifiers: series may be withdrawn or restricted; a manifest goes on without those",
    )


def explain_nothing(conditions: Sequence[Condition], counts: Sequence[int]) -> ConfigError:
    """Say after which condition nothing was left; `counts` begins with what was found at first. Pure."""
    steps = [f"{counts[0]:,} series found"]
    steps += [f"{count:,} after {step.label}" for step, count in zip(conditions, counts[1:], strict=True)]
    return ConfigError(
        f"nothing selected: {', '.join(steps)}", hint="all conditions must hold at once; loosen the one that ends at 0"
    )


def check_uids(key: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names if all are UIDs. Raises `ConfigError` with the first that is none. Pure."""
    wrong = next((name for name in names if explain_no_uid(name)), None)
    if wrong is not None:
        said = f"{wrong[:80]!r} is no UID ({explain_no_uid(wrong)})"
        raise ConfigError(f"select.tcia.{key}: {said}", hint="digits and dots, 64 at most")
    return names


class Finder:
    """Looks up a selection: `find` fills the table, `narrow` chooses among what it holds.

    Attributes
    ----------
    notes
        What people should know of it.
    unknown
        What neither TCIA nor (where it is used) the IDC's index has, though a list names it; what the host of NLST may
        have while it does not answer; and what the site lists with something else than a UID, or for another value than
        was asked for.
    """

    def __init__(
        self, client: TciaClient, table: SeriesTable, wanted: SelectTcia, listed: SeriesList | None, *, use_index: bool
    ) -> None:
        self._client = client
        self._table = table
        self._wanted = wanted
        self._listed = listed
        self._use_index = use_index
        self._known: list[str] | None = None
        self._said: dict[str, str] = {}  # of listed series that did not come
        self._unanswered: dict[str, str] = {}  # of those, or of a whole `collection NAME`, that nobody could tell of
        self._lost: dict[str, list[str]] = {}  # values of keys that the host of NLST may have
        self._left_out: dict[str, str] = {}  # rows of the site that are not taken
        self.notes: list[str] = []
        self.unknown = Unknown()

    def find(self) -> None:
        """Ask the site, and the index.

        Raises
        ------
        ConfigError
            For names and identifiers that are not there, a file that is no list, and when nothing is there at all.
        SiteUnavailableError
            When the site does not answer as it should.
        """
        wanted = self._wanted
        if wanted.series or wanted.cart or self._listed is not None:
            self._find_listed()
        elif wanted.collections:
            known = self._collections()
            if any(map(is_nlst, wanted.collections)):  # whether its host has it is told by asking it
                known = list({*known, NLST})
            for name in choose_values("collections", wanted.collections, known, "among TCIA's"):
                self._find_one("collections", name, collection=name)
        else:
            self._find_one_by_one()
        if self._use_index:
            self._table.find_in_index()
            for name in self._table.add_from_index():
                matches = [known for known in self._collections() if fold_name(known) == fold_name(name)]
                if len(matches) == 1:
                    self._table.rename_collection(name, matches[0])
        self._check_found()

    def _collections(self) -> list[str]:
        if self._known is None:
            self._known = self._client.collections(nlst=False)
        return self._known

    def _take(self, rows: Iterable[Series]) -> None:
        """Take in rows of the site; no task could fetch a series that has no UID."""

        def named() -> Iterator[Series]:
            for row in rows:
                if is_uid(row.SeriesInstanceUID):
                    yield row
                else:
                    self._left_out[row.SeriesInstanceUID] = "what the site calls them is no UID"

        self._table.add_series(named())

    def _find_one(self, key: str, value: str, **filters: str) -> bool:
        """Ask for the series of a collection, patient or study; say whether there may be any."""
        try:
            found = self._client.series(**filters)
        except NlstUnavailableError as error:
            self._lost.setdefault(key, []).append(value)
            self._unanswered[f"{KINDS[key]} {value}"] = str(error)
            return True
        self._take(self._check_rows(key, value, found))
        return bool(found)

    def _check_rows(self, key: str, value: str, found: Sequence[Series]) -> Iterator[Series]:
        """Rows of an answer for one value, which stands in each: what a row leaves out would never match it again."""
        column = (NAME_KEYS | ID_KEYS)[key]
        spelled = {
            text for row in found if (text := getattr(row, column)) and text.casefold() == value.strip().casefold()
        }
        filled = min(spelled, default=value.strip())
        for row in found:
            text = getattr(row, column)
            if text in spelled:
                yield row
            elif not text:
                yield msgspec.structs.replace(row, **{column: filled})
            else:
                said = f"the site gives them for the {KINDS[key]} {value}, and calls it another {column}"
                self._left_out.setdefault(row.SeriesInstanceUID, said)

    def _find_one_by_one(self) -> None:
        key = "studies" if self._wanted.studies else "patients"
        values = tuple(dict.fromkeys(getattr(self._wanted, key)))
        missing = [value for value in values if not self._find_one(key, value, **{KINDS[key]: value})]
        if missing:
            raise explain_missing(key, missing, len(values), "at TCIA")

    def _find_listed(self) -> None:
        """Gather the names of all lists; those in each of them are wanted, and looked up."""
        table, wanted, listed = self._table, self._wanted, self._listed
        lists = 0

        def add(names: Iterable[str]) -> int:
            nonlocal lists
            repeated = table.add_names("listed", names)
            if lists:
                table.run("DELETE FROM wanted WHERE uid NOT IN (SELECT uid FROM listed)")
            else:
                table.run("INSERT INTO wanted SELECT uid FROM listed")
            lists += 1
            return repeated

        if listed is not None:
            if repeated := add(listed):
                self.notes.append(f"{listed.path}: {repeated:,} lines repeat a series, which is taken once")
            self.notes += listed.notes
            if listed.kind == "idc":
                self._resolve_folders()
            if not table.count("wanted") and not self.unknown.names:
                raise ConfigError(f"{listed.path}: lists no series", hint="check the file")
        if wanted.cart:
            add(check_uids("cart", [row.SeriesInstanceUID for row in self._client.cart(wanted.cart)]))
        if wanted.series:
            add(check_uids("series", wanted.series))
        if not table.count("wanted") and lists > 1:
            raise ConfigError("nothing selected: no series is in all of manifest, cart and series", hint="drop one")
        look_up = self._client.look_up()
        for batch in table.wanted(_AT_ONCE):
            found = look_up.ask(batch, table.outside_nlst(batch) if self._use_index else ())
            table.add_series(Series(**{name: getattr(row, name) for name in _FIELDS}) for row in found.rows)
            self._said |= {uid: said for uid, said in found.unknown.items() if said}
            self._unanswered |= found.unanswered

    def _resolve_folders(self) -> None:
        count = self._table.count("wanted")
        missing = self._table.resolve_folders("wanted")
        names = tuple(f"crdc_series_uuid {name}" for name in missing)
        self.unknown = Unknown(names, count, dict.fromkeys(names, "the IDC's index has no such folder"))

    def _check_found(self) -> None:
        """Tell what was asked for one by one and is nowhere."""
        table, typed = self._table, set(self._wanted.series)
        asked = table.count("wanted")
        sql = "SELECT uid FROM wanted WHERE uid NOT IN (SELECT SeriesInstanceUID FROM series) ORDER BY uid"
        missing = [uid for (uid,) in table.stream(sql)] if asked else []
        place = "at TCIA or in the IDC's index" if self._use_index else "at TCIA"
        if wrong := [uid for uid in missing if uid in typed and uid not in self._unanswered]:
            raise explain_missing("series", wrong, len(typed), place)
        whole = [name for name in self._unanswered if name.startswith(tuple(KINDS.values()))]
        said = {name: self._unanswered.get(name) or self._said.get(name, "") for name in (*whole, *missing)}
        taken = set(self._in_table(self._left_out))  # for another value, in another row
        said |= {name: why for name, why in self._left_out.items() if name not in taken}
        names = (*self.unknown.names, *said)
        total = max(self.unknown.asked, asked)
        self.unknown = Unknown(names, total, self.unknown.said | {name: why for name, why in said.items() if why})
        notes = describe_unknown(self.unknown, place)
        if names and not table.count("series"):
            if self._unanswered:
                name, why = next(iter(self._unanswered.items()))
                raise SiteUnavailableError(f"{name}: {why}", hint="try again later; nothing else was found")
            hint = "they may be withdrawn or restricted, or of another site; check where the list comes from"
            if all(name.startswith("crdc_series_uuid ") for name in names):
                hint = "only the IDC's index knows folders: take one of the release that the manifest is of"
            raise ConfigError(notes[0], hint=hint)
        self.notes += notes
        only_idc = [uid for uid in self._unanswered if uid not in said]
        if only_idc:
            why = self._unanswered[only_idc[0]]
            self.notes.append(
                f"{len(only_idc):,} series are taken as the IDC's index has them, for NBIA was no help: {why}"
            )

    def narrow(self) -> None:
        """Choose among what was found, into the table `chosen`: the rows, each series once, with a number `n`.

        Raises
        ------
        ConfigError
            A value that nothing found has, a `where` that cannot be, or nothing left.
        """
        table, wanted = self._table, self._wanted
        conditions = []
        for key, column in (NAME_KEYS | ID_KEYS).items():
            lost = {fold_name(value) for value in self._lost.get(key, ())}
            values = tuple(value for value in getattr(wanted, key) if fold_name(value) not in lost)
            if key == "series" and self._unanswered:  # the index may have had them
                gone = self._unanswered.keys() - set(self._in_table(self._unanswered))
                values = tuple(uid for uid in values if uid not in gone)
            if values:
                exact = self._choose(key, column, values)
                sql = f"{quote_name(column)} IN (SELECT unnest(?::VARCHAR[]))"
                conditions.append(Condition(key, sql, (list(exact),)))
        if wanted.where:
            where = check_where(wanted.where, COLUMNS, name="select.tcia.where")
            conditions.append(Condition(f"where = {where.expression[:200]!r}", where.sql))
        names = ", ".join(map(quote_name, COLUMNS))
        condition, parameters = _join(conditions)
        # A site that gives a series twice, with two rows, must not plan it twice: which row counts is always the same.
        (rows, different), *_ = table.fetch("SELECT count(*), count(DISTINCT SeriesInstanceUID) FROM series")
        once = "QUALIFY row_number() OVER (PARTITION BY SeriesInstanceUID ORDER BY {names}) = 1"
        sql = "CREATE TABLE chosen AS SELECT row_number() OVER () AS n, * FROM (SELECT * FROM series WHERE {condition} "
        sql += f"{once if rows > different else ''})"
        table.run(compose(sql, condition=condition, names=names), parameters)
        if not table.count("chosen"):
            counts = [table.count("series", *_join(conditions[:end])) for end in range(len(conditions) + 1)]
            raise explain_nothing(conditions, counts)
        table.run("TRUNCATE series")

    def _in_table(self, uids: Iterable[str]) -> list[str]:
        """Those of some series that were found."""
        sql = "SELECT DISTINCT SeriesInstanceUID FROM series WHERE SeriesInstanceUID IN (SELECT unnest(?::VARCHAR[]))"
        return [uid for (uid,) in self._table.stream(sql, [list(uids)])]

    def _choose(self, key: str, column: str, values: tuple[str, ...]) -> tuple[str, ...]:
        sql = "SELECT DISTINCT {column} FROM series WHERE {column} IS NOT NULL"
        known = (row[0] for row in self._table.stream(compose(sql, column=quote_name(column))))
        place = "among the series found"
        if key in NAME_KEYS:
            return choose_values(key, values, known, place, fold=key != "patients")
        missing = sorted(set(values) - set(known))
        if missing:
            raise explain_missing(key, missing, len(set(values)), place)
        return values


def group_reasons(unknown: Unknown) -> dict[str, list[str]]:
    """Names by why they are not there ("": nobody has them), those first. Pure."""
    groups: dict[str, list[str]] = {"": []}
    for name in unknown.names:
        why = unknown.said.get(name, "")
        groups.setdefault(why.replace(name, "…"), []).append(name)  # sites name the series that they refuse
    return groups


def describe_unknown(unknown: Unknown, place: str) -> list[str]:
    """What to tell of unknown series, a line for each reason; ten reasons at most. Pure."""
    groups = group_reasons(unknown)
    notes = []
    for why, names in list(groups.items())[: SHOWN + 1]:
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        shown = f"{', '.join(name if is_uid(name) or ' ' in name else repr(name) for name in names[:SHOWN])}{more}"
        of = f"{len(names):,} of {unknown.asked:,} listed series are" if unknown.asked else f"{len(names):,} series are"
        if any(name.startswith(tuple(KINDS.values())) for name in names):
            notes.append(f"left out: {shown}: {why}")
        elif names:
            notes.append(f"{of} left out: {shown}: {why}" if why else f"{of} not {place}: {shown}")
    if len(groups) > SHOWN + 1:
        rest = sum(map(len, list(groups.values())[SHOWN + 1 :]))
        notes.append(f"{rest:,} more are left out for other reasons")
    return notes


def _join(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    sql = " AND ".join(condition.sql for condition in conditions) or "true"
    return sql, [value for condition in conditions for value in condition.parameters]
