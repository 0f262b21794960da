"""How numbers are written, once for every table and sentence of a report."""

from __future__ import annotations

import math

from quantize.evidence import Comparison, Measurement

__all__ = ["amount", "change", "duration", "interval", "measured", "points", "probability", "seconds", "size", "times"]

_NOTHING = "–"


def measured(measurement: Measurement | None) -> str:
    """A measurement's value; a dash where there is none."""
    return amount(measurement.value, measurement.unit) if measurement is not None else _NOTHING


def amount(value: float, unit: str) -> str:
    """One arm's value in its unit; shares as per cent, everything else with three or four figures."""
    if unit.startswith("share"):
        return f"{100 * value:.1f} %"
    return _figures(value)


def change(comparison: Comparison) -> str:
    """The difference in its unit: points, a ratio, or the variant's distance from the baseline as it stands."""
    value = comparison.difference
    if comparison.unit == "share":
        return points(value)
    if comparison.unit == "share of items":
        return amount(value, comparison.unit)
    if comparison.unit == "ln ratio":
        return f"×{math.exp(value):.3f}"
    return f"×{value:.3f}" if comparison.unit == "ratio" else _figures(value)


def interval(unit: str, low: float | None, high: float | None) -> str:
    """`(low, high)` as `change` writes differences of that unit; empty where there is none."""
    if low is None or high is None:
        return ""
    if unit == "share":
        return f"({points(low)}, {points(high)})"
    if unit == "share of items":
        return f"({100 * low:.1f}, {100 * high:.1f})"
    if unit == "ln ratio":
        return f"({math.exp(low):.3f}, {math.exp(high):.3f})"
    return f"({low:.3f}, {high:.3f})" if unit == "ratio" else f"({_figures(low, 2)}, {_figures(high, 2)})"


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def probability(value: float) -> str:
    """A p value."""
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def size(value: float) -> str:
    """Bytes."""
    return f"{value / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """A time, rounded to what one cares about."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _figures(value: float, figures: int = 3) -> str:
    if value >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.{figures}g}".replace("-", "−")


def seconds(value: float) -> str:
    """A time under load, in milliseconds below one second."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.{1 if value < 0.1 else 0}f} ms"


def times(value: float, low: float | None = None, high: float | None = None) -> str:
    """A ratio in words, with its interval: `1.31 times (1.27 to 1.35)`."""
    around = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    return f"{value:.2f} times{around}"
