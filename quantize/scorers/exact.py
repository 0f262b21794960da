"""The answer's text, as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from quantize.scorers._each import UNREADABLE, Each, TextScorer, right_or_wrong
from quantize.scoring import Given, Scored

__all__ = ["Exact"]


class Exact(TextScorer):
    """Right when the answer, without the blanks around it, is the item's answer. An empty one is none."""

    kind: Literal["exact"] = "exact"
    reads_lines: ClassVar[bool] = True
    errors_at_most: ClassVar[float] = 0.0

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        return None if target.strip() else "'answer' is the text that must be generated"

    def open(self, kept: Path | None) -> Each:
        """See `scoring.Scorer`."""
        return Each(_score)


def _score(given: Given) -> Scored:
    found = given.answer.strip()
    return right_or_wrong(found, right=found == given.target.strip()) if found else UNREADABLE
