"""Values by block into intervals: of one arm, and of two arms beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantize.evidence import Comparison, Direction
from quantize.stats import difference_limits, ratio_interval

__all__ = ["ALPHA", "LEVEL", "METHOD", "ratio_comparison", "share_comparison", "spread"]

#: Comparisons show both one-sided limits at 5 %.
ALPHA = 0.05
LEVEL = 0.90
METHOD = "t over blocks"

#: One-sided, for the 95 % interval of a measurement.
_MEASURED = 0.025

#: Values by block: None where a block does not have the quantity.
ByBlock = Sequence[float | None]


def spread(values: ByBlock, value: float) -> tuple[float | None, float | None]:
    """The 95 % t interval of the blocks' values, on the scale of their logarithms where all are positive.

    Widened to hold `value`, which is computed of all requests together; (None, None) for fewer than two blocks,
    and where one does not have the quantity: the others would be the good ones.
    """
    known = [each for each in values if each is not None]
    if len(known) < max(2, len(values)):
        return None, None
    if min(known) > 0:
        found = ratio_interval([math.log(each) for each in known], _MEASURED)
        low, high = found.lower, found.upper
    else:
        mean, reach = _t(known, _MEASURED)
        low, high = max(0.0, mean - reach), mean + reach
    return min(low, value), max(high, value)


def ratio_comparison(
    metric: str,
    direction: Direction,
    unit: str,
    pair: tuple[float, float],
    values: Sequence[ByBlock],
    facts: Mapping[str, Any],
) -> list[Comparison]:
    """The ratio of the variant's value to the baseline's, over blocks; none where the baseline's is 0.

    `pair` and `values` are the baseline's and the variant's. Without a positive value of both in every block there are
    no logs and no interval.
    """
    baseline, variant = pair
    if baseline <= 0:
        return []
    logs: list[float] = []
    for first, second in zip(*values, strict=True):
        if first is None or second is None or first <= 0 or second <= 0:
            logs = []
            break
        logs.append(math.log(second / first))
    found = ratio_interval(logs, ALPHA) if len(logs) > 1 else None
    return [
        Comparison(
            metric=metric,
            unit="ratio",
            baseline=baseline,
            variant=variant,
            difference=math.exp(math.fsum(logs) / len(logs)) if logs else variant / baseline,
            low=found.lower if found else None,
            high=found.upper if found else None,
            level=LEVEL if found else None,
            n=len(logs),
            method=METHOD,
            extra={"logs": logs, "direction": direction, "of": unit, **facts},
        )
    ]


def share_comparison(
    metric: str,
    pair: tuple[float, float],
    values: Sequence[ByBlock],
    failed: tuple[int, int],
    requests: int,
    facts: Mapping[str, Any],
) -> Comparison:
    """The difference of the shares that failed, over blocks: `failed` of the `requests` that each arm was sent."""
    shares = zip(*values, strict=True)
    differences = [second - first for first, second in shares if first is not None and second is not None]
    found = difference_limits(differences, ALPHA, failed, requests) if len(differences) > 1 else None
    return Comparison(
        metric=metric,
        unit="share",
        baseline=pair[0],
        variant=pair[1],
        difference=found.difference if found else pair[1] - pair[0],
        low=found.lower if found else None,
        high=found.upper if found else None,
        level=LEVEL if found else None,
        n=len(differences),
        method=METHOD,
        extra={
            "differences": differences,
            "requests": requests,
            "failed": {"baseline": failed[0], "variant": failed[1]},
            "direction": "lower",
            **facts,
        },
    )


def _t(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """The mean, and how far its one-sided limits at `alpha` are from it: t_{n-1, 1-alpha} s / sqrt(n)."""
    from scipy import special

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, float(special.stdtrit(n - 1, 1 - alpha)) * deviation / math.sqrt(n)
