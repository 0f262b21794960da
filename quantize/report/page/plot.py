"""What all plots share: scales and their ticks, marks that differ in shape as well as in colour, and the figure.

Plots are SVG drawn here: a page loads nothing. Lengths are in pixels of the figure, which is never drawn larger than it
is and scrolls where the paper is narrower. Colours come from the style sheet by class, so that they follow the theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantize.report.page.markup import Child, Markup, element

__all__ = [
    "Scale",
    "figure",
    "key",
    "label",
    "line",
    "linear",
    "logarithmic",
    "mark",
    "polyline",
    "power",
    "short",
    "sign",
    "signed",
    "spaced",
    "span",
    "with_numbers",
]

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` to pixels from `start` to `end`; by their logarithms with `log`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, held within the scale."""
        low, high, held = self._seen(self.low), self._seen(self.high), self._seen(value)
        share = (held - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether the value lies on the scale."""
        return self.low <= value <= self.high

    def _seen(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.log else value


def linear(values: Iterable[float], start: float, end: float, *, ticks: int = 5, tight: bool = False) -> Scale:
    """A scale that holds `values` between round ends or, with `tight`, with a little room at its ends."""
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = _step((high - low) / max(1, ticks - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [round(number * step, 12) for number in range(first, last + 1)]
    if tight:
        room = 0.03 * (high - low)
        low, high = low - room, high + room
        return Scale(low, high, start, end, tuple(value for value in marks if low <= value <= high))
    return Scale(marks[0], marks[-1], start, end, tuple(marks))


def logarithmic(values: Iterable[float], start: float, end: float, *, least: float = 0.0, most: int = 7) -> Scale:
    """A scale of positive `values` by their logarithms. `least` is the smallest span, as a share of the value 1."""
    found = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = min(found), max(found)
    if least:
        low, high = min(low, 1 / (1 + least)), max(high, 1 + least)
    if high / low < 1.001:
        low, high = low / 1.1, high * 1.1
    room = (high / low) ** 0.04
    low, high = low / room, high * room
    return Scale(low, high, start, end, _log_ticks(low, high, most), log=True)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in _STEPS if power * factor >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Round values: of each power of ten as many as there is room for; over less than a factor of 3, evenly spaced."""
    if high / low < 3:
        step = _step((high - low) / 4)
        return tuple(round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1) if n > 0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = tuple(value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high)
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def figure(
    name: str,
    title: str,
    told: str,
    size: tuple[float, float],
    *parts: Child | Iterable[Child],
    small: bool = False,
) -> Markup:
    """An SVG with a title and a description for those who do not see it.

    `name` is its own on the page; `size` is its width and height. But for a `small` one it stands in a box that scrolls
    sideways, by keyboard too.
    """
    width, height = size
    name = "-".join(name.split())
    drawn = element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", told, id=f"{name}-desc"),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
    return drawn if small else element("div", drawn, class_="figure", tabindex="0", role="group", aria_label=title)


def sign(outcome: str) -> Markup:
    """The mark of an outcome in a line of text, which says the same in words."""
    drawn = mark(outcome, 8, 8)
    return element("svg", drawn, width=16, height=16, viewBox="0 0 16 16", class_="sign-of", aria_hidden="true")


def key() -> Markup:
    """What the marks mean."""
    words = {
        "pass": "passed",
        "fail": "failed",
        "inconclusive": "not shown either way",
        "error": "in error",
        "baseline": "baseline",
    }
    return element("p", [element("span", sign(outcome), word) for outcome, word in words.items()], class_="key")


def with_numbers(drawn: Markup, table: Markup, what: str) -> Markup:
    """A figure, and the numbers that it shows."""
    numbers = element("details", element("summary", f"The numbers: {what}"), table, class_="numbers")
    return element("figure", drawn, numbers)


def spaced(scale: Scale, room: float, first: float) -> frozenset[float]:
    """The ticks that have room for a number, `room` pixels from each other: that at `first`, then those beside it."""
    order = sorted(scale.ticks, key=lambda value: (value != first, abs(scale.at(value) - scale.at(first))))
    found: list[float] = []
    for value in order:
        if all(abs(scale.at(value) - scale.at(other)) >= room for other in found):
            found.append(value)
    return frozenset(found)


def signed(value: float) -> str:
    """A tick of a difference, with its sign; 0 has none."""
    return f"{value:+g}".replace("-", "−") if value else "0"


def power(value: float) -> str:
    """A tick of a logarithmic scale; what is very small as a power of ten."""
    if value >= 1e-3:
        return f"{value:g}"
    digits, _, exponent = f"{value:.0e}".partition("e-")
    raised = exponent.lstrip("0").translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'' if digits == '1' else f'{digits}·'}10⁻{raised}"


def short(text: str, room: int) -> str:
    """The text in `room` characters: where it is longer, its beginning and its end, as names differ at either."""
    if len(text) <= room:
        return text
    head = room // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start", **more: str) -> Markup:
    """Text at a place; `anchor` is start, middle or end."""
    return element("text", text, x=x, y=y, class_=class_ or None, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def span(low: float, high: float, y: float, class_: str, *, end: float = 3) -> Markup:
    """A horizontal interval with ticks at its ends."""
    path = f"M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - end:.1f}v{2 * end:g}M{high:.1f} {y - end:.1f}v{2 * end:g}"
    return element("path", d=path, class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(outcome: str, x: float, y: float, told: str = "", size: float = 5) -> Markup:
    """An arm's point by what became of it: a disc passed, a cross failed, a ring was not shown, a square is an error.

    A bar is the baseline, and a small disc what no gate looks at. `told` is shown where a pointer rests on it.
    """
    tip = element("title", told) if told else None
    return element("g", _MARKS[outcome](x, y, size), tip, class_=f"mark {outcome}")


def _disc(x: float, y: float, size: float) -> Markup:
    return element("circle", cx=x, cy=y, r=size)


def _cross(x: float, y: float, size: float) -> Markup:
    return element(
        "path", d=f"M{x - size:.1f} {y - size:.1f}l{2 * size:g} {2 * size:g}m0 {-2 * size:g}l{-2 * size:g} {2 * size:g}"
    )


def _ring(x: float, y: float, size: float) -> Markup:
    return element("circle", cx=x, cy=y, r=size)


def _square(x: float, y: float, size: float) -> Markup:
    return element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size)


def _bar(x: float, y: float, size: float) -> Markup:
    return element("path", d=f"M{x:.1f} {y - 1.4 * size:.1f}v{2.8 * size:g}")


def _small(x: float, y: float, size: float) -> Markup:
    return _disc(x, y, 0.7 * size)


_MARKS: dict[str, Callable[[float, float, float], Markup]] = {
    "pass": _disc,
    "fail": _cross,
    "inconclusive": _ring,
    "error": _square,
    "baseline": _bar,
    "plain": _small,
}
