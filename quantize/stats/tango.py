"""Tango's score test for a difference of paired proportions.

Every item is answered by both arms. Of ``n`` items ``losses`` went from right to wrong, ``gains`` from wrong to
right, the rest did not flip. The mean paired difference is ``(gains - losses) / n``; its expectation under the null
is ``difference``.

Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17 (1998) 891-908.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
_EDGE = 1e-9  # at a difference of -1 itself nothing varies


def restricted_loss_rate(losses: ArrayLike, gains: ArrayLike, n: int, difference: float) -> Floats:
    """Maximum-likelihood probability of a loss when E[d] is held at ``difference``.

    The larger root of ``A q^2 + B q + C`` with ``A = 2n``, ``B = -b - c + (2n - c + b) D``, ``C = -b D (1 - D)``. The
    probability of a gain is this plus ``difference``. Counts may be shares, with ``n = 1``.
    """
    b, c = np.asarray(losses, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    quadratic = 2.0 * n
    linear = -b - c + (2 * n - c + b) * difference
    constant = -b * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear * linear - 4 * quadratic * constant, 0.0))
    # Two forms of one root: each is used where it does not subtract two nearly equal numbers.
    denominator = np.where(linear > 0, linear + root, 1.0)
    rate: Floats = np.where(linear > 0, -2 * constant / denominator, (root - linear) / (2 * quadratic))
    return rate


def score(losses: ArrayLike, gains: ArrayLike, n: int, difference: float) -> Floats:
    """Tango's z: ``(c - b - n D) / sqrt(n (2 q + D (1 - D)))``. Large z speaks against ``E[d] <= difference``.

    Losses and gains broadcast against each other. Zero where there is neither a flip nor a difference to hold
    against.
    """
    b, c = np.asarray(losses, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    variance = n * (2 * restricted_loss_rate(b, c, n, difference) + difference * (1 - difference))
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.where(variance > 0, (c - b - n * difference) / scale, 0.0)


def score_p_value(losses: int, gains: int, n: int, difference: float) -> float:
    """One-sided p of H0 ``E[d] <= difference``: ``1 - Phi(z)``. For large ``n``: its true size exceeds alpha."""
    return float(special.ndtr(-score(losses, gains, n, difference)))


def score_lower_limit(losses: int, gains: int, n: int, alpha: float, *, reference: float, rejected: bool) -> float:
    """One-sided lower limit for E[d]: the score test inverted over D.

    ``rejected`` says whether the score test at ``reference`` rejected at ``alpha`` (below 0.5). The root is sought
    on that side, so that the limit exceeds ``reference`` exactly when it did.
    """
    from scipy.optimize import brentq  # takes half a second to import, and planning needs none of it

    critical = -float(special.ndtri(alpha))

    def excess(difference: float) -> float:
        return float(score(losses, gains, n, difference)) - critical

    low, high = (reference, (gains - losses) / n) if rejected else (-1.0 + _EDGE, reference)
    if excess(low) > 0 > excess(high):
        root = float(brentq(excess, low, high, xtol=1e-12))
    else:  # decided within rounding at the reference, or nothing can be excluded at all
        root = reference if excess(low) > 0 or rejected else -1.0
    return max(root, math.nextafter(reference, 1.0)) if rejected else min(root, reference)
