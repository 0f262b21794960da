"""What `quantize compare` shows: the quantities of two arms, then the flipped answers in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from quantize.comparing import Contrast, Flip
from quantize.report.grid import print_grid
from quantize.report.sections import compared_grid
from quantize.report.terminal import console_on, say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["contrasts_document", "print_contrasts"]

_LEGEND = (
    "difference: from the first to the second, in points (×: ratio), with its two-sided 90 % interval; flips: answers "
    "lost and gained; p: one-sided McNemar, losses outnumber gains. Many slices are looked at without correction."
)


def contrasts_document(contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """The contrasts as plain data, with all flips."""
    return [
        {
            "first": contrast.first,
            "second": contrast.second,
            "eval": contrast.eval,
            "note": contrast.note,
            "comparisons": [comparison.model_dump(mode="json") for comparison in contrast.comparisons],
            "flips": [asdict(flip) for flip in contrast.flips],
        }
        for contrast in contrasts
    ]


def print_contrasts(contrasts: Sequence[Contrast], flips: int, file: TextIO) -> None:
    """Draw contrasts on `file`, each with at most `flips` flipped answers."""
    console = console_on(file)
    for contrast in contrasts:
        say(console, "", f"{contrast.eval}: {contrast.first} → {contrast.second}", style="bold")
        if contrast.note:
            say(console, "", contrast.note)
        console.print()
        print_grid(console, compared_grid(contrast.comparisons, contrast.labels), indent=2)
        for flip in contrast.flips[:flips]:
            _print_flip(console, flip, contrast.labels)
        left = len(contrast.flips) - flips
        if left > 0:
            say(console, "  ", f"{left} more flipped: --flips {len(contrast.flips)} shows them, --json has them all.")
            console.print()
    say(console, "", _LEGEND, style="dim")


def _print_flip(console: Console, flip: Flip, labels: tuple[str, str]) -> None:
    """One item: what was asked, what is right, and both answers; nothing of it is cut."""
    lost = flip.difference < 0
    word = "lost" if lost else "gained"
    half = f" by {abs(flip.difference):.2g}" if abs(flip.difference) < 1 else ""
    place = f", {flip.slice}" if flip.slice is not None else ""
    say(
        console,
        f"  {'−' if lost else '+'} ",
        f"{flip.item_id}{place}: {word}{half}",
        mark_style="red" if lost else "green",
    )
    room = max(len(head) for head in ("asked", *labels)) + 2
    for head, text in (
        ("asked", flip.prompt),
        ("right", flip.target),
        (labels[0], flip.before),
        (labels[1], flip.after),
    ):
        # Only blank lines at the ends go: what is asked may be laid out in lines.
        for number, line in enumerate(text.strip("\n").split("\n")):
            say(console, f"      {head if number == 0 else '':<{room}}", line)
    console.print()
