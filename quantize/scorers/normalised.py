"""The answer's words: without case, punctuation, articles and layout."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import ClassVar, Literal

from quantize.scorers._each import UNREADABLE, Each, TextScorer, right_or_wrong
from quantize.scoring import Given, Scored

__all__ = ["Normalised", "normalised"]

_ARTICLES = frozenset({"a", "an", "the"})


class Normalised(TextScorer):
    """Right when the words are the same: Unicode NFKC, no case, no punctuation, no English article, single blanks.

    An article is a word where nothing else is left: the answer "A" stays "a". What has no word left is no answer.
    """

    kind: Literal["normalised"] = "normalised"
    reads_lines: ClassVar[bool] = True
    errors_at_most: ClassVar[float] = 0.0

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        return None if normalised(target) else "'answer' has no word that is left when punctuation is taken out"

    def open(self, kept: Path | None) -> Each:
        """See `scoring.Scorer`."""
        return Each(_score)


def normalised(text: str) -> str:
    """What is compared. Hyphens and slashes part words, apostrophes and other marks vanish within one."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(" " if _parts(one) else "" if unicodedata.category(one)[0] == "P" else one for one in plain)
    words = kept.split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _parts(character: str) -> bool:
    return unicodedata.category(character) == "Pd" or character == "/"


def _score(given: Given) -> Scored:
    found = normalised(given.answer)
    return right_or_wrong(found, right=found == normalised(given.target)) if found else UNREADABLE
