"""Non-inferiority of a fixed sample whose items are clustered, or whose scores are graded.

The unit is the cluster: the statistic is ``r = sum S_g / sum m_g``, its standard error the cluster-robust
``sqrt(G/(G-1) sum (S_g - r m_g)^2) / sum m_g``. Bootstrap-t over clusters (B. Efron and R. Tibshirani, An
Introduction to the Bootstrap, 1993, ch. 12.5 and 16.4): with ``t* = (r* - r)/se*`` of B = 9999 resamples and
``t = (r - D)/se``, the p of H0 ``E[d] <= D`` is ``(1 + #{t* >= t}) / (B + 1)``, and the limits come from the same t*.

Where few clusters carry what differs, a resample says little about a loss that has not been seen yet, and bootstrap-t
errs too often. Then the betting bound at full sample decides, which holds at any number of clusters. Few is: fewer
than 20 clusters with a difference, or an effective number below 10 (`effective_differing`). Where no cluster differs at
all, the closed form of `planning.clustered_no_flips_p_value` decides. No bootstrap p is below that one either: a set
that is too small to pass without any difference does not pass with some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantize.stats.betting import betting_lower_limit, betting_p_value
from quantize.stats.intervals import RESAMPLES, studentized
from quantize.stats.planning import clustered_no_flips_p_value
from quantize.stats.tango import Floats

LEAST_DIFFERING = 20
LEAST_EFFECTIVE = 10
FEW_CLUSTERS = 50

Method = Literal["exact", "tango", "bootstrap-t", "betting"]


@dataclass(frozen=True, slots=True)
class FixedSample:
    """A test of a complete set. ``lower`` and ``upper`` are one-sided limits at the level asked for.

    ``lower > -margin`` exactly when ``passes``, ``upper < -margin`` exactly when ``fails``.
    """

    p_value: float
    lower: float
    upper: float
    passes: bool
    fails: bool
    method: Method
    warnings: tuple[str, ...] = ()


def clustered_test(sums: Floats, sizes: Floats, margin: float, level: float, *, seed: int = 0) -> FixedSample:
    """Test and limits, each one-sided at ``level``.

    sums, sizes: (G,), sum of the differences and number of items of each cluster, in the order answered. Cost on one
    core at G = 2000: 0.02 s where most clusters look alike (no difference, few sizes), 0.8 s where all are different.
    """
    few = (
        (f"{len(sums)} clusters are few: below {FEW_CLUSTERS} the error rate is only roughly the stated one.",)
        if len(sums) < FEW_CLUSTERS
        else ()
    )
    if not sums.any():
        return _no_flips(sizes, margin, level, few)
    drawn = draws(sums, sizes, seed) if enough_differ(sums) else None
    if drawn is None:
        reason = "What differs lies in too few clusters for resampling: the betting bound decides, which is wide."
        return _betting(sums, sizes, margin, level, (*few, reason))
    return _bootstrap(sums, sizes, drawn, margin, level, few)


def enough_differ(sums: Floats) -> bool:
    """Whether resampling the clusters can tell how much their sums vary."""
    return int(np.count_nonzero(sums)) >= LEAST_DIFFERING and effective_differing(sums) >= LEAST_EFFECTIVE


def effective_differing(sums: Floats) -> float:
    """How many clusters carry what differs: ``(sum S^2)^2 / sum S^4``; the plain number where they differ equally.

    One total loss among a hundred differences of a point each counts as one, not as a hundred and one. Normal sums
    count a third of their number.
    """
    squares = sums * sums
    fourth = float(squares @ squares)
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Draws:
    """``t*`` of every resample, sorted, with the estimate and its standard error."""

    studentized: Floats
    estimate: float
    error: float


def draws(sums: Floats, sizes: Floats, seed: int, resamples: int = RESAMPLES) -> Draws | None:
    """Resample the clusters; those that look alike are drawn as one kind. None where their residuals do not vary."""
    kinds, times = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    total, items, groups = float(sums.sum()), float(sizes.sum()), len(sums)
    estimate = total / items
    residual = kinds[:, 0] - estimate * kinds[:, 1]
    spread = float(times @ residual**2)
    if groups < 2 or spread <= 1e-12 * float(sums @ sums):
        return None
    error = math.sqrt(groups / (groups - 1) * spread) / items
    drawn = np.sort(studentized(residual, kinds[:, 1], seed, resamples, times))
    return Draws(drawn, estimate, error)


def bootstrap_p_value(drawn: Draws, difference: float) -> float:
    """``(1 + #{t* >= t}) / (B + 1)`` with ``t = (r - difference)/se``."""
    observed = (drawn.estimate - difference) / drawn.error
    reached = len(drawn.studentized) - int(np.searchsorted(drawn.studentized, observed, side="left"))
    return (1 + reached) / (len(drawn.studentized) + 1)


def _bootstrap(
    sums: Floats, sizes: Floats, drawn: Draws, margin: float, level: float, warnings: tuple[str, ...]
) -> FixedSample:
    least = clustered_no_flips_p_value(len(sums), margin, float(sizes.mean()), float(sizes.max()))
    p_value = max(bootstrap_p_value(drawn, -margin), least)
    mirrored = Draws(-drawn.studentized[::-1], -drawn.estimate, drawn.error)
    worse = max(bootstrap_p_value(mirrored, margin), least)
    lower, upper = _student_limit(drawn, level), -_student_limit(mirrored, level)
    if level < 20 / (len(drawn.studentized) + 1):
        warnings = (*warnings, f"{len(drawn.studentized)} resamples resolve a level of {level:.2g} only roughly.")
    return _agreeing(p_value, worse, lower, upper, margin, level, "bootstrap-t", warnings)


def _student_limit(drawn: Draws, level: float) -> float:
    """Lower limit: the least D whose bootstrap p exceeds ``level``; -1 where no resample can show so small a level."""
    allowed = math.floor(level * (len(drawn.studentized) + 1) + 1e-9) - 1
    if allowed < 0:
        return -1.0
    critical = float(drawn.studentized[-1 - allowed])
    return max(-1.0, drawn.estimate - critical * drawn.error)


def _betting(sums: Floats, sizes: Floats, margin: float, level: float, warnings: tuple[str, ...]) -> FixedSample:
    largest = float(sizes.max())
    p_value = betting_p_value(sums, sizes, largest, -margin)
    worse = betting_p_value(-sums, sizes, largest, margin)
    lower = betting_lower_limit(sums, sizes, largest, level)
    upper = -betting_lower_limit(-sums, sizes, largest, level)
    return _agreeing(p_value, worse, lower, upper, margin, level, "betting", warnings)


def _no_flips(sizes: Floats, margin: float, level: float, warnings: tuple[str, ...]) -> FixedSample:
    mean, largest = float(sizes.mean()), float(sizes.max())
    p_value = clustered_no_flips_p_value(len(sizes), margin, mean, largest)
    reach = min(1.0, -math.expm1(math.log(level) / len(sizes)) * largest / mean)
    return _agreeing(p_value, 1.0, -reach, reach, margin, level, "exact", warnings)


def _agreeing(
    p_value: float,
    worse: float,
    lower: float,
    upper: float,
    margin: float,
    level: float,
    method: Method,
    warnings: tuple[str, ...],
) -> FixedSample:
    """Rounding, a bound that replaced a p, or a tie never set a limit on the other side of the margin than its p."""
    passes, fails = p_value <= level, worse <= level
    lower = max(lower, math.nextafter(-margin, 1.0)) if passes else min(lower, -margin)
    upper = min(upper, math.nextafter(-margin, -1.0)) if fails else max(upper, -margin)
    return FixedSample(p_value, lower, upper, passes, fails, method, warnings)
