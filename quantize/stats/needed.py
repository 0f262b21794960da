"""How many items an inconclusive verdict would have needed."""

from __future__ import annotations

import math

from scipy import special

from quantize.stats.pairs import Pairs
from quantize.stats.planning import least_clusters, sample_size

POWER = 0.9


def items_needed(pairs: Pairs, margin: float, level: float, judged: int) -> int | None:
    """Items for 90 % power at the one-sided ``level``, planned from what was answered; None where no number will do.

    First at a true difference of 0. Where the ``judged`` items are already that many, the variant is evidently worse
    than that, and the observed difference is planned for; None when that one is beyond the margin.
    """
    planned = _planned(pairs, margin, level, 0.0)
    if planned > judged:
        return planned
    difference = min(float(pairs.differences.mean()), 0.0)
    if difference <= -margin:
        return None
    return max(_planned(pairs, margin, level, difference), judged + 1)


def _planned(pairs: Pairs, margin: float, level: float, difference: float) -> int:
    """`planning.sample_size` at the observed flip rate where items are binary and unclustered.

    Otherwise ``(z_alpha + z_beta)^2 V / (margin + difference)^2`` with ``V = n se^2``, n items times the squared
    cluster-robust standard error. So V is the variance of one item's difference inflated by the clusters (``1 + (m - 1)
    rho`` where all have m items), and the number holds for further clusters of the same kind. At least as many as
    `planning.least_clusters` hold on average. Where nothing differs, one loss is assumed.
    """
    if pairs.binary and not pairs.clustered:
        return sample_size(margin, _flips(pairs) / pairs.n, level, POWER, difference=difference)
    sums, sizes = pairs.sums()
    groups, mean = len(sums), float(sizes.mean())
    residual = sums - float(pairs.differences.mean()) * sizes
    spread = max(float(residual @ residual), 1.0 if _flips(pairs) == 1 and not sums.any() else 0.0)
    variance = groups / max(groups - 1, 1) * spread / pairs.n
    z = float(special.ndtri(POWER)) - float(special.ndtri(level))
    planned = math.ceil(z * z * variance / (margin + difference) ** 2)
    return max(planned, math.ceil(least_clusters(margin, level, mean, pairs.largest) * mean))


def _flips(pairs: Pairs) -> int:
    return max(int((pairs.differences != 0).sum()), 1)
