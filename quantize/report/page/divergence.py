"""Divergence by position: how far next-token distributions are from the baseline's, by tokens of context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from quantize.report.grid import Grid
from quantize.report.page.forest import WIDTH
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.plot import Scale, figure, label, line, logarithmic, polyline, power, short, with_numbers
from quantize.report.page.reading import Positions
from quantize.report.page.tables import fitting, grid_of, table

__all__ = ["divergences"]

_HEIGHT, _TOP, _FOOT, _LEFT = 190.0, 26.0, 38.0, 52.0
_PANELS, _BINS, _ARMS = 5, 24, 24
#: The pixels that a letter of a panel's name takes.
_LETTER = 7.6
#: All texts together take so many bytes.
_ROOM = 240_000
#: Nothing smaller is told apart on a plot: float32 itself scatters more.
_FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class _Bin:
    """Positions with like many tokens of context: `start` to `stop` tokens, and what their divergences are (nats)."""

    start: int
    stop: int
    n: int
    median: float
    mean: float
    tail: float


def divergences(positions: Sequence[Positions]) -> Markup | None:
    """For each text a panel for every variant; None where no text was measured."""
    evals = list(dict.fromkeys(found.eval for found in positions))
    if not evals:
        return None
    each = (_eval(name, [found for found in positions if found.eval == name]) for name in evals)
    drawn, left = fitting(each, _ROOM)
    return joined(drawn, element("p", f"{left} more texts are left out.", class_="note") if left else None)


def _eval(name: str, positions: Sequence[Positions]) -> Markup:
    drawn = positions[:_ARMS]
    binned = [_binned(found) for found in drawn]
    title = f"Divergence on {name} by tokens of context, nats"
    values = [value for bins in binned for held in bins for value in (held.median, held.mean, held.tail)]
    up = logarithmic([max(_FLOOR, value) for value in values], _HEIGHT - _FOOT, _TOP, most=6)
    context = [end for bins in binned for held in bins for end in (held.start, held.stop)]
    figures = []
    room = min(300.0, (WIDTH - _LEFT) / min(_PANELS, len(drawn)))
    for number in range(0, len(drawn), _PANELS):
        shown = list(zip(drawn, binned, strict=True))[number : number + _PANELS]
        parts: list[Child] = []
        for place, (found, bins) in enumerate(shown):
            start = _LEFT + place * room
            across = logarithmic([1.0, *context], start, start + room - 22, most=5)
            parts += _panel(found, bins, across, up, first=place == 0)
        told = "Lines: the mean, the median and, dotted, the 95th percentile of the positions. Numbers beneath."
        size = (_LEFT + len(shown) * room, _HEIGHT)
        figures.append(figure(f"divergence-{name}-{number}", title, told, size, *parts))
    numbers = table(_numbers(drawn, binned), title, quiet=True)
    bound = any(found.bound for found in positions)
    key = "Thick: the mean; thin: the median; dotted: the 95th percentile. Both scales are logarithmic."
    least = (
        " An engine gives the likeliest tokens only: its values are what the divergence is at least." if bound else ""
    )
    dropped = len(positions) - _ARMS
    return joined(
        element("h3", title),
        element("p", key + least, class_="caption"),
        figures[:-1],
        with_numbers(figures[-1], numbers, title),
        element("p", f"{dropped} more variants are not drawn.", class_="note") if dropped > 0 else None,
    )


def _binned(found: Positions) -> list[_Bin]:
    """Bins that grow with the context, as there are fewer differences the longer it is; none without a position."""
    import numpy as np

    most = int(found.context.max())
    edges = np.unique(np.round(np.geomspace(1, most + 1, _BINS + 1)).astype(np.int64))
    bins = []
    for start, stop in pairwise(edges):
        held = found.nats[(found.context >= start) & (found.context < stop)]
        if len(held):
            median, tail = (float(value) for value in np.quantile(held, [0.5, 0.95]))
            bins.append(_Bin(int(start), int(stop) - 1, len(held), median, float(held.mean()), tail))
    return bins


def _panel(found: Positions, bins: Sequence[_Bin], across: Scale, up: Scale, *, first: bool) -> Iterator[Markup]:
    room = int((across.end - across.start) / _LETTER)
    yield label(
        (across.start + across.end) / 2,
        14,
        short(found.variant, room),
        "head",
        "middle",
    )
    for value in up.ticks:
        yield line(across.start, up.at(value), across.end, up.at(value), "rule")
        if first:
            yield label(across.start - 6, up.at(value) + 4, power(value), "tick", "end")
    yield line(across.start, up.start, across.end, up.start, "axis")
    for value in across.ticks:
        yield line(across.at(value), up.start, across.at(value), up.start + 4, "axis")
        yield label(across.at(value), up.start + 17, f"{value:g}", "tick", "middle")
    yield label(across.end, _HEIGHT - 4, "tokens of context", "tick", "end")
    for class_, read in (("arm tail", "tail"), ("arm median", "median"), ("arm variant", "mean")):
        points = [
            (across.at(math.sqrt(held.start * held.stop)), up.at(max(_FLOOR, getattr(held, read)))) for held in bins
        ]
        yield polyline(points, class_)


def _numbers(drawn: Sequence[Positions], binned: Sequence[Sequence[_Bin]]) -> Grid:
    rows = [
        (
            found.variant,
            f"{held.start}–{held.stop}",
            *(f"{v:.3g}" for v in (held.mean, held.median, held.tail)),
            f"{held.n:,}",
        )
        for found, bins in zip(drawn, binned, strict=True)
        for held in bins
    ]
    return grid_of(("variant", "tokens of context", "mean", "median", "95 %", "positions"), rows)
