"""The report as Markdown, as it is logged to MLflow and kept in the run's folder."""

from __future__ import annotations

from quantize.report.summary import Summary

__all__ = ["markdown"]

_MARKS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "error": "ERROR"}


def markdown(summary: Summary) -> str:
    """A summary as GitHub-flavoured Markdown."""
    lines = [f"# {summary.title}", "", _line(summary.columns), _line(tuple("---" for _ in summary.columns))]
    lines += [_line(row.cells) for row in summary.rows]
    for row in summary.rows:
        if not row.findings:
            continue
        lines += ["", f"## {row.name}", ""]
        for finding in row.findings:
            advisory = ", advisory" if finding.advisory else ""
            lines.append(f"- **{_MARKS[finding.outcome]}**{advisory}: {finding.sentence}")
        if row.decision:
            lines += ["", row.decision]
    return "\n".join([*lines, "", *summary.notes, ""])


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("\n", "<br>").replace("|", "\\|") for cell in cells) + " |"
