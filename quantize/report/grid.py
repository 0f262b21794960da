"""A table as plain text by cell, and how it is laid out where it is wider than the paper: side by side becomes below.

Nothing is ever cut. Columns come in groups that stay together as long as a group fits; the first column names the row
and is repeated in every part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Column", "Grid", "as_markdown", "parts", "print_grid"]

#: Blanks between two columns.
_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head and the group it belongs to. `text` columns are set to the left, numbers to the right."""

    head: str
    group: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """`rows` hold one cell a column; a cell may have several lines."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def only(self, numbers: list[int]) -> Grid:
        """The grid of some of its columns, by number."""
        chosen = tuple(tuple(row[number] for number in numbers) for row in self.rows)
        return Grid(tuple(self.columns[number] for number in numbers), chosen)

    def filled(self) -> Grid:
        """Without the columns in which no row has anything to say."""
        return self.only([i for i in range(len(self.columns)) if i == 0 or any(row[i] for row in self.rows)])

    def width(self) -> int:
        """Columns of text that it takes."""
        return sum(self._widths()) + _GAP * (len(self.columns) - 1)

    def _widths(self) -> list[int]:
        from rich.cells import cell_len

        cells = [[column.head, *(row[i] for row in self.rows)] for i, column in enumerate(self.columns)]
        return [max(cell_len(line) for cell in found for line in cell.split("\n")) for found in cells]


def parts(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid, or as many grids one below the other as it takes to stay within `width`."""
    numbers = range(1, len(grid.columns))
    groups = [list(found) for _, found in groupby(numbers, key=lambda number: grid.columns[number].group)]
    pieces = [
        piece
        for group in groups
        for piece in ([group] if grid.only([0, *group]).width() <= width else [[number] for number in group])
    ]
    held: list[int] = []
    for piece in pieces:
        if held and grid.only([0, *held, *piece]).width() > width:
            yield grid.only([0, *held])
            held = []
        held += piece
    yield grid.only([0, *held])


def print_grid(console: Console, grid: Grid, indent: int = 0, styles: Mapping[str, str] | None = None) -> None:
    """Draw a grid. `styles` by the text of a row's first cell colour its text columns."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for part in parts(grid, console.width - indent):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for column in part.columns:
            justify = "left" if column.text else "right"
            table.add_column(Text(column.head), justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in part.rows:
            style = (styles or {}).get(row[0], "")
            cells = zip(part.columns[1:], row[1:], strict=True)
            table.add_row(row[0], *(Text(cell, style=style if column.text else "") for column, cell in cells))
        console.print(Padding(table, (0, 0, 0, indent), expand=False))
        console.print()


def as_markdown(grid: Grid) -> list[str]:
    """The lines of a Markdown table."""
    rules = tuple("---" if column.text else "---:" for column in grid.columns)
    return [_line(tuple(column.head for column in grid.columns)), _line(rules), *(_line(row) for row in grid.rows)]


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"
