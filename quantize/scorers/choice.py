"""Which of an item's choices the model thinks likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from quantize.scorers._each import UNREADABLE, Each, TextScorer

__all__ = ["Choice"]


class Choice(TextScorer):
    """The choice with the greatest log-likelihood: summed (`raw`), or its mean by the token or by the byte.

    The mean `per_byte` is lm-evaluation-harness's `acc_norm` for texts of ASCII; a choice's bytes are those of its
    UTF-8 text without the blanks around it. Lengths matter where choices differ in them: a sum favours short ones.
    """

    kind: Literal["choice"] = "choice"
    generates: ClassVar[bool] = False
    errors_at_most: ClassVar[float] = 0.0
    normalise: Literal["raw", "per_token", "per_byte"] = "raw"

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        return "`choice` scores items that have 'choices'"

    def open(self, kept: Path | None) -> Each:
        """Nothing is generated, so there is nothing to read."""
        return Each(lambda _given: UNREADABLE)

    def likeliest(self, sums: Sequence[float], texts: Sequence[str], tokens: Sequence[int]) -> int:
        """The number of the best choice, the first of equals, of their log-likelihoods, texts and lengths in tokens."""
        sizes = {
            "raw": [1] * len(sums),
            "per_token": tokens,
            "per_byte": [max(1, len(text.strip().encode())) for text in texts],
        }[self.normalise]
        scores = [total / max(1, size) for total, size in zip(sums, sizes, strict=True)]
        return scores.index(max(scores))
