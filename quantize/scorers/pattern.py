"""A regular expression finds the answer in the text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from quantize.scorers._each import UNREADABLE, Each, TextScorer, right_or_wrong
from quantize.scorers.normalised import normalised
from quantize.scoring import Given, Scored

__all__ = ["Pattern"]


def _compiles(text: str) -> str:
    import regex

    try:
        groups = regex.compile(text).groups
    except regex.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"{text!r} has {groups} groups: the answer is what the one group ( ) matches. Others are written (?: )"
        )
    return text


class Pattern(TextScorer):
    """Right when what the group of `pattern` matches is the item's answer; `normalise` compares words (`normalised`).

    The last match counts, or the `first`. Without a match there is no answer. A pattern may backtrack for ever on some
    text: an answer that takes longer than `seconds` cannot be scored, and more than `errors_at_most` of them are an
    error of the eval.
    """

    kind: Literal["regex"] = "regex"
    pattern: Annotated[str, AfterValidator(_compiles)]
    which: Literal["first", "last"] = "last"
    ignore_case: bool = False
    normalise: bool = False
    seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    errors_at_most: Annotated[float, Field(ge=0, lt=1)] = 0.02

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        return None if self._plain(target) else "'answer' is the text that the pattern must find"

    def open(self, kept: Path | None) -> Each:
        """See `scoring.Scorer`."""
        return Each(self._score)

    def _plain(self, text: str) -> str:
        return normalised(text) if self.normalise else text.strip()

    def _score(self, given: Given) -> Scored:
        import regex

        compiled = regex.compile(self.pattern, regex.IGNORECASE if self.ignore_case else 0)
        found = None
        try:
            for match in compiled.finditer(given.answer, timeout=self.seconds):
                if match[1] is not None:
                    found = match[1]
                    if self.which == "first":
                        break
        except TimeoutError:
            return Scored(0.0, None, f"the pattern did not come to an end within {self.seconds:g} seconds")
        if found is None or not self._plain(found):
            return UNREADABLE
        plain, target = self._plain(found), self._plain(given.target)
        right = plain.casefold() == target.casefold() if self.ignore_case else plain == target
        return right_or_wrong(plain, right=right)
