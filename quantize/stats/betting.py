"""Betting against a mean of bounded differences: a test that may be looked at after every cluster.

H0: ``E[d] <= D`` per item, clusters independent. With S_g the sum of the differences of cluster g, m_g its items and
m_max the largest cluster of the whole set,

    x_g = (S_g - D m_g) / m_max,   lambda_j = j / ((J + 1)(1 + D)),   j = 1..J = 20,
    K+ = mean over j of  prod_g (1 + lambda_j x_g).

Every factor is positive because ``x_g >= -(1 + D)``, and has an expectation of at most 1 under H0. So K+ is a
nonnegative supermartingale and ``P(K+ ever reaches 1/a) <= a`` (Ville), at whatever cluster one looks or stops. K- bets
against ``E[d] >= D``: it is K+ of the mirrored experiment, -S and -D.

A confidence sequence is the inversion over D. Each factor equals
``1 + j/(J + 1) ((S_g + m_g)/(1 + D) - m_g) / m_max``, which falls in D because ``S_g + m_g >= 0``. So K+ and its
maximum over the path fall in D, the D that are refused are all those below one limit, and the rest is an interval.

Source: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024) 1-27
(the grid of bets is their "hedged capital" over a uniform grid).
"""

from __future__ import annotations

import math

import numpy as np

from quantize.stats.tango import Floats

BETS = 20
LIMIT_TOLERANCE = 2e-5


def log_capital(sums: Floats, sizes: Floats, largest: float, difference: float) -> Floats:
    """Ln K+ after each cluster, shape (..., G), of H0 ``E[d] <= difference``, for ``difference`` in (-1, 1).

    sums: (..., G), sum of the differences per cluster, in order; sizes: broadcasts against it; largest: items of the
    largest cluster of the whole set. Leading axes are independent experiments. For K- give ``-sums, -difference``.
    """
    stake = np.arange(1, BETS + 1) / (BETS + 1) / (1 + difference) / largest
    gain = sums - difference * sizes
    paths = np.multiply.outer(stake, gain)
    np.log1p(paths, out=paths)
    np.cumsum(paths, axis=-1, out=paths)
    top = paths.max(axis=0)
    paths -= top
    np.exp(paths, out=paths)
    result: Floats = top + np.log(paths.mean(axis=0))
    return result


def greatest_log_capital(sums: Floats, sizes: Floats, largest: float, difference: float) -> float:
    """The maximum of ln K+ over the path; at least 0, the capital before the first bet."""
    return max(0.0, float(log_capital(sums, sizes, largest, difference).max(initial=0.0)))


def betting_p_value(sums: Floats, sizes: Floats, largest: float, difference: float) -> float:
    """P of H0 ``E[d] <= difference``: 1 / max K+, valid at any stopping rule and any number of clusters."""
    return math.exp(-greatest_log_capital(sums, sizes, largest, difference))


def betting_lower_limit(sums: Floats, sizes: Floats, largest: float, level: float) -> float:
    """Lower confidence limit for E[d] that holds at all looks at once with probability ``1 - level``.

    The greatest D with ``max K+ >= 1/level``, to `LIMIT_TOLERANCE` and rounded down; -1 where none is refused. The
    upper limit is the negative of the lower limit of ``-sums``.
    """
    low, high = -1.0, 1.0
    needed = -math.log(level)
    while high - low > LIMIT_TOLERANCE:
        middle = (low + high) / 2
        if greatest_log_capital(sums, sizes, largest, middle) >= needed:
            low = middle
        else:
            high = middle
    return low
