"""What is gained against what is lost: bytes, and times where they were measured, against quality, each arm a point.

The line is the front: no arm on it is beaten in both by another. It joins the points themselves; the intervals say how
far they are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quantize.evidence import Comparison
from quantize.report.load_metrics import limits_of, named
from quantize.report.numbers import change, interval, size, times
from quantize.report.page.known import compared, evidences, judge_of, qualities, size_of
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.naming import Box, apart, names
from quantize.report.page.plot import (
    Scale,
    figure,
    key,
    label,
    line,
    linear,
    logarithmic,
    mark,
    signed,
    spaced,
    with_numbers,
)
from quantize.report.page.tables import fitting, grid_of, table
from quantize.report.sections import limits
from quantize.report.speed import speed_of
from quantize.run import RunRecord, VariantRecord

__all__ = ["trade_off"]

_WIDTH, _HEIGHT = 500.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 16.0, 16.0, 44.0
#: So many arms are drawn, and so many bytes do all plots take.
_ARMS, _ROOM = 50, 180_000
_CAPTION = (
    "Lines through a mark are the interval that decided; shaded is what lies beyond the margin; the dotted line joins "
    "the arms that no other beats in both. Up is better, left is better. Marks of one size stand beside each other."
)
#: From so many megabytes on, sizes are drawn in gigabytes.
_GIGA = 2000


@dataclass(frozen=True, slots=True)
class _Arm:
    """A point: its name, its outcome, and for both axes the value with its interval, better where smaller, larger."""

    name: str
    outcome: str
    x: tuple[float, float | None, float | None]
    y: tuple[float, float | None, float | None]


@dataclass(frozen=True, slots=True)
class _Axis:
    """What is drawn along one side: its name, how a tick is written, and whether by logarithms."""

    name: str
    tick: Callable[[float], str]
    log: bool = False


def trade_off(record: RunRecord) -> Markup:
    """A plot for each quality and each of size and the times that tell variants apart."""
    figures, left = fitting(_plots(record), _ROOM)
    if not figures:
        return Markup("")
    more = len(record.variants) - _ARMS
    return joined(
        key(),
        element("p", _CAPTION, class_="caption"),
        element("div", figures, class_="pair"),
        element("p", f"The first {_ARMS} variants are drawn, and {more} are not.", class_="note") if more > 0 else None,
        element("p", f"{left} more plots are left out.", class_="note") if left else None,
    )


def _plots(record: RunRecord) -> Iterator[Markup]:
    for metric in qualities(record):
        if any(size_of(evidence) is not None for _, evidence in evidences(record)):
            yield _against_size(record, metric)
        for time in speed_of(record).metrics():
            found = _against_time(record, metric, time)
            if found is not None:
                yield found


def _against_size(record: RunRecord, metric: str) -> Markup:
    arms = [_baseline(name, (value, None, None), metric, record) for name, value in _baseline_sizes(record)]
    for variant, found in _measured(record, metric):
        bytes_ = size_of(variant.evidence) if variant.evidence is not None else None
        if bytes_ is not None:
            arms.append(_arm(variant, (bytes_ / 1e6, None, None), found))
    large = max(arm.x[0] for arm in arms) >= _GIGA
    axis = _Axis("weights, GB", lambda v: f"{v / 1000:g}") if large else _Axis("weights, MB", _plain)
    return _plot(record, metric, f"size-{metric}", "size of the weights", arms, axis)


def _plain(value: float) -> str:
    return f"{value:g}"


def _against_time(record: RunRecord, metric: str, time: str) -> Markup | None:
    arms = [_baseline("baseline", (1.0, None, None), metric, record)]
    for variant, found in _measured(record, metric):
        ratio = compared(variant.evidence).get(time)
        if ratio is not None:
            arms.append(_arm(variant, (ratio.difference, *limits_of(ratio, variant.verdict.findings)), found))
    if len(arms) == 1:  # the baseline alone
        return None
    axis = _Axis(f"{named(time)}, ratio to the baseline's", lambda v: f"×{v:g}", log=True)
    return _plot(record, metric, f"{time}-{metric}", named(time), arms, axis)


def _measured(record: RunRecord, metric: str) -> Iterator[tuple[VariantRecord, Comparison]]:
    for variant, evidence in evidences(record)[:_ARMS]:
        found = compared(evidence).get(metric)
        if found is not None:
            yield variant, found


def _baseline_sizes(record: RunRecord) -> list[tuple[str, float]]:
    """The baseline as each engine loads it, once where all load the same bytes."""
    found: dict[float, list[str]] = {}
    for variant, evidence in evidences(record):
        held = size_of(evidence, baseline=True)
        if held is not None and variant.engine not in found.setdefault(held / 1e6, []):
            found[held / 1e6].append(variant.engine)
    return [(f"baseline in {', '.join(e)}" if len(found) > 1 else "baseline", value) for value, e in found.items()]


def _baseline(name: str, x: tuple[float, float | None, float | None], metric: str, record: RunRecord) -> _Arm:
    """The baseline differs from itself by nothing; where it was measured again, by what that gave."""
    again = next((c for _, evidence in evidences(record) for c in evidence.noise if c.metric == metric), None)
    low, high = (_seen(again, end) for end in (again.low, again.high)) if again is not None else (None, None)
    return _Arm(name, "baseline", x, (0.0, low, high))


def _arm(variant: VariantRecord, x: tuple[float, float | None, float | None], found: Comparison) -> _Arm:
    low, high = limits(found, variant.verdict.findings)
    ends = [_seen(found, end) for end in (found.difference, low, high)]
    return _Arm(variant.name, variant.verdict.outcome, x, (ends[0] or 0.0, ends[1], ends[2]))


def _seen(comparison: Comparison, value: float | None) -> float | None:
    """A difference so that more is better: points, or by how many per cent the perplexity fell."""
    if value is None:
        return None
    return 100 * value if comparison.unit == "share" else -100 * (math.exp(value) - 1)


def _plot(record: RunRecord, metric: str, name: str, what: str, arms: Sequence[_Arm], axis: _Axis) -> Markup:
    points = any(found.unit == "share" for _, found in _measured(record, metric))
    findings = [f for v in record.variants for f in v.verdict.findings]
    gate = judge_of(metric, findings, "noninferiority")
    margin = gate.numbers.get("margin") if gate is not None else None
    held = -100 * margin if isinstance(margin, float) else None
    quality = _Axis(f"{metric}, points" if points else f"{metric}, % better", signed)
    title = f"{metric} against {what}"
    xs = [end for arm in arms for end in arm.x if end is not None]
    start, stop = _LEFT, _WIDTH - _RIGHT
    across = logarithmic(xs, start, stop, least=0.1) if axis.log else linear([0.0, *xs], start, stop)
    # An interval that is much wider than all differences leaves the plot: the differences are what is to be seen.
    reach = 2.5 * max([abs(arm.y[0]) for arm in arms] + [abs(held or 0.0), 0.2])
    ys = [max(-reach, min(reach, end)) for arm in arms for end in arm.y if end is not None]
    up = linear([0.0, *ys, *([1.2 * held] if held is not None else [])], _HEIGHT - _BOTTOM, _TOP, ticks=7, tight=True)
    parts: list[Child] = [*_frame(across, up, axis, quality)]
    taken = []
    if held is not None:
        edge = up.at(held)
        parts.append(element("rect", x=start, y=edge, width=stop - start, height=up.start - edge, class_="beyond"))
        parts.append(line(start, edge, stop, edge, "margin"))
        parts.append(label(start + 5, up.start - 5, "beyond the margin", "tick"))
        taken.append(Box(start, up.start - 16, start + 104, up.start))
    parts += [_front(arms, across, up), *_arms(arms, across, up, taken)]
    told = f"Lower is worse, left is {'faster' if axis.log else 'smaller'}. Numbers beneath."
    drawn = figure(f"trade-{name}", title, told, (_WIDTH, _HEIGHT), *parts)
    return joined(element("div", element("h3", title), with_numbers(drawn, _numbers(record, metric, title), title)))


def _frame(across: Scale, up: Scale, axis: _Axis, quality: _Axis) -> Iterator[Markup]:
    yield line(across.start, up.start, across.end, up.start, "axis")
    numbered = spaced(across, 36, 1.0 if axis.log else 0.0)
    for value in across.ticks:
        x = across.at(value)
        yield line(x, up.start, x, up.start + 4, "axis")
        if value in numbered:
            yield label(x, up.start + 17, axis.tick(value), "tick", "middle")
    for value in up.ticks:
        yield line(across.start, up.at(value), across.end, up.at(value), "neutral" if value == 0 else "rule")
        yield label(across.start - 6, up.at(value) + 4, quality.tick(value), "tick", "end")
    yield label(across.end, _HEIGHT - 6, axis.name, "head", "end")
    middle = (up.start + up.end) / 2
    yield label(13, middle, quality.name, "head", "middle", transform=f"rotate(-90 13 {middle:.1f})")


def _front(arms: Sequence[_Arm], across: Scale, up: Scale) -> Markup:
    """The line through the arms that no other beats in both, from the smallest on."""
    best, found = -math.inf, []
    for arm in sorted(arms, key=lambda arm: (arm.x[0], -arm.y[0])):
        if arm.y[0] > best:
            best = arm.y[0]
            found.append((across.at(arm.x[0]), up.at(arm.y[0])))
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in found[1:])
    return element("path", d=f"M{found[0][0]:.1f} {found[0][1]:.1f}{steps}", class_="front")


def _arms(arms: Sequence[_Arm], across: Scale, up: Scale, taken: Sequence[Box]) -> Iterator[Markup]:
    """The intervals, then the marks, then the names where they hide least."""
    xs = apart([across.at(arm.x[0]) for arm in arms])
    places = [(arm, x, up.at(arm.y[0])) for arm, x in zip(arms, xs, strict=True)]
    spans = []
    for arm, x, y in places:
        for first, last in _ends(arm, (x, y), across, up):
            yield line(*first, *last, f"span {arm.outcome}")
            spans.append(Box(*first, *last))
    for arm, x, y in places:
        yield mark(arm.outcome, x, y, arm.name)
    frame = Box(across.start, up.end, across.end + 4, up.start)
    yield from names([(arm.name, x, y) for arm, x, y in places], frame, taken, spans)


_Place = tuple[float, float]


def _ends(arm: _Arm, at: _Place, across: Scale, up: Scale) -> Iterator[tuple[_Place, _Place]]:
    """Both intervals of an arm, from left to right and from above."""
    (x, y), (_, left, right), (_, low, high) = at, arm.x, arm.y
    if left is not None and right is not None:
        yield (across.at(left), y), (across.at(right), y)
    if low is not None and high is not None:
        yield (x, up.at(high)), (x, up.at(low))


def _numbers(record: RunRecord, metric: str, title: str) -> Markup:
    speed = speed_of(record).metrics()
    heads = ("variant", "outcome", "size", f"difference in {metric}", *(named(time) for time in speed))
    rows = []
    for variant, found in _measured(record, metric):
        held = compared(variant.evidence)
        bytes_ = size_of(variant.evidence) if variant.evidence is not None else None
        ratios = [
            times(held[time].difference, *limits_of(held[time], variant.verdict.findings)) if time in held else "–"
            for time in speed
        ]
        difference = f"{change(found)} {interval(found.unit, *limits(found, variant.verdict.findings))}".rstrip()
        told = size(bytes_) if bytes_ is not None else "–"
        rows.append((variant.name, variant.verdict.outcome, told, difference, *ratios))
    return table(grid_of(heads, rows, texts=2), title, quiet=True)
