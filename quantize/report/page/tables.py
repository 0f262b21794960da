"""Tables of a page: a grid of the report as HTML, with heads that name what a cell is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantize.report.grid import Column, Grid
from quantize.report.page.markup import Child, Markup, element, joined

__all__ = ["clipped", "fitting", "grid_of", "lines", "table"]


#: So many rows are shown of any table: a run may have thousands of slices.
_ROWS = 250


def table(grid: Grid, caption: str, *, quiet: bool = False) -> Markup:
    """A grid as a table in a box that scrolls sideways; `quiet` hides the caption from those who see the page."""
    left = len(grid.rows) - _ROWS
    heads = element("tr", [_cell("th", column, column.head, scope="col") for column in grid.columns])
    rows = [
        element(
            "tr",
            [
                _cell("th", column, cell, scope="row") if number == 0 else _cell("td", column, cell)
                for number, (column, cell) in enumerate(zip(grid.columns, row, strict=True))
            ],
        )
        for row in grid.rows[:_ROWS]
    ]
    told = element("caption", caption, class_="hidden" if quiet else None)
    drawn = element("table", told, element("thead", heads), element("tbody", rows))
    box = element("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return joined(box, element("p", f"{left:,} more rows are left out.", class_="note")) if left > 0 else box


def grid_of(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> Grid:
    """A grid of plain cells, of which the first `texts` columns are set to the left."""
    columns = tuple(Column(head, head, text=number < texts) for number, head in enumerate(heads))
    return Grid(columns, tuple(tuple(row) for row in rows))


def fitting(parts: Iterable[Markup], room: int) -> tuple[list[Markup], int]:
    """The first parts that take `room` bytes together, and how many are left."""
    kept: list[Markup] = []
    count = 0
    for count, part in enumerate(parts, start=1):
        room -= len(part.encode())
        if room >= 0 and len(kept) == count - 1:
            kept.append(part)
    return kept, count - len(kept)


def lines(text: str) -> Markup:
    """Text with its line breaks."""
    found: list[Child] = []
    for number, part in enumerate(text.split("\n")):
        found += [element("br") if number else None, part]
    return joined(found)


def clipped(text: str, room: int) -> str:
    """The text, or as much of it as `room` characters hold and how many more there are."""
    return text if len(text) <= room else f"{text[:room]} … ({len(text) - room:,} more characters)"


def _cell(tag: str, column: Column, text: str, **more: str) -> Markup:
    return element(tag, lines(text), class_=None if column.text else "number", **more)
