"""Sizes and durations as people write them, and as we print them. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

# ASCII: otherwise the Kelvin sign is a K, and the long s an s.
_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*(?:([kmgtp])(i?))?b?\s*", re.IGNORECASE | re.ASCII)
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*(ms|s|min|m|h|d)", re.IGNORECASE | re.ASCII)
_CLOCK = re.compile(r"(?:[0-9]{1,19}-)?[0-9]{1,19}:[0-9]{2}(?::[0-9]{2})?")
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MAX_SIZE = 2**63 - 1  # what file systems and our records can hold
MAX_DURATION = 1e10  # three hundred years


class ByteSize(int):
    """A number of bytes; in a config an integer or text such as `"20 GB"` (powers of 1000) or `"4 MiB"` (of 1024)."""


class Duration(float):
    """A number of seconds; in a config a number or text such as `"90 s"`, `"30 min"`, `"1 h 30 min"`, `"08:00:00"`."""


def parse_size(value: object) -> ByteSize:
    """Read a size.

    Raises
    ------
    ValueError
        When it is not a size.
    """
    problem = f"{value!r:.80} is not a size; write bytes or text such as '20 GB' or '4 MiB'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(problem)
    if isinstance(value, int):
        count = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(problem)
        number, prefix, binary = match.groups(default="")
        count = round(Fraction(number) * (1024 if binary else 1000) ** _SIZE_POWER[prefix.lower()])
    if count < 0:
        raise ValueError(f"{value!r:.80} is negative")
    if count > MAX_SIZE:
        raise ValueError(f"{value!r:.80} is more than 8 EiB")
    return ByteSize(count)


def parse_duration(value: object) -> Duration:
    """Read a duration.

    Raises
    ------
    ValueError
        When it is not a duration.
    """
    said = f"{value!r:.80}"
    problem = f"{said} is not a duration; write seconds or text such as '90 s', '30 min', '1 h 30 min', '08:00:00'"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(problem)
    seconds = _seconds(value.strip()) if isinstance(value, str) else value
    if seconds is None or not 0 <= seconds <= MAX_DURATION:
        raise ValueError(problem)
    return Duration(seconds)


def _seconds(text: str) -> float | None:
    """Seconds that a text means; None when it means none."""
    if _CLOCK.fullmatch(text):  # Slurm's own spelling: [days-]hours:minutes:seconds
        days, _, clock = text.rpartition("-")
        fields = [int(field) for field in clock.split(":")]
        if len(fields) == 2 and not days:
            fields = [0, *fields]  # minutes:seconds, as Slurm reads it
        elif len(fields) == 2:
            fields = [*fields, 0]
        hours, minutes, seconds = fields
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if not text or _DURATION.sub("", text).strip():
        return None
    return sum(float(n) * _DURATION_SECONDS[unit.lower()] for n, unit in _DURATION.findall(text))


def render_size(count: float) -> str:
    """Bytes for people, in powers of 1000: `1.23 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 999.5 or unit == "PB":
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 999.5 else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def render_duration(seconds: float) -> str:
    """Seconds for people: `3 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
