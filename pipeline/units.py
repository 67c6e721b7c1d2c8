"""Sizes and durations as people write them, and as we print them. Pure."""

from __future__ import annotations

import math
import re

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|m|h|d)", re.IGNORECASE)
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


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
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a size; write bytes or text such as '20 GB' or '4 MiB'")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is negative")
        return ByteSize(value)
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a size; write bytes or text such as '20 GB' or '4 MiB'")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return ByteSize(round(float(number) * base ** _SIZE_POWER[prefix.lower()]))


def parse_duration(value: object) -> Duration:
    """Read a duration.

    Raises
    ------
    ValueError
        When it is not a duration.
    """
    problem = f"{value!r} is not a duration; write seconds or text such as '90 s', '30 min', '1 h 30 min', '08:00:00'"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(problem)
    if isinstance(value, int | float):
        if value < 0 or not math.isfinite(value):
            raise ValueError(problem)
        return Duration(value)
    text = value.strip()
    if re.fullmatch(r"(?:\d+-)?\d+:\d\d(?::\d\d)?", text):  # Slurm's own spelling: [days-]hours:minutes:seconds
        days, _, clock = text.rpartition("-")
        fields = [int(field) for field in clock.split(":")]
        if len(fields) == 2 and not days:
            fields = [0, *fields]  # minutes:seconds, as Slurm reads it
        elif len(fields) == 2:
            fields = [*fields, 0]
        hours, minutes, seconds = fields
        return Duration(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
    if not text or _DURATION.sub("", text).strip():
        raise ValueError(problem)
    return Duration(sum(float(n) * _DURATION_SECONDS[unit.lower()] for n, unit in _DURATION.findall(text)))


def render_size(count: float) -> str:
    """Bytes for people, in powers of 1000: `1.23 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 999.5 or unit == "PB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
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
