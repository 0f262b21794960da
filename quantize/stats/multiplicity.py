"""Many chances at one error rate: repeated attempts on one eval set, and a choice among several variants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quantize.errors import DataError, QuantizeError
from quantize.stats.inputs import check_alpha

if TYPE_CHECKING:
    from collections.abc import Sequence


def attempt_alpha(alpha: float, attempt: int) -> float:
    """``6 alpha / (pi^2 k^2)`` for the k-th artifact judged on one eval set; over all k these add up to ``alpha``.

    So the chance that any of an unlimited series of variants at the margin passes is at most ``alpha`` (the union
    bound; ``sum 1/k^2 = pi^2/6``).
    """
    check_alpha(alpha)
    if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
        raise QuantizeError(
            f"the attempt is {attempt!r}, not 1, 2, 3 ...", fix="The first artifact judged is attempt 1."
        )
    return alpha * 6 / (math.pi * attempt) ** 2


def holm(ratios: Sequence[float]) -> list[bool]:
    """Which of several hypotheses are rejected together, by Holm's step-down procedure.

    ratios: ``p / alpha`` of each, so that each may have an alpha of its own (a weighted Holm with equal weights). The
    i-th smallest of m must be at most ``1 / (m - i + 1)``, and all smaller ones too. Equal ratios share one answer. NaN
    (it could not be judged) is never rejected, but counts among the m. The error rate is familywise: at most
    ``alpha`` that any true null is rejected, whatever the dependence.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    if any(ratio < 0 for ratio in ratios):
        raise DataError(f"a ratio of p to alpha is negative: {min(ratios)}", fix="Divide each p by its own alpha.")
    order = sorted(range(len(ratios)), key=lambda place: (math.isnan(ratios[place]), ratios[place]))
    accepted = [False] * len(ratios)
    for step, place in enumerate(order):
        if not ratios[place] * (len(ratios) - step) <= 1:  # false for NaN as well
            break
        accepted[place] = True
    return accepted
