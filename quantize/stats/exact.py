"""Exact unconditional test and confidence limit for a difference of paired proportions.

Tango's z at a fixed ``reference`` difference (the gate's ``-margin``) orders the outcomes (losses, gains). The
outcomes at least as favourable as the observed one form its *tail*. The p-value of H0 ``E[d] <= D`` is the largest
probability that any trinomial of H0 gives to the tail. One loss less or one gain more never lowers z, so the
largest probability lies on the line ``E[d] = D``, where only the flip rate p is free: losses ``(p - D)/2``, gains
``(p + D)/2``, ``|D| <= p <= 1``.

The lower limit is the inversion of this test over D, each D with its own ordering. For a few outcomes p(D) is not
monotone and crosses alpha more than once; the crossing that bisection from the margin meets is taken. The decision at
the margin is exact; elsewhere, enumeration at n = 30 and 60 with alpha = 5 % found the limit beyond the truth 5.2 % of
the time at most.

The supremum over p is bounded, not searched. On a cell [p1, p2] the tail probability f is at most
``max(f(p1), f(p2)) + (p2 - p1)^2 / 8 * M`` for any M >= -f''. With S the score of the trinomial in p,
``f'' = E[1{tail} (S^2 + S')]``, so ``-f'' <= E[1{tail} (-S')]``, and -S' is a sum over items, which gives
``-f'' <= I(p) P(tail | one item is a gain)`` with I(p) the Fisher information of n items. I is convex, so it is
largest at an end of the cell; the probability is largest with the cell's fewest losses and most gains. Cells whose
bound is not yet good enough are halved. What is returned is the bound: never below the true supremum, at most
``tolerance`` above it.

Cost: one evaluation of f is O(sqrt(n)) incomplete beta functions, and a p-value takes some hundred evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from quantize.stats.tango import Floats, score, score_lower_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

P_TOLERANCE = 1e-5
LIMIT_TOLERANCE = 1e-5
_NEGLECTED = 1e-12  # more than all the probability that windows and masks leave out; added to every bound
_SCORE_TIE = 1e-9  # outcomes whose z differ by less are ties, and ties belong to the tail
_STEP = 0.5  # first grid, in standard errors of the estimated flip rate


@dataclass(frozen=True, slots=True)
class Tail:
    """The outcomes at least as favourable as a given z: with g gains, up to ``most_losses[g]`` losses (-1: none)."""

    n: int
    most_losses: NDArray[np.int64]


def tail(n: int, threshold: float, reference: float) -> Tail:
    """All outcomes of ``n`` items whose z at ``reference`` is ``threshold`` or more (bisection in every column)."""
    gains = np.arange(n + 1)
    cut = threshold - _SCORE_TIE * max(1.0, abs(threshold))
    inside, outside = np.full(n + 1, -1), n - gains + 1
    while np.any(outside - inside > 1):
        middle = np.maximum((inside + outside) // 2, 0)
        good = (score(middle, gains, n, reference) >= cut) & (outside - inside > 1)
        bad = ~good & (outside - inside > 1)
        inside, outside = np.where(good, middle, inside), np.where(bad, middle, outside)
    return Tail(n, inside.astype(np.int64))


def tail_probability(event: Tail, loss_rate: Floats, gain_rate: Floats, *, one_gain: bool = False) -> Floats:
    """P(tail) for each pair of rates (shape (m,)); with ``one_gain``, given that one of the n items is a gain.

    Sums over the number of gains (marginal binomial) the binomial probability of few enough losses among the rest.
    Gains outside a Bernstein window of probability under 1e-13, and terms under 1e-16, are left out.
    """
    if len(gain_rate) == 0:
        return np.zeros(0)
    items = event.n - one_gain
    spread = items * gain_rate * (1 - gain_rate)
    reach = 10.2 + np.sqrt(104.0 + 61.3 * spread)
    first = np.maximum(np.floor(items * gain_rate - reach), 0).astype(np.int64)
    last = np.minimum(np.ceil(items * gain_rate + reach), items).astype(np.int64)
    gains = first[:, None] + np.arange(int(np.max(last - first)) + 1)
    row, column = np.nonzero(gains <= last[:, None])
    g = gains[row, column]
    most = np.minimum(event.most_losses[g + one_gain], items - g)
    log_choose = special.gammaln(items + 1.0) - special.gammaln(g + 1.0) - special.gammaln(items - g + 1.0)
    weight = np.exp(log_choose + special.xlogy(g, gain_rate[row]) + special.xlog1py(items - g, -gain_rate[row]))
    kept = (weight > 1e-16) & (most >= 0)
    row, g, most, weight = row[kept], g[kept], most[kept], weight[kept]
    loss_given_no_gain = np.clip(loss_rate[row] / np.maximum(1 - gain_rate[row], 1e-300), 0.0, 1.0)
    few = np.ones(len(g))
    cut = most < items - g  # otherwise any number of losses belongs to the tail
    few[cut] = special.betainc((items - g - most)[cut], most[cut] + 1.0, 1 - loss_given_no_gain[cut])
    return np.bincount(row, weight * few, minlength=len(gain_rate)).astype(np.float64)


def supremum(event: Tail, difference: float, *, tolerance: float = P_TOLERANCE, level: float | None = None) -> float:
    """Upper bound, within ``tolerance``, of P(tail) over all trinomials with ``E[d] <= difference``.

    Above one half, where no decision is taken and the bound closes slowly, a hundred times the tolerance will do.
    With ``level`` it stops as soon as it is known on which side of the level the bound lies; the number returned is
    then on that side but not necessarily within the tolerance.
    """
    n, low = event.n, abs(difference)

    def probability(left: Floats, right: Floats, *, one_gain: bool = False) -> Floats:
        losses, gains = np.maximum(left - difference, 0) / 2, np.maximum(right + difference, 0) / 2
        return tail_probability(event, losses, gains, one_gain=one_gain)

    count = math.ceil(math.pi * math.sqrt(n) / _STEP) + 2
    grid = low + (1 - low) * np.sin(np.linspace(0, math.pi / 2, count)) ** 2
    grid[-1] = 1.0
    value = probability(grid, grid)
    best = float(value.max())
    if level is not None and best > level:
        return min(1.0, best + _NEGLECTED)
    left, right, f_left, f_right = grid[:-1], grid[1:], value[:-1], value[1:]
    ceiling = probability(left, right, one_gain=True)
    closed = best
    while True:
        edge = (left <= low) | (right >= 1)  # infinite information: bound by the fewest losses and most gains
        bend = np.zeros_like(left)
        bend[~edge] = _information(n, left[~edge], right[~edge], difference)
        bound = np.maximum(f_left, f_right) + (right - left) ** 2 / 8 * ceiling * bend
        bound[edge] = probability(left[edge], right[edge])
        good_enough = best + (tolerance if best < 0.5 else 100 * tolerance)
        still = bound > (good_enough if level is None else max(good_enough, level - _NEGLECTED))
        closed = max(closed, best, float(np.max(bound[~still], initial=0.0)))
        if not still.any() or (level is not None and closed > level):
            return min(1.0, closed + _NEGLECTED)
        left, right, f_left, f_right, ceiling = (x[still] for x in (left, right, f_left, f_right, ceiling))
        middle = (left + right) / 2
        f_middle = probability(middle, middle)
        best = max(best, float(f_middle.max()))
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        f_left, f_right = np.concatenate([f_left, f_middle]), np.concatenate([f_middle, f_right])
        ceiling = np.concatenate([ceiling, ceiling])


def _information(n: int, left: Floats, right: Floats, difference: float) -> Floats:
    """Largest Fisher information about the flip rate on each cell (it is convex: at an end)."""
    ends = [n * (0.5 / (p - difference) + 0.5 / (p + difference) + 1 / (1 - p)) for p in (left, right)]
    return np.maximum(*ends)


def exact_p_value(losses: int, gains: int, n: int, difference: float) -> float:
    """Exact one-sided p of H0 ``E[d] <= difference``, with Tango's z at that difference as the ordering."""
    return supremum(tail(n, float(score(losses, gains, n, difference)), difference), difference)


def exact_rejects(losses: int, gains: int, n: int, difference: float, alpha: float) -> bool:
    """Whether the exact p is at most ``alpha``, at a fraction of the cost where the answer is plain."""
    event = tail(n, float(score(losses, gains, n, difference)), difference)
    return supremum(event, difference, level=alpha) <= alpha


def exact_lower_limit(losses: int, gains: int, n: int, alpha: float, *, reference: float, rejected: bool) -> float:
    """One-sided lower limit for E[d], to ``LIMIT_TOLERANCE`` and rounded down: the exact test inverted over D.

    ``rejected`` says whether the exact test at ``reference`` rejected. The bisection starts there, so that the
    limit exceeds ``reference`` exactly when it did.
    """
    low, high = (reference, 1.0) if rejected else (-1.0, reference)
    guess = score_lower_limit(losses, gains, n, alpha, reference=reference, rejected=rejected)
    probes = [guess + 0.5 / n, guess - 0.5 / n]  # the exact limit is nearly always between these two
    while high - low > LIMIT_TOLERANCE:
        middle = probes.pop() if probes else (low + high) / 2
        if not low < middle < high:
            continue
        if exact_rejects(losses, gains, n, middle, alpha):
            low = middle
        else:
            high = middle
    return max(low, math.nextafter(reference, 1.0)) if rejected else low


def no_flips_p_value(n: int, margin: float) -> float:
    """``(1 - margin)^n``, the probability of no flips where all flips are losses at the margin's rate.

    The exact p of (0 losses, 0 gains) is never smaller. It is equal while no other flip rate gives the tail of that
    outcome more: at alpha = 0.05 and margins up to 5 points, at the sizes where such a result begins to pass. For
    stricter alpha (``n * margin`` above about 3.6) or wider margins the exact p is larger and decides.
    """
    return math.exp(n * math.log1p(-margin))


def score_test_size(n: int, margin: float, alpha: float) -> float:
    """The score test's true type-I error: the largest probability, anywhere in H0, of its p being ``alpha`` or less."""
    return supremum(tail(n, -float(special.ndtri(alpha)), -margin), -margin)


@lru_cache(maxsize=256)
def critical_score(n: int, margin: float, alpha: float) -> float:
    """The smallest threshold on z at ``-margin`` whose tail has a probability of at most ``alpha`` everywhere in H0.

    Outcomes at or above it are those that pass. To 1e-5, rounded up.
    """
    low, high = 0.0, float(score(0, n, n, -margin)) + 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if supremum(tail(n, middle, -margin), -margin, level=alpha) <= alpha:
            high = middle
        else:
            low = middle
    return high
