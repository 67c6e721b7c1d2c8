"""What can go wrong at an archive site, on request: per object, so many times or by chance, and always repeatable."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from pipeline.demo.bucket import StoredObject
from pipeline.errors import ConfigError

# On any request.
StatusKind = Literal["error-500", "error-503", "slow-down", "forbidden", "html", "hangup", "delay"]
# On the body of an object or a listing.
BodyKind = Literal["reset", "stall", "drip", "truncate", "flip"]
# On an object: a GET or HEAD of it, or how listings show it.
ObjectKind = Literal["vanish", "short", "ignore-range", "etag-get", "etag-list", "etag-both", "hide", "extra"]
# On a request to NBIA: its refusals, its lists and its zips; see `pipeline.demo.nbia_faults`.
NbiaKind = Literal[
    "error-400", "error-401", "error-429", "error-502", "error-504",
    "empty", "blank-rows", "drop-keys", "null-text", "string-numbers", "single-object", "duplicate-rows", "hide-rows",
    "wrong-count", "wrong-size",
    "zip-short", "zip-cut-entry", "zip-hole", "zip-empty", "zip-licence",
    "md5-wrong", "md5-missing", "md5-extra", "md5-short", "shuffle",
]  # fmt: skip
# On a request to the ISIC Archive or its files; see `pipeline.demo.isic_faults`.
IsicKind = Literal["expired", "revised", "swap", "long", "octet-stream", "anonymous", "next-loop"]
FaultKind = Literal[StatusKind, BodyKind, ObjectKind, NbiaKind, IsicKind]

KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
STATUS_KINDS: tuple[StatusKind, ...] = get_args(StatusKind)
BODY_KINDS: tuple[BodyKind, ...] = get_args(BodyKind)
LISTING_KINDS: frozenset[FaultKind] = frozenset({"etag-list", "etag-both", "hide", "extra"})
GET_KINDS: frozenset[FaultKind] = frozenset(
    (*STATUS_KINDS, *BODY_KINDS, "vanish", "short", "ignore-range", "etag-get", "etag-both")
)
HEAD_KINDS = GET_KINDS - {*BODY_KINDS, "short", "ignore-range"}
LIST_KINDS: frozenset[FaultKind] = frozenset((*STATUS_KINDS, *BODY_KINDS))
# What a client that asks again gets over.
PASSING_KINDS: tuple[FaultKind, ...] = (
    "error-500",
    "error-503",
    "slow-down",
    "hangup",
    "reset",
    "drip",
    "truncate",
    "flip",
    "html",
    "etag-get",
    "short",
    "ignore-range",
)


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to fail, for every object whose key matches a pattern.

    Attributes
    ----------
    kind
        `error-500`, `error-503`, `slow-down` (503 with S3's own words), `forbidden` (403), `html` (an error page with
        status 200), `hangup` (no answer at all), `delay` (answers `seconds` late), `reset` (TCP RST within the body),
        `stall` (stops within the body for `seconds`, then goes on), `drip` (sends `rate` bytes/s), `truncate` (closes
        within the body), `flip` (one bit of the body is wrong), `short` (fewer bytes, and a Content-Length that says
        so), `vanish` (listed, but 404), `ignore-range` (200 with the whole object), `etag-get`, `etag-list`,
        `etag-both` (a wrong ETag there), `hide` (not listed), `extra` (a second name of it is listed and served).
        Those of NBIA are told in `pipeline.demo.nbia_faults`, those of ISIC in `pipeline.demo.isic_faults`.
    on
        `object` or `list`: requests for objects, or listings, whose prefix is then matched as the key.
    times
        Only the first so many requests of each key; 0 for always.
    probability
        Of each request to fail, drawn from `seed`, the key and how often it was asked: not from time or threads.
    at
        How far through the body it strikes, 0 to 1.
    seconds
        Of a stall or delay; for `slow-down` the Retry-After, 0 for none.
    rate
        Bytes a second of a drip.
    names
        Of `drop-keys` the keys, of `hide-rows` the values; none: a choice of its own. Of `swap` the image.
    """

    kind: FaultKind
    on: Literal["object", "list"] = "object"
    times: int = 0
    probability: float = 1.0
    seed: int = 0
    at: float = 0.5
    seconds: float = 0.0
    rate: float = 20_000.0
    names: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault and whom it meets: `*`, `?` and `[...]` in the pattern match as in file names, `/` like any other."""

    pattern: str
    fault: Fault


class Sprinkle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chaos: `fraction` of all keys fail, each in one way of `kinds` that the seed and its key choose.

    `times` as in `Fault`: by default once, so that who asks again gets the object.
    """

    fraction: float
    seed: int = 0
    kinds: tuple[FaultKind, ...] = PASSING_KINDS
    times: int = 1
    on: Literal["object", "list"] = "object"


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All faults of a site; what a faults file holds, as JSON. The first rule that strikes is the one."""

    rules: tuple[Rule, ...] = ()
    sprinkles: tuple[Sprinkle, ...] = ()


def read_fault_plan(path: Path) -> FaultPlan:
    """Read a faults file; one that is missing or empty is an empty plan. Raises ConfigError."""
    try:
        text = path.read_bytes()
        return msgspec.json.decode(text, type=FaultPlan) if text.strip() else FaultPlan()
    except FileNotFoundError:
        return FaultPlan()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path}: not a faults file: {error}", hint="see pipeline/demo/faults.py: FaultPlan"
        ) from None


class Faults:
    """The faults of a live site. May be changed at any time, from any thread.

    How often a key was met is kept for each rule, so one that stays in the plan keeps its count.
    """

    def __init__(self, plan: FaultPlan | None = None) -> None:
        self._plan = plan or FaultPlan()
        self._met: Counter[tuple[Rule | Sprinkle, str, str]] = Counter()
        self._struck: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def plan(self) -> FaultPlan:
        """The faults as they stand."""
        return self._plan

    @plan.setter
    def plan(self, plan: FaultPlan) -> None:
        self._plan = plan

    @property
    def struck(self) -> dict[str, int]:
        """How often each kind has struck."""
        with self._lock:
            return dict(self._struck)

    def set(self, pattern: str, fault: Fault) -> None:
        """Add a fault; of the same pattern, kind and requests it takes the place of the former, with a new count."""
        with self._lock:
            rule = Rule(pattern, fault)
            same = (pattern, fault.kind, fault.on)
            kept = [r for r in self._plan.rules if (r.pattern, r.fault.kind, r.fault.on) != same]
            self._met = Counter({met: n for met, n in self._met.items() if met[0] != rule})
            self._plan = FaultPlan((*kept, rule), self._plan.sprinkles)

    def sprinkle(
        self,
        fraction: float,
        seed: int = 0,
        *,
        kinds: Sequence[FaultKind] = PASSING_KINDS,
        times: int = 1,
        on: Literal["object", "list"] = "object",
    ) -> None:
        """Make a fraction of all keys fail; see `Sprinkle`."""
        added = Sprinkle(fraction=fraction, seed=seed, kinds=tuple(kinds), times=times, on=on)
        with self._lock:
            self._plan = FaultPlan(self._plan.rules, (*self._plan.sprinkles, added))

    def clear(self) -> None:
        """Remove all faults and forget all counts."""
        with self._lock:
            self._plan = FaultPlan()
            self._met.clear()

    def strike(
        self, key: str, request: Literal["object", "list", "view"], *, kinds: frozenset[FaultKind]
    ) -> Fault | None:
        """The fault that meets a request, if any; counts the request.

        `kinds` are those that it can suffer. A `view` is how a listing shows an object, counted apart from requests
        for the object.
        """
        on = "list" if request == "list" else "object"
        plan = self._plan
        for rule in plan.rules:
            fits = rule.fault.on == on and rule.fault.kind in kinds and _matches(rule.pattern, key)
            if fits and self._meets(rule, rule.fault, key, request):
                return rule.fault
        for sprinkle in plan.sprinkles:
            fault = choose_sprinkled(sprinkle, key) if sprinkle.on == on else None
            if fault is not None and fault.kind in kinds and self._meets(sprinkle, fault, key, request):
                return fault
        return None

    def extra_of(self, key: str) -> str:
        """The real key that an `extra` name stands for; empty when it is none."""
        if not key.endswith(EXTRA_TAIL):
            return ""
        real = key.removesuffix(EXTRA_TAIL) + ".dcm"
        rules = (rule for rule in self._plan.rules if rule.fault.kind == "extra" and _matches(rule.pattern, real))
        sprinkled = (choose_sprinkled(sprinkle, real) for sprinkle in self._plan.sprinkles)
        return real if any(rules) or any(fault and fault.kind == "extra" for fault in sprinkled) else ""

    def view(self, item: StoredObject, after: str) -> Iterable[StoredObject]:
        """What a listing shows in the place of an object."""
        fault = self.strike(item.key, "view", kinds=LISTING_KINDS)
        if fault is None:
            return (item,)
        if fault.kind == "hide":
            return ()
        if fault.kind == "extra":
            # This name sorts right before the real one, so a page may end between the two.
            extra = msgspec.structs.replace(item, key=item.key.removesuffix(".dcm") + EXTRA_TAIL)
            return (extra, item) if extra.key > after else (item,)
        return (msgspec.structs.replace(item, etag=render_wrong_etag(item.etag)),)

    def _meets(self, rule: Rule | Sprinkle, fault: Fault, key: str, request: str) -> bool:
        with self._lock:
            met = self._met[rule, key, request]
            self._met[rule, key, request] = met + 1
            strikes = (fault.times == 0 or met < fault.times) and (
                fault.probability >= 1 or draw(fault.seed, key, request, met) < fault.probability
            )
            if strikes:
                self._struck[fault.kind] += 1
            return strikes


EXTRA_TAIL = "-extra.dcm"


def choose_sprinkled(sprinkle: Sprinkle, key: str) -> Fault | None:
    """Choose how a key fails under a sprinkle, if it does. Pure."""
    if not sprinkle.kinds or draw(sprinkle.seed, key, "whether") >= sprinkle.fraction:
        return None
    kind = sprinkle.kinds[int(draw(sprinkle.seed, key, "how") * len(sprinkle.kinds))]
    return Fault(kind=kind, times=sprinkle.times, on=sprinkle.on, at=draw(sprinkle.seed, key, "where"))


def draw(*words: object) -> float:
    """A number from 0 up to 1 that depends only on the words."""
    digest = hashlib.blake2b("\x1f".join(map(str, words)).encode("utf-8", "replace"), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)


def render_wrong_etag(etag: str) -> str:
    """Another ETag of the same form."""
    return ("1" if etag.startswith("0") else "0") + etag[1:]


def _matches(pattern: str, key: str) -> bool:
    return pattern in {key, "*"} or _compile(pattern).match(key) is not None


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
