"""When going on is pointless: not even the best answers still possible would pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from quantize.stats.betting import betting_p_value
from quantize.stats.exact import exact_rejects
from quantize.stats.pairs import Pairs
from quantize.stats.planning import EXACT_ITEMS, clustered_no_flips_p_value
from quantize.stats.tango import score_p_value


def is_futile(pairs: Pairs, margin: float, alpha: float, early: float) -> bool:
    """Whether, with every remaining difference at its greatest, neither K+ nor the test at the end would pass.

    Stopping here cannot raise the error rate: a variant that stops does not pass. Binary unclustered items: the very
    test, whose p never rises with a gain. Otherwise a greater difference may widen the bootstrap, so only what no
    completion can mend counts: a mean at or below ``-margin``, or too few clusters to pass at all.
    """
    sums, sizes = (np.concatenate(both) for both in zip(pairs.sums(), pairs.possible_sums(), strict=True))
    if betting_p_value(sums, sizes, pairs.largest, -margin) / early <= alpha:
        return False
    level = (1 - early) * alpha
    if not pairs.binary or pairs.clustered:
        least = clustered_no_flips_p_value(len(sums), margin, float(sizes.mean()), pairs.largest)
        return least > level or float(sums.sum() / sizes.sum()) <= -margin
    losses = int((pairs.differences < 0).sum())
    gains = int((pairs.differences > 0).sum() + (pairs.possible > 0).sum())
    p_value = score_p_value(losses, gains, pairs.total, -margin)
    if p_value <= level / 2 or pairs.total > EXACT_ITEMS:
        return p_value > level  # far from a close call, or the score test decides
    return not _could_pass(losses, gains, pairs.total, margin, level)


@lru_cache(maxsize=4096)
def _could_pass(losses: int, gains: int, n: int, margin: float, level: float) -> bool:
    return exact_rejects(losses, gains, n, -margin, level)
