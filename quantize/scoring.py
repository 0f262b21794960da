"""What makes an answer right: what a scorer is given, what it gives back, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Given", "Scored", "Scorer", "Scoring"]


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that is to be scored: what was asked (`prompt`), what would be right (`target`), what was said."""

    item: str
    prompt: str
    target: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A score in [0, 1] and the answer that was `found` in the text; None where the text holds none.

    `problem` says why an answer could not be scored; its score is 0 then. `by` names who had a say in the score beside
    the recipe, so that both arms must have had the same; None: nobody.
    """

    score: float
    found: str | None
    problem: str | None = None
    by: str | None = None


class Scorer(Protocol):
    """What makes an answer right."""

    @property
    def kind(self) -> str: ...

    @property
    def generates(self) -> bool:
        """True where it scores generated texts; False where it chooses among an item's choices."""
        ...

    @property
    def reads_lines(self) -> bool:
        """True where it compares the whole text with the item's answer, so that where a text ends matters."""
        ...

    @property
    def errors_at_most(self) -> float:
        """The share of items that may fail to be scored; beyond it the scores are worthless."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config and the digests of the files it reads. Raises DataError for bad ones."""
        ...

    def problem(self, target: str) -> str | None:
        """Why nothing can be scored against an item's answer, and None where it can."""
        ...

    def lacking(self) -> str | None:
        """What this machine lacks to score with it, as far as can be told at once; None where nothing."""
        ...

    def open(self, kept: Path | None) -> "Scoring":
        """Get ready to score. `kept` is a folder in which what was paid for may be kept between stages."""
        ...


class Scoring(Protocol):
    """Scores answers. Close it when done."""

    def score(self, answers: Sequence[Given]) -> list[Scored]:
        """A score for each answer, in their order. What cannot be scored has a `problem`.

        Raises QuantizeError where none can be.
        """
        ...

    def close(self) -> None: ...
