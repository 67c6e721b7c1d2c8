"""Sizes and durations: what people write is read exactly, and nonsense is refused with a ValueError."""

from __future__ import annotations

import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.units import ByteSize, Duration, parse_duration, parse_size, render_duration, render_size

LARGEST = 2**63 - 1
POWERS = {
    "": 1, "B": 1, "b": 1, "k": 10**3, "kB": 10**3, "KB": 10**3, "MB": 10**6, "m": 10**6, "GB": 10**9, "T": 10**12,
    "PB": 10**15, "KiB": 2**10, "kib": 2**10, "Mi": 2**20, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50,
}  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1, "S": 1, "min": 60, "Min": 60, "m": 60, "h": 3600, "H": 3600, "d": 86400}


@given(st.integers(0, 8000), st.sampled_from(sorted(POWERS)), st.sampled_from(["", " ", "  "]))
def test_a_whole_number_with_any_unit_is_exact(number: int, unit: str, space: str) -> None:
    """Every unit multiplies by its power, exactly, whatever the case and the space."""
    assert parse_size(f" {number}{space}{unit} ") == number * POWERS[unit]


@given(st.integers(0, LARGEST))
def test_bytes_are_exact_up_to_the_largest(count: int) -> None:
    """A count of bytes is the same as integer and as text, beyond what a float holds too."""
    assert parse_size(count) == parse_size(str(count)) == parse_size(f"{count} B") == count
    assert type(parse_size(count)) is ByteSize


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "B", "GB", "-1", "-5 GB", "+5 GB", "1e9", "1,5 GB", "1.GB", ".5 GB", "5 GBB", "5 iB", "5 i", "5 XB",
        "5 GB 3 MB", "five", "0x10", "nan", "inf", "5 \u212a", "\u0665 GB", "5\nGB;", "9" * 400, "9" * 5000,
        "1" + "0" * 19,
        "9223372036854775808", "10000 PB", -1, -(2**70), 2**63, 10**400, 1.5, float("nan"), True, False, None, [], b"5",
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_no_size_is_refused(text: object) -> None:
    """Nonsense, negative sizes and more than 8 EiB are ValueErrors, never another error and never a number."""
    with pytest.raises(ValueError, match=r"."):
        parse_size(text)


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans())
def test_any_value_is_a_size_in_range_or_a_value_error(value: object) -> None:
    """Whatever a config holds, the result is between 0 and 2^63 - 1 or the value is refused by ValueError."""
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(value) <= LARGEST


@given(st.integers(0, 10**18))
def test_a_rendered_size_reads_back_to_three_digits(count: int) -> None:
    """What we print can be typed into a config and is at most half a percent off."""
    assert math.isclose(parse_size(render_size(count)), count, rel_tol=0.005)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"),
        (999_500, "1 MB"), (1.5e9, "1.5 GB"), (10**18, "1000 PB"), (5 * 10**18, "5000 PB"),
    ],
)  # fmt: skip
def test_sizes_are_printed_for_people(count: float, text: str) -> None:
    """Three digits and the unit that fits, never an exponent."""
    assert render_size(count) == text


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from(sorted(SECONDS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    """`1 h 30 min` is 5400 seconds, with and without spaces."""
    wanted = sum(number * SECONDS[unit] for number, unit in parts)
    for form in ("{} {}", "{}{}"):
        text = " ".join(form.format(number, unit) for number, unit in parts)
        assert math.isclose(parse_duration(text), wanted, abs_tol=1e-9)
    assert type(parse_duration("1 s")) is Duration


@given(st.integers(0, 40), st.integers(0, 200), st.integers(0, 59), st.integers(0, 59))
def test_slurm_spellings_mean_what_slurm_means(days: int, hours: int, minutes: int, seconds: int) -> None:
    """`MM:SS`, `HH:MM:SS`, `D-HH:MM` and `D-HH:MM:SS` as sbatch's --time reads them."""
    assert parse_duration(f"{minutes}:{seconds:02}") == minutes * 60 + seconds
    assert parse_duration(f"{hours:02}:{minutes:02}:{seconds:02}") == hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{days}-{hours:02}:{minutes:02}") == days * 86400 + hours * 3600 + minutes * 60
    assert parse_duration(f"{days}-{hours}:{minutes:02}:{seconds:02}") == parse_duration(
        f"{days} d {hours} h {minutes} min {seconds} s"
    )


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "5", "-5 s", "5 x", "5 month", "1 h -30 min", "1 h, 5 s", "1e3 s", "1:2:3:4", "1:2", ":05", "1-",
        "1-2",
        "--1-02:03", "1:-2", "inf s", "nan", "5 \u017f", "\u0665:00", "\u0661 s", "9" * 400 + " s", "9" * 400 + ":00",
        "9" * 5000 + ":00", -1, -0.5, float("inf"), float("nan"), 10**400, True, None, [], b"5 s",
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_no_duration_is_refused(value: object) -> None:
    """Nonsense, negative and endless durations are ValueErrors, never another error and never a number."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(value)


@given(st.text(alphabet="0123456789:-. smhdin\u017f\u0660") | st.text() | st.integers() | st.floats() | st.none())
def test_any_value_is_a_finite_duration_or_a_value_error(value: object) -> None:
    """Whatever a config holds, the result is finite and not negative or the value is refused by ValueError."""
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert math.isfinite(seconds)
    assert seconds >= 0


@given(st.floats(0, 10**8))
def test_a_rendered_duration_reads_back(seconds: float) -> None:
    """What we print is a duration that we read, off by less than its last unit."""
    text = render_duration(seconds)
    last = re.findall(r"[a-z]+", text)[-1]
    slack = 0.051 if seconds < 10 else SECONDS[last]
    assert abs(parse_duration(text) - seconds) <= slack


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.5, "9.5 s"), (59.4, "59 s"),
        (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (11520, "3 h 12 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_durations_are_printed_for_people(seconds: float, text: str) -> None:
    """Two units at most."""
    assert render_duration(seconds) == text
