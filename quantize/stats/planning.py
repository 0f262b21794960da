"""How many items a non-inferiority gate needs, and what chance a number of items gives.

A plan and a verdict use the same test at the same alpha; `quantize.stats.paired` is that test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from quantize.errors import QuantizeError
from quantize.stats.exact import critical_score, exact_p_value, exact_rejects, tail, tail_probability
from quantize.stats.inputs import check_alpha, check_early, check_margin
from quantize.stats.multiplicity import attempt_alpha
from quantize.stats.tango import restricted_loss_rate, score_p_value

EXACT_ITEMS = 2000
"""Up to this many items the exact test decides. Beyond it the score test does, whose error `exact.score_test_size`
enumerates: 5.1 % instead of 5 % at a margin of 2 points, up to 6.7 % at some sizes where a handful of losses decides
(``n * margin`` below 10)."""

PLANNED_FLIP_RATES = (0.01, 0.03, 0.06, 0.10)


@dataclass(frozen=True, slots=True)
class PlannedSize:
    """`items` give the chance `power` to pass when the true difference is 0 and a share `flip_rate` of items flips."""

    flip_rate: float
    items: int
    power: float


def sample_size(margin: float, flip_rate: float, alpha: float, power: float = 0.9, *, difference: float = 0.0) -> int:
    """Items that let a variant with this flip rate and true difference (default 0) pass with probability ``power``.

    ``n = (z_alpha s0 + z_beta s1)^2 / (margin + difference)^2`` with ``s1^2 = flip_rate - difference^2``, the
    variance of a paired difference, and ``s0^2 = 2q - margin (1 + margin)``, its variance as the score test
    estimates it under H0 (J. Nam, Biometrics 53 (1997) 1422-1430). Where flips are many, s0 = s1 and it becomes the
    well-known ``(z_alpha + z_beta)^2 flip_rate / margin^2``, which promises too much when flips are few (64 %
    instead of 90 % power at a flip rate of 1 % and a margin of 2 points). Never less than `least_items`.
    """
    check_margin(margin)
    check_alpha(alpha)
    if not alpha < power < 1:
        raise QuantizeError(f"the power is {power!r}, not between alpha and 1", fix="0.9 is usual.")
    if not abs(difference) <= flip_rate <= 1:
        raise QuantizeError(
            f"the flip rate is {flip_rate!r}",
            fix=f"It is a share of the items, at least {abs(difference)} and at most 1.",
        )
    if difference <= -margin:
        raise QuantizeError(
            f"no number of items lets a true difference of {difference} pass a margin of {margin}",
            fix="Plan for a smaller loss than the margin.",
        )
    losses, gains = (flip_rate - difference) / 2, (flip_rate + difference) / 2
    null_variance = 2 * float(restricted_loss_rate(losses, gains, 1, -margin)) - margin * (1 + margin)
    z_alpha, z_beta = -float(special.ndtri(alpha)), float(special.ndtri(power))
    root = z_alpha * math.sqrt(null_variance) + z_beta * math.sqrt(flip_rate - difference**2)
    return max(math.ceil((root / (margin + difference)) ** 2), least_items(margin, alpha))


@lru_cache(maxsize=256)
def least_items(margin: float, alpha: float) -> int:
    """The fewest items that can pass at all: with no flip in either direction, under the test that decides.

    At least ``ln(alpha) / ln(1 - margin)``; more where the exact p exceeds ``(1 - margin)^n`` (strict alpha).
    """
    check_margin(margin)
    check_alpha(alpha)
    for n in range(max(1, math.floor(math.log(alpha) / math.log1p(-margin))), EXACT_ITEMS + 1):
        if can_pass(n, margin, alpha):
            return n
    z_alpha = float(special.ndtri(alpha))
    n = max(EXACT_ITEMS + 1, math.floor(z_alpha**2 * (1 - margin) / margin))
    while score_p_value(0, 0, n, -margin) > alpha:
        n += 1
    return n


def can_pass(n: int, margin: float, alpha: float) -> bool:
    """Whether ``n`` items without a flip pass. Not of every n above `least_items`: the exact test is discrete."""
    if n > EXACT_ITEMS:
        return score_p_value(0, 0, n, -margin) <= alpha
    return exact_rejects(0, 0, n, -margin, alpha) and exact_p_value(0, 0, n, -margin) <= alpha


def spent_alpha(alpha: float, attempt: int = 1, early: float = 0.2) -> float:
    """The alpha that the test at the end of the set is held to: ``(1 - early) attempt_alpha(alpha, attempt)``.

    The rest pays for the chance of an early pass. Plan, sample size and shown interval use this one.
    """
    check_early(early)
    return (1 - early) * attempt_alpha(alpha, attempt)


def clustered_no_flips_p_value(clusters: int, margin: float, mean_size: float, largest: float) -> float:
    """``(1 - margin mean/largest)^G``: the largest probability under H0 that none of G independent clusters differs.

    A cluster that differs loses at most all of its items, ``largest`` at most, so a mean loss of ``margin`` an item
    makes a cluster differ with a probability of ``margin mean_size / largest`` or more. `no_flips_p_value` is the
    unclustered case.
    """
    return math.exp(clusters * math.log1p(-margin * mean_size / largest))


def least_clusters(margin: float, alpha: float, mean_size: float = 1.0, largest: float = 1.0) -> int:
    """The fewest clusters that can pass at all, with no cluster that differs: see `clustered_no_flips_p_value`."""
    check_margin(margin)
    check_alpha(alpha)
    if not 1 <= mean_size <= largest:
        raise QuantizeError(
            f"clusters of {mean_size!r} items on average, of {largest!r} at most",
            fix="Give the mean and the largest number of items in a cluster; the mean is 1 or more.",
        )
    return max(1, math.ceil(math.log(alpha) / math.log1p(-margin * mean_size / largest) - 1e-9))


def passing_probability(n: int, margin: float, alpha: float, flip_rate: float, difference: float = 0.0) -> float:
    """Exact probability that ``n`` items pass, by enumeration (the power; at ``difference = -margin`` a type-I error).

    Cost: 0.1 s at n = 300, below 1 s at n = 2000, nothing the second time.
    """
    check_margin(margin)
    check_alpha(alpha)
    threshold = critical_score(n, margin, alpha) if n <= EXACT_ITEMS else -float(special.ndtri(alpha))
    losses, gains = np.array([(flip_rate - difference) / 2]), np.array([(flip_rate + difference) / 2])
    return float(tail_probability(tail(n, threshold, -margin), losses, gains)[0])


def planning_table(margin: float, alpha: float) -> tuple[PlannedSize, ...]:
    """Items for 90 % power at a true difference of 0 at each of `PLANNED_FLIP_RATES`, and the power they give."""
    sizes = [(rate, sample_size(margin, rate, alpha)) for rate in PLANNED_FLIP_RATES]
    return tuple(PlannedSize(rate, n, passing_probability(n, margin, alpha, rate)) for rate, n in sizes)
