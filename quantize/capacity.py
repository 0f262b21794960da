"""How many replicas and devices a rate of requests takes, and what they cost, from the curve of one arm.

A point of a curve is a closed loop: so many requests under way at any time, what that completed in a second, and how
long it took. The point used is, of those that keep every limit and answered every request, the one that completes most.
With r* requests/s and t* output tokens/s there, utilisation u, d devices to a replica, R requests/s wanted and p the
price of a device for an hour:

    requests/s of a replica         u r*
    replicas                        ceil(R / (u r*))
    devices                         replicas d
    output tokens/s of a device     u t* / d
    cost of an hour                 devices p
    cost of a million tokens        10^6 devices p / (3600 R t*/r*)

The last is what one pays for the tokens of R requests/s, idle capacity of the last replica included. Assumed is that
replicas are independent and even (twice as many do twice as much, the balancer in front of them adds nothing), that
requests are those of the benchmark, and that u < 1 leaves room: a closed loop never sends more than it has under way,
while traffic comes in bursts, so at u = 1 its queue would grow without bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Capacity", "Demand", "Point", "Rate", "capacity"]

#: Rates this much over a whole number of replicas are rounding, and not a replica more.
_ROUNDING = 1e-9
_HOUR = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Rate:
    """What one device costs for an hour."""

    per_device_hour: float
    currency: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What is wanted: `requests_per_second`, no quantity (seconds) above its limit, at `utilisation` of a replica."""

    requests_per_second: float
    limits: Mapping[str, float]
    utilisation: float
    price: Rate | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve. `times` are seconds by quantity (`ttft_p95`), as far as its requests tell them."""

    streams: int
    requests: int
    requests_per_second: float
    output_tokens_per_second: float
    failures: int
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one arm takes to meet a demand. `point` is None where no point keeps it, and `reason` says why.

    `still_rising` where the point used is the curve's last: with more requests under way it may complete more.
    """

    point: Point | None
    reason: str
    still_rising: bool = False
    requests_per_second: float | None = None
    replicas: int | None = None
    devices: int | None = None
    output_tokens_per_second: float | None = None
    cost_per_hour: float | None = None
    cost_per_million_output_tokens: float | None = None


def capacity(points: Sequence[Point], devices: int, demand: Demand) -> Capacity:
    """What an arm with `devices` to a replica takes; the module's formulas."""
    keeping = [point for point in points if not point.failures and point.requests_per_second > 0]
    keeping = [p for p in keeping if all(p.times.get(q, math.inf) <= limit for q, limit in demand.limits.items())]
    if not keeping:
        return Capacity(None, _reason(points, demand.limits))
    best = max(keeping, key=lambda point: point.requests_per_second)
    rate = demand.utilisation * best.requests_per_second
    replicas = max(1, math.ceil(demand.requests_per_second / rate * (1 - _ROUNDING)))
    hour = replicas * devices * demand.price.per_device_hour if demand.price is not None else None
    tokens = demand.requests_per_second * best.output_tokens_per_second / best.requests_per_second
    return Capacity(
        point=best,
        reason="",
        still_rising=len(points) > 1 and best.streams == max(point.streams for point in points),
        requests_per_second=rate,
        replicas=replicas,
        devices=replicas * devices,
        output_tokens_per_second=demand.utilisation * best.output_tokens_per_second / devices,
        cost_per_hour=hour,
        cost_per_million_output_tokens=_MILLION * hour / (_HOUR * tokens) if hour is not None and tokens else None,
    )


def _reason(points: Sequence[Point], limits: Mapping[str, float]) -> str:
    """Why no point is of use: requests failed, a time is not told, one limit is beyond reach, or all together are."""
    whole = [point for point in points if not point.failures and point.requests_per_second > 0]
    if not whole:
        failed = ", ".join(f"{p.failures} of {p.requests} with {p.streams} under way" for p in points)
        return f"requests failed at every measured load ({failed})" if points else "it has no curve"
    for quantity, limit in limits.items():
        known = [point.times[quantity] for point in whole if quantity in point.times]
        if not known:
            most = max(point.requests for point in whole)
            return f"the curve does not tell {quantity}: it takes more than the {most} requests of each point"
        if min(known) > limit:
            return f"no measured load keeps {quantity} {limit:g} s: the best was {min(known):.3g} s"
    return f"no measured load keeps {' and '.join(f'{q} {limit:g} s' for q, limit in limits.items())} together"
