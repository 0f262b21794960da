"""The report as Markdown, as it is logged to MLflow and kept in the run's folder."""

from __future__ import annotations

from quantize.report.grid import Column, Grid, as_markdown
from quantize.report.sections import Path, Section
from quantize.report.summary import Summary

__all__ = ["markdown"]

_MARKS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "error": "ERROR"}


def markdown(summary: Summary) -> str:
    """A summary as GitHub-flavoured Markdown."""
    lines = [f"# {summary.title}", "", *as_markdown(summary.table)]
    if summary.headlines:
        lines += ["", *(f"- **{headline}**" for headline in summary.headlines)]
    for section in summary.sections:
        lines += ["", f"## {section.name}", "", *_section(section)]
    for note in summary.notes:
        lines += ["", note]
    return "\n".join([*lines, ""])


def _section(section: Section) -> list[str]:
    lines = []
    for finding in section.findings:
        advisory = ", advisory" if finding.advisory else ""
        lines.append(f"- **{_MARKS[finding.outcome]}**{advisory}: {finding.sentence}")
        if finding.detail:
            lines += ["", "  ```", *(f"  {line}" for line in finding.detail.splitlines()), "  ```", ""]
    if section.decision:
        lines += ["", section.decision]
    if section.sentences:
        lines += ["", *(f"- {sentence}" for sentence in section.sentences)]
    if section.review:
        lines += ["", "### Review", "", *(f"- {line}" for line in section.review)]
    if section.table is not None:
        lines += ["", *as_markdown(section.table)]
    for path in section.paths:
        lines += ["", f"Limits of the difference in {path.metric} (points) while the sample grew:", ""]
        lines += as_markdown(_across(path))
    if section.load is not None:
        lines += ["", "### Under load", "", *as_markdown(section.load)]
    if section.load_sentences:
        lines += ["", *(f"- {sentence}" for sentence in section.load_sentences)]
    return lines


def _across(path: Path) -> Grid:
    """A confidence sequence from left to right: items, and the two limits below."""
    items, lower, upper = zip(*path.looks, strict=True)
    columns = (Column("items", "", text=True), *(Column(count, count) for count in items))
    return Grid(columns, (("lower", *lower), ("upper", *upper)))
