"""Scorers that need nothing but the text: what they have in common, and one answer after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from quantize.record import Record
from quantize.scoring import Given, Scored

__all__ = ["UNREADABLE", "Each", "TextScorer", "right_or_wrong"]

#: An answer in which the scorer finds none: wrong, and counted as unreadable.
UNREADABLE = Scored(score=0.0, found=None)


class TextScorer(Record):
    """See `scoring.Scorer`: everything that decides stands in the recipe."""

    generates: ClassVar[bool] = True
    reads_lines: ClassVar[bool] = False

    def identity(self) -> dict[str, Any]:
        """See `scoring.Scorer`."""
        return self.model_dump(mode="json", by_alias=True)

    def lacking(self) -> str | None:
        """See `scoring.Scorer`."""
        return None


class Each:
    """See `scoring.Scoring`."""

    def __init__(self, score: Callable[[Given], Scored]) -> None:
        self._score = score

    def score(self, answers: Sequence[Given]) -> list[Scored]:
        """See `scoring.Scoring`."""
        return [self._score(answer) for answer in answers]

    def close(self) -> None:
        """Nothing is open."""


def right_or_wrong(found: str, *, right: bool) -> Scored:
    """1 or 0 for an answer that was found."""
    return Scored(score=float(right), found=found)
