"""What the doctor found, as records: findings, suggested config lines, and the verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from pipeline.errors import ConfigError, CredentialsError, MedhaulError, SiteUnavailableError, StorageError

Level = Literal["ok", "warn", "fail"]
Verdict = Literal["OK", "usable with warnings", "not usable"]
# Worst first: the exit code is the first of these that a finding has.
WORST: tuple[type[MedhaulError], ...] = (ConfigError, CredentialsError, StorageError, SiteUnavailableError)
CONFIG, CREDENTIALS, STORAGE, SITE = (kind.exit_code for kind in WORST)
LONGEST = 600


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes
    ----------
    group
        What it belongs to: `config`, `slurm`, `scratch`, `storage`, `proxy`, `network`, `credentials`, `machine`,
        `node` (the job of `--on-node`).
    level
        `ok`, `warn` (works, but look at it) or `fail` (a run would not work).
    what, detail
        The thing, and what was found; what could not be found out is called unknown.
    hint
        What to do about it; may be empty.
    code
        Exit code that a `fail` asks for: 69 Slurm or a site, 73 storage, 77 credentials file, 78 config; else 0.
    """

    group: str
    level: Level
    what: str
    detail: str
    hint: str = ""
    code: int = 0


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """A line for the config or a profile: `value` is a TOML value, for `key` of `[table]`; `why` says what for."""

    table: str
    key: str
    value: str
    why: str


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """`medhaul doctor --json`.

    Attributes
    ----------
    host, medhaul
        The machine that was looked at, and the version that looked.
    verdict
        `OK`, `usable with warnings` or `not usable`: the worst level of all findings, those of `node` included.
    code
        Exit code of the command: 0 unless something fails; then 78, 77, 73 or 69, the first of these that occurs.
    findings
        Everything that was looked at on this machine, in order.
    suggestions
        Config lines that would help.
    node
        With `--on-node`: the same report made by a job on a compute node; null when there is none.
    """

    host: str
    medhaul: str
    verdict: Verdict
    code: int
    findings: list[Finding]
    suggestions: list[Suggestion]
    node: DoctorReport | None = None


def printable(text: str, longest: int = LONGEST) -> str:
    """One line that is safe to print, of at most `longest` letters, whatever a command or a site said."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def good(group: str, what: str, detail: str, hint: str = "") -> Finding:
    """A finding that is well."""
    return _finding(group, "ok", what, detail, hint, 0)


def warning(group: str, what: str, detail: str, hint: str = "") -> Finding:
    """A finding that a run can live with."""
    return _finding(group, "warn", what, detail, hint, 0)


def failure(group: str, what: str, detail: str, hint: str, code: int) -> Finding:
    """A finding that a run would fail over; `code` is the exit code it asks for."""
    return _finding(group, "fail", what, detail, hint, code)


def _finding(group: str, level: Level, what: str, detail: str, hint: str, code: int) -> Finding:
    return Finding(
        group=group, level=level, what=printable(what, 60), detail=printable(detail), hint=printable(hint), code=code
    )


def choose_code(findings: Iterable[Finding]) -> int:
    """Choose the exit code: the worst that a failure asks for, 0 when nothing fails."""
    codes = {finding.code for finding in findings if finding.level == "fail"}
    return next((kind.exit_code for kind in WORST if kind.exit_code in codes), MedhaulError.exit_code if codes else 0)


def choose_verdict(findings: Iterable[Finding]) -> Verdict:
    """Choose the verdict by the worst level."""
    levels = {finding.level for finding in findings}
    if "fail" in levels:
        return "not usable"
    return "usable with warnings" if "warn" in levels else "OK"


def make_report(
    host: str,
    version: str,
    findings: Sequence[Finding],
    suggestions: Sequence[Suggestion],
    node: DoctorReport | None = None,
) -> DoctorReport:
    """Put a report together; verdict, code and suggestions count those of the node, too."""
    whole = [*findings, *(node.findings if node else [])]
    return DoctorReport(
        host=printable(host, 100),
        medhaul=printable(version, 40),
        verdict=choose_verdict(whole),
        code=choose_code(whole),
        findings=list(findings),
        suggestions=merge_suggestions(suggestions, node.suggestions if node else []),
        node=node,
    )


def merge_suggestions(here: Sequence[Suggestion], node: Sequence[Suggestion]) -> list[Suggestion]:
    """Join suggestions, one for each key; the node's count more, since that is where tasks run."""
    merged = {(made.table, made.key): made for made in (*here, *node)}
    return [merged[at] for at in sorted(merged)]


def choose_error(report: DoctorReport) -> MedhaulError | None:
    """Choose the error that ends the command; None when a run would work."""
    if not report.code:
        return None
    failed = [one for one in (*report.findings, *(report.node.findings if report.node else [])) if one.level == "fail"]
    first = next((one for one in failed if one.code == report.code), failed[0])
    kind = next((kind for kind in WORST if kind.exit_code == report.code), MedhaulError)
    more = f" (and {len(failed) - 1} more that fail)" if len(failed) > 1 else ""
    return kind(f"doctor: {first.what}: {first.detail}{more}", hint=first.hint)
