"""The confidence sequence as it went: what was known after each part of a growing sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.stats.betting import betting_lower_limit
from quantize.stats.pairs import Pairs

POINTS = 12


@dataclass(frozen=True, slots=True)
class Point:
    """After ``items`` items the mean difference lay between ``lower`` and ``upper``, at every point at once."""

    items: int
    lower: float
    upper: float


def confidence_path(pairs: Pairs, lower_level: float, upper_level: float, points: int = POINTS) -> list[Point]:
    """Limits after at most ``points`` evenly spaced clusters, the last among them; each level one-sided.

    Narrowing: at each point the limits are those of the whole sequence so far (`betting_lower_limit`).
    """
    sums, sizes = pairs.sums()
    ends = np.unique(np.ceil(np.linspace(0, len(sums), points + 1)[1:]).astype(np.int64))
    found = []
    for end in ends:
        lower = betting_lower_limit(sums[:end], sizes[:end], pairs.largest, lower_level)
        upper = -betting_lower_limit(-sums[:end], sizes[:end], pairs.largest, upper_level)
        found.append(Point(int(sizes[:end].sum()), lower, upper))
    return found
