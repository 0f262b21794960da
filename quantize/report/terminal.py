"""The report on a terminal: the table of all arms, then a section for each variant. Lines are wrapped, never cut."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, TextIO

from quantize.report.grid import print_grid
from quantize.report.sections import Path, Section
from quantize.report.summary import Summary

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console_on", "print_summary", "say"]

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "error": "red"}
_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!"}
_WIDTH_WITHOUT_TERMINAL = 120
#: A blank at which no line is broken; written as a plain one.
_TIED = "\N{NO-BREAK SPACE}"


def console_on(file: TextIO) -> Console:
    """Where to draw: as wide as the terminal, or 120 columns where there is none."""
    from rich.console import Console

    width = shutil.get_terminal_size().columns if file.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=file, width=width, highlight=False)


def print_summary(summary: Summary, file: TextIO) -> None:
    """Draw a summary on `file`, with colours where it is a terminal."""
    console = console_on(file)
    say(console, "", summary.title)
    console.print()
    print_grid(console, summary.table, styles={name: _COLOURS[found] for name, found in summary.outcomes.items()})
    for headline in summary.headlines:
        say(console, "", headline, style="bold")
    if summary.headlines:
        console.print()
    for section in summary.sections:
        _print_section(console, section)
    for note in summary.notes:
        say(console, "", note, style="dim")


def say(console: Console, mark: str, text: str, *, style: str = "", mark_style: str = "") -> None:
    """Write `mark` and, beside it, `text`, wrapped between words so that it stays beside it."""
    from rich.cells import cell_len
    from rich.text import Text

    room = max(20, console.width - cell_len(mark))
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        before = Text(mark, style=mark_style) if number == 0 else Text(" " * cell_len(mark))
        console.print(before + Text(line.replace(_TIED, " "), style=style), soft_wrap=True)


def _print_section(console: Console, section: Section) -> None:
    say(console, "", section.name, style="bold")
    for finding in section.findings:
        mark = f"  {_MARKS[finding.outcome]} "
        advisory = " (advisory)" if finding.advisory else ""
        say(console, mark, f"{finding.sentence}{advisory}", mark_style=_COLOURS[finding.outcome])
        for line in finding.detail.splitlines():
            say(console, "    | ", line, style="dim", mark_style="dim")
    if section.decision:
        say(console, "  → ", section.decision)
    for sentence in section.sentences:
        say(console, "  · ", sentence)
    for path in section.paths:
        say(console, "  · ", _in_a_line(path))
    console.print()
    if section.table is not None:
        print_grid(console, section.table, indent=4)
    if section.load is not None:
        print_grid(console, section.load, indent=4)
    for sentence in section.load_sentences:
        say(console, "  · ", sentence)
    if section.load_sentences:
        console.print()


def _in_a_line(path: Path) -> str:
    """A confidence sequence: the items answered, and where the difference lay then."""
    looks = "  ".join(f"{items}:{_TIED}{lower}..{upper}" for items, lower, upper in path.looks)
    return f"{path.metric}, limits in points while the sample grew: {looks}"
