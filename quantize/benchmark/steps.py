"""How far a benchmark is: a step is one load sent to one arm, or one point of a curve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantize.handed import Progress

__all__ = ["Steps"]


class Steps:
    """Counts steps for a progress bar. `total` grows when a block has to be run again."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self.total = total
        self.count = 0

    def at(self, what: str) -> None:
        """Say what is going on."""
        self._progress(what, self.count, self.total)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """One step, from its begin to its end."""
        self.at(what)
        yield
        self.pass_over(1, what)

    def pass_over(self, steps: int, what: str) -> None:
        """Steps that are done already, or left out."""
        self.count += steps
        self.at(what)

    def more(self, steps: int) -> None:
        """Steps that have to be done beside those that were counted on."""
        self.total += steps
