"""The report on a terminal: a table, then a sentence for each finding."""

from __future__ import annotations

import shutil
from typing import TextIO

from quantize.report.summary import Summary

__all__ = ["print_summary"]

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "error": "red"}
_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!"}
_WIDTH_WITHOUT_TERMINAL = 140


def print_summary(summary: Summary, file: TextIO) -> None:
    """Draw a summary on `file`, with colours where it is a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if file.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(file=file, width=width, highlight=False)
    table = Table(title=summary.title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    wide = width >= _WIDTH_WITHOUT_TERMINAL
    for column in summary.columns:
        text = column in ("variant", "verdict", "decision")
        table.add_column(column.replace(".", ".\n", 1), justify="left" if text else "right", no_wrap=wide)
    for row in summary.rows:
        colour = _COLOURS.get(row.outcome, "")
        *cells, verdict, decision = row.cells
        table.add_row(*cells, Text(verdict, style=colour), Text(decision, style=colour))
    console.print(table)
    for row in summary.rows:
        if not row.findings:
            continue
        console.print(Text(row.name, style="bold"))
        for finding in row.findings:
            mark = Text(f"  {_MARKS[finding.outcome]} ", style=_COLOURS[finding.outcome])
            advisory = " (advisory)" if finding.advisory else ""
            console.print(mark + Text(f"{finding.sentence}{advisory}"), soft_wrap=True)
        if row.decision:
            console.print(Text(f"  → {row.decision}"), soft_wrap=True)
    for note in summary.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
