"""The report as text: a line for each finding, aligned, no wider than asked. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.doctor.records import DoctorReport, Finding, Suggestion, printable

WIDTH = 100
WIDEST_WHAT = 22


def render_report(report: DoctorReport, width: int = WIDTH) -> list[str]:
    """The whole report: this machine, the node, suggested config lines, the verdict."""
    lines = [f"medhaul {report.medhaul} on {report.host}"]
    lines += render_findings(report.findings, width)
    if report.node is not None:
        lines += ["", f"on the node {report.node.host}, medhaul {report.node.medhaul}"]
        lines += render_findings(report.node.findings, width)
    if report.suggestions:
        lines += ["", "lines for the config:", "", *render_suggestions(report.suggestions)]
    whole = [*report.findings, *(report.node.findings if report.node else [])]
    counts = {level: sum(finding.level == level for finding in whole) for level in ("ok", "warn", "fail")}
    said = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    return [*lines, "", f"verdict: {report.verdict} ({said})"]


def render_findings(findings: Sequence[Finding], width: int = WIDTH) -> list[str]:
    """`ok|warn|fail  what: detail  -> what to do`, below the name of each group."""
    column = min(WIDEST_WHAT, max((len(finding.what) for finding in findings), default=0)) + 1
    indent = " " * (column + 9)
    lines: list[str] = []
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", printable(group)]
        what = f"{printable(finding.what, 60)}:"
        text = printable(finding.detail)
        if finding.hint:
            text += f"  -> {printable(finding.hint)}"
        lines += textwrap.wrap(
            f"  {finding.level:4}  {what:{column}} {text}",
            width=max(width, len(indent) + 20),
            subsequent_indent=indent,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    return lines


def render_suggestions(suggestions: Sequence[Suggestion]) -> list[str]:
    """Suggested lines as TOML: tables with their keys, each below a comment that says why."""
    lines: list[str] = []
    for table in sorted({made.table for made in suggestions}):
        lines.append(f"[{table}]")
        for made in sorted((made for made in suggestions if made.table == table), key=lambda made: made.key):
            lines.append(f"# {printable(made.why)}")
            lines.append(f"{made.key} = {made.value}")
    return lines
