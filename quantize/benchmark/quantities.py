"""From rows to numbers: the times, rates and shares of one load, of one arm.

    TTFT       first token - scheduled arrival: what a request waited at the client or in a queue counts
    TPOT       (end - first token) / (output tokens - 1)
    ITL        the gaps between the tokens of an answer, of all answers together
    E2E        end - scheduled arrival
    rates      over the window from the first scheduled arrival to the last end: requests answered whole, their output
               tokens, and `goodput`, the requests that also keep the SLO
    failures   the share of requests that were not answered whole; they have no part in the rates

A request that failed took longer than all that were answered: were it left out of the percentiles, an arm that gives
its slowest requests up would look fast. A percentile that one of them decides is not known.

Percentiles are by linear interpolation between the two nearest ranks (R. Hyndman and Y. Fan, The American Statistician
50 (1996) 361-365, definition 7, numpy's `linear`). A sample of n supports percentile p where n(100 - p)/100 of it lie
beyond: 1 within a block, 10 in what is reported of all blocks together, so that p99 needs 1000 requests; the median is
always given. What was sent counts, answered or not: a few failures do not take a percentile away.

Rows are those of `rows.py`; warm-up rows are left out here. Times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, Literal, Protocol

from quantize.benchmark.blockfile import CurvePoint
from quantize.handed import Row

__all__ = [
    "IN_BLOCK",
    "POOLED",
    "RATES",
    "TIMES",
    "curve_point",
    "direction_of",
    "drifted",
    "measured",
    "percentiles",
    "quantities",
    "rates",
    "saturated",
    "supported",
    "unit_of",
]

#: How many of a sample must lie beyond a percentile that is reported.
IN_BLOCK, POOLED = 1, 10

TIMES = ("ttft", "tpot", "itl", "e2e")
RATES = ("output_tokens_per_second", "requests_per_second", "goodput", "failures")
_PERCENTS = (50, 90, 95, 99)

#: Of a load that was too much: how many requests, and which part of them, are left when the last arrives, and how many
#: times longer the last ones take.
_LEFT, _LEFT_SHARE, _LONGER = 4, 12, 1.3
#: Fewer values have no median that could have drifted.
_LEAST_HALF = 2

_UNITS = {
    "output_tokens_per_second": "tokens/s",
    "requests_per_second": "requests/s",
    "goodput": "requests/s",
    "failures": "share",
    "memory_peak": "bytes",
    "memory_kv": "bytes",
    "concurrency": "requests",
}
_HIGHER = {"output_tokens_per_second", "requests_per_second", "goodput", "concurrency"}


class Limits(Protocol):
    """What a request must keep to count as good, in seconds; None does not count."""

    @property
    def ttft(self) -> float | None: ...

    @property
    def tpot(self) -> float | None: ...

    @property
    def e2e(self) -> float | None: ...


def unit_of(quantity: str) -> str:
    """The unit of a quantity, by its name without `load.` and the load."""
    return _UNITS.get(quantity, "seconds")


def direction_of(quantity: str) -> Literal["higher", "lower"]:
    """Which way is better."""
    return "higher" if quantity in _HIGHER else "lower"


def supported(percent: int, sample: int, beyond: int) -> bool:
    """Whether `sample` values tell the percentile: `beyond` of them lie above it."""
    return sample > 0 and (percent == 50 or sample * (100 - percent) >= 100 * beyond)


def quantities(rows: Sequence[Row], slo: Limits | None = None) -> dict[str, float]:
    """All quantities of one load of one arm in one block."""
    return {**percentiles(rows, IN_BLOCK), **rates(rows, slo)}


def percentiles(rows: Sequence[Row], beyond: int) -> dict[str, float]:
    """`ttft_p50` and so on, as far as the sample supports them; rows of several blocks are pooled."""
    import numpy as np

    sent = measured(rows)
    answered = [row for row in sent if row["error.type"] is None]
    found: dict[str, float] = {}
    for name in TIMES:
        values = [value for row in answered for value in _TIME_OF[name](row)]
        # Of gaps there are many to a request: the sample is theirs.
        lost = (len(sent) - len(answered)) * (len(values) // len(answered) if answered else 1)
        size = len(values) + lost
        percents = [percent for percent in _PERCENTS if values and supported(percent, size, beyond)]
        percents = [percent for percent in percents if math.ceil(percent * (size - 1) / 100) < len(values)]
        if percents:
            # Above every rank that is asked for, whatever their values are.
            values += [max(values)] * lost
            points = np.percentile(np.asarray(values, dtype=np.float64), percents, method="linear")
            found |= {f"{name}_p{percent}": float(point) for percent, point in zip(percents, points, strict=True)}
    return found


def rates(rows: Sequence[Row], slo: Limits | None = None) -> dict[str, float]:
    """Requests and tokens a second, goodput where there is an SLO, and the share of failures, of one load of one arm.

    Rates are 0 where nothing was answered.
    """
    sent = measured(rows)
    answered = [row for row in sent if row["error.type"] is None]
    window = _window(sent)
    counts = {
        "output_tokens_per_second": sum(row["gen_ai.usage.output_tokens"] for row in answered),
        "requests_per_second": len(answered),
    }
    if slo is not None:
        counts["goodput"] = sum(_keeps(row, slo) for row in answered)
    found = {name: count / window if window > 0 else 0.0 for name, count in counts.items()}
    if sent:
        found["failures"] = (len(sent) - len(answered)) / len(sent)
    return found


def curve_point(arm: str, streams: int, rows: Sequence[Row]) -> CurvePoint:
    """One closed loop of a curve."""
    times, sent = percentiles(rows, IN_BLOCK), measured(rows)
    rate = rates(rows)
    return CurvePoint(
        arm=arm,
        streams=streams,
        requests=len(sent),
        requests_per_second=rate["requests_per_second"],
        output_tokens_per_second=rate["output_tokens_per_second"],
        ttft_p50=times.get("ttft_p50"),
        ttft_p95=times.get("ttft_p95"),
        tpot_p50=times.get("tpot_p50"),
        e2e_p50=times.get("e2e_p50"),
        failures=sum(row["error.type"] is not None for row in sent),
    )


def saturated(rows: Sequence[Row]) -> bool:
    """Whether one arm did not keep up with one open load: its queue grew for as long as requests arrived.

    Two things must be seen. Of the requests, a twelfth (and 4) are under way when the last arrives: at 1.1 times what a
    server can do an eleventh is left over. And requests take longer at the end: the median E2E of the last third that
    arrived is 1.3 times that of the first, which tells a growing queue from a server that answers many at a time. In a
    closed loop the second is not seen. By chance, of 64 Poisson arrivals at 70 % of what one server can do, it is said
    of one load in 20, and at 120 % of nine in ten: so ask more blocks than one.
    """
    sent = sorted(measured(rows), key=lambda row: float(row["scheduled"]))
    if not sent:
        return False
    third = max(1, len(sent) // 3)
    took = [finished(row) - float(row["scheduled"]) for row in sent]
    left = sum(finished(row) > float(sent[-1]["scheduled"]) for row in sent)
    return left >= max(_LEFT, len(sent) / _LEFT_SHARE) and median(took[-third:]) >= _LONGER * median(took[:third])


def drifted(rows: Sequence[Row], drift: float) -> str | None:
    """A sentence where the halves of one closed load differ by more than the share `drift` in their median TPOT.

    Halves by the order in which requests were sent. Each TPOT is taken beside those of requests of the same lengths, so
    that longer prompts in one half are no drift; lengths that come once tell nothing. At the end of a load fewer and
    fewer are under way, and are answered faster for it: what was still under way when the last one started is left out,
    where it was more than that one. Not for open loads, where by chance more arrive in one half than in the other.
    """
    sent = sorted(measured(rows), key=lambda row: int(row["place"]))
    begun = max((float(row["scheduled"]) for row in sent), default=0.0)
    steady = [row for row in sent if finished(row) <= begun]
    if len(sent) - len(steady) <= 1:
        steady = sent
    beside = _beside_their_likes([row for row in steady if row["error.type"] is None])
    half = len(beside) // 2
    if half < _LEAST_HALF:
        return None
    change = math.exp(median(beside[-half:]) - median(beside[:half])) - 1
    if abs(change) <= drift:
        return None
    return f"the second half's median TPOT is {change:+.1%} off the first half's, and {drift:.1%} are allowed"


def _beside_their_likes(rows: Sequence[Row]) -> list[float]:
    """The logarithm of each TPOT less the mean of those of the same lengths, where there are two and more."""
    logs = [(_lengths(row), math.log(tpot(row))) for row in rows if tpot(row) > 0]
    groups: dict[tuple[Any, Any], list[float]] = {}
    for lengths, value in logs:
        groups.setdefault(lengths, []).append(value)
    return [value - math.fsum(groups[key]) / len(groups[key]) for key, value in logs if len(groups[key]) > 1]


def _lengths(row: Row) -> tuple[Any, Any]:
    return row["gen_ai.usage.input_tokens"], row["gen_ai.usage.output_tokens"]


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows that count: without those of the warm-up."""
    return [row for row in rows if not row["warmup"]]


def finished(row: Row) -> float:
    """When a request was over, answered or not; infinite where nobody knows."""
    last: list[float] = [*(row["tokens"] or ())[-1:], *([row["end"]] if row["end"] is not None else [])]
    return max(last, default=math.inf)


def ttft(row: Row) -> float:
    """Seconds from the scheduled arrival to the first token."""
    return float(row["tokens"][0] - row["scheduled"])


def tpot(row: Row) -> float:
    """Seconds for each token after the first."""
    return float((row["end"] - row["tokens"][0]) / (row["gen_ai.usage.output_tokens"] - 1))


def e2e(row: Row) -> float:
    """Seconds from the scheduled arrival to the end."""
    return float(row["end"] - row["scheduled"])


def _gaps(row: Row) -> list[float]:
    return [later - earlier for earlier, later in pairwise(row["tokens"])]


_TIME_OF: dict[str, Callable[[Row], Sequence[float]]] = {
    "ttft": lambda row: [ttft(row)],
    "tpot": lambda row: [tpot(row)],
    "itl": _gaps,
    "e2e": lambda row: [e2e(row)],
}


def _window(sent: Sequence[Row]) -> float:
    """Seconds from the first scheduled arrival to the last end that is known."""
    ends: list[float] = [end for row in sent if math.isfinite(end := finished(row))]
    return max(ends) - min(float(row["scheduled"]) for row in sent) if ends else 0.0


def _keeps(row: Row, slo: Limits) -> bool:
    held: list[tuple[Any, float]] = [(slo.ttft, ttft(row)), (slo.tpot, tpot(row)), (slo.e2e, e2e(row))]
    return all(limit is None or value <= limit for limit, value in held)
