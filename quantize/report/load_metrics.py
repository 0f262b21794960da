"""What was measured under load, by name and in words: `load.ttft_p95/traffic` is "TTFT p95 at traffic"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantize.evidence import LOAD, Comparison
from quantize.report.numbers import amount, change, interval, seconds, size
from quantize.verdict import Finding

__all__ = [
    "SHOWN",
    "compared",
    "judged_limits",
    "labelled",
    "limits_of",
    "loads_of",
    "named",
    "quantity_of",
    "shown_value",
    "split",
    "under_load",
]

_TIMES = ("ttft", "tpot", "itl", "e2e")
_WORDS = {
    "output_tokens_per_second": "output tokens/s",
    "requests_per_second": "requests/s",
    "goodput": "goodput (requests/s)",
    "failures": "failed requests",
    "memory_peak": "peak memory",
    "memory_kv": "memory for keys and values",
    "concurrency": "longest requests that fit",
}
#: The quantities of a load that a report shows; others only where a gate looks at them.
SHOWN = (
    *(f"{time}_{percentile}" for time in ("ttft", "tpot", "e2e") for percentile in ("p50", "p95")),
    "output_tokens_per_second",
    "goodput",
    "failures",
)


def split(metric: str) -> tuple[str, str]:
    """The quantity and the load of `load.<quantity>/<load>`; the load is empty where it is the arm's own."""
    quantity, _, load = metric.partition(".")[2].partition("/")
    return quantity, load


def under_load(metric: str) -> bool:
    """Whether a quantity was measured under load."""
    return metric.partition(".")[0] == LOAD


def quantity_of(metric: str) -> str:
    """The quantity as it is written: `TTFT p95`, `output tokens/s`."""
    quantity, _ = split(metric)
    time, _, percentile = quantity.partition("_")
    return f"{time.upper()} {percentile}" if time in _TIMES else _WORDS.get(quantity, quantity)


def named(metric: str) -> str:
    """The quantity and its load in a sentence: `TTFT p95 at traffic`."""
    _, load = split(metric)
    return f"{quantity_of(metric)} at {load}" if load else quantity_of(metric)


def labelled(metric: str) -> str:
    """The quantity and its load in a table's row: `traffic: TTFT p95`."""
    _, load = split(metric)
    return f"{load}: {quantity_of(metric)}" if load else quantity_of(metric)


def loads_of(metrics: Iterable[str]) -> list[str]:
    """The loads, in the order first met."""
    return list(dict.fromkeys(load for metric in metrics if under_load(metric) and (load := split(metric)[1])))


def shown_value(metric: str, value: float) -> str:
    """One arm's value with its unit, where the quantity's name does not say it."""
    quantity, _ = split(metric)
    if quantity.partition("_")[0] in _TIMES:
        return seconds(value)
    if quantity.startswith("memory_"):
        return size(value)
    return amount(value, "share") if quantity == "failures" else amount(value, "")


def limits_of(comparison: Comparison, findings: Sequence[Finding]) -> tuple[float | None, float | None]:
    """The interval that decided on a ratio: that of the gate that looks at it, else the comparison's own."""
    return judged_limits(comparison.metric, findings) or (comparison.low, comparison.high)


def judged_limits(metric: str, findings: Sequence[Finding]) -> tuple[float, float] | None:
    """The limits in the finding of a gate on the ratio itself; a service level's are of the variant's own value."""
    for finding in findings:
        low, high = finding.numbers.get("lower"), finding.numbers.get("upper")
        if (finding.metric, finding.kind) == (metric, "latency") and isinstance(low, float) and isinstance(high, float):
            return low, high
    return None


def compared(comparison: Comparison, findings: Sequence[Finding] = ()) -> str:
    """The ratio with its interval as a table shows it; of failures, points."""
    low, high = limits_of(comparison, findings)
    if comparison.unit != "ratio":
        return f"{change(comparison)} {interval(comparison.unit, low, high)}".rstrip()
    around = f" ({low:.2f}, {high:.2f})" if low is not None and high is not None else ""
    return f"×{comparison.difference:.2f}{around}"
