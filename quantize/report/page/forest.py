"""Forest plots: a row for each quantity, a panel for each arm, in every cell a value, its interval and its margin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quantize.report.page.markup import Markup, element
from quantize.report.page.plot import Scale, figure, label, line, linear, logarithmic, mark, short, spaced, span

__all__ = ["Cell", "Panel", "forests", "scale_of", "strip"]

WIDTH = 1040
_ROW, _HEAD, _FOOT, _GAP = 22, 30, 26, 22
_LEAST_PANEL, _MOST_PANELS = 150, 6
#: How much of a label is drawn; the table beneath has it whole.
_LABEL = 30
#: The pixels that a letter of a panel's name takes.
_LETTER = 7.6


@dataclass(frozen=True, slots=True)
class Cell:
    """A value with its interval; `margin` is the limit of the gate that looks at it, `dots` the sample behind it.

    `outcome` is that gate's, empty where none looks. `told` is shown where a pointer rests on it.
    """

    value: float
    low: float | None
    high: float | None
    told: str
    outcome: str = ""
    margin: float | None = None
    dots: tuple[float, ...] = ()

    def ends(self) -> list[float]:
        """The value and the ends of its interval."""
        return [end for end in (self.low, self.value, self.high) if end is not None]


@dataclass(frozen=True, slots=True)
class Panel:
    """An arm: its name, and a cell for each row (None: not measured). `reference` is drawn through all rows."""

    name: str
    cells: tuple[Cell | None, ...]
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class _Plot:
    labels: Sequence[str]
    left: float
    height: float
    tick: Callable[[float], str]
    neutral: float


def scale_of(cells: Sequence[Cell], *, log: bool, references: Sequence[float] = ()) -> Callable[[float, float], Scale]:
    """A scale for these cells between two pixels. Very wide intervals do not decide: they leave it with an arrow."""
    neutral = 1.0 if log else 0.0
    margins = [*references, *(cell.margin for cell in cells if cell.margin is not None)]
    # A little of what lies beyond a margin is always seen.
    firm = [neutral, *(1.25 * margin if not log else margin for margin in margins), *(cell.value for cell in cells)]
    if log:
        return lambda start, end: logarithmic(
            [*firm, *(end for cell in cells for end in cell.ends())], start, end, least=0.1, most=5
        )
    reach = 2.5 * max([abs(value) for value in firm] + [0.01])
    ends = [max(-reach, min(reach, end)) for cell in cells for end in cell.ends()]
    return lambda start, end: linear([*firm, *ends], start, end, ticks=6, tight=True)


def forests(
    name: str,
    title: str,
    labels: Sequence[str],
    panels: Sequence[Panel],
    tick: Callable[[float], str],
    *,
    log: bool = False,
) -> Iterator[Markup]:
    """The figures: as many as it takes with a few panels beside each other, all on one scale."""
    held = [cell for panel in panels for cell in panel.cells if cell is not None]
    references = [panel.reference for panel in panels if panel.reference is not None]
    make = scale_of(held, log=log, references=references)
    left = 16 + 6.6 * max([min(len(text), _LABEL) for text in labels] + [8])
    each = min(_MOST_PANELS, max(1, int((WIDTH - left) // _LEAST_PANEL)))
    height = _HEAD + _ROW * len(labels) + _FOOT
    plot = _Plot(labels, left, height, tick, 1.0 if log else 0.0)
    room = min((WIDTH - left) / max(1, min(each, len(panels))), 420)
    for number in range(0, len(panels), each):
        shown = panels[number : number + each]
        parts: list[Markup] = list(_labels(plot, left + room * len(shown)))
        for place, panel in enumerate(shown):
            start = left + place * room + _GAP
            parts.append(_panel(plot, panel, make(start, left + (place + 1) * room - 4)))
        told = f"Rows: {', '.join(labels)}. Panels: {', '.join(panel.name for panel in shown)}. Numbers beneath."
        yield figure(f"{name}-{number}", title, told, (left + room * len(shown) + 4, height), *parts)


def strip(name: str, title: str, cell: Cell, scale: Scale, size: tuple[float, float]) -> Markup:
    """One cell as a figure of its own, on a scale that others share."""
    width, height = size
    parts = [
        line(scale.at(0.0), 0, scale.at(0.0), height, "neutral"),
        *_beyond(scale, cell.margin, 0, height),
        *_drawn(scale, cell, height / 2),
    ]
    return figure(name, title, cell.told, (width, height), *parts, small=True)


def _labels(plot: _Plot, right: float) -> Iterator[Markup]:
    for number, text in enumerate(plot.labels):
        y = _HEAD + _ROW * (number + 0.5)
        yield line(0, y + _ROW / 2, right, y + _ROW / 2, "rule")
        yield label(0, y + 4, short(text, _LABEL), "row")


def _panel(plot: _Plot, panel: Panel, scale: Scale) -> Markup:
    top, bottom = _HEAD, plot.height - _FOOT
    room = int((scale.end - scale.start + _GAP) / _LETTER)
    parts = [
        label((scale.start + scale.end) / 2, 14, short(panel.name, room), "head", "middle"),
        *_beyond(scale, panel.reference, top, bottom),
        line(scale.at(plot.neutral), top, scale.at(plot.neutral), bottom, "neutral"),
    ]
    numbered = spaced(scale, 34, plot.neutral)
    for value in scale.ticks:
        x = scale.at(value)
        parts.append(line(x, bottom, x, bottom + 4, "axis"))
        if value in numbered:
            parts.append(label(x, bottom + 17, plot.tick(value), "tick", "middle"))
    for number, cell in enumerate(panel.cells):
        y = _HEAD + _ROW * (number + 0.5)
        if cell is None:
            parts.append(label(scale.at(plot.neutral), y + 4, "–", "nothing", "middle"))
            continue
        if cell.margin is not None and cell.margin != panel.reference:
            x = scale.at(cell.margin)
            parts.append(line(x, y - _ROW / 2, x, y + _ROW / 2, "margin"))
        parts += _drawn(scale, cell, y)
    return element("g", parts)


def _beyond(scale: Scale, margin: float | None, top: float, bottom: float) -> Iterator[Markup]:
    """The side of a margin on which a difference is not accepted: left of it for points, right of it for ratios."""
    if margin is None:
        return
    x = scale.at(margin)
    low, high = (x, scale.end) if scale.log else (scale.start, x)
    yield element("rect", x=low, y=top, width=max(0.0, high - low), height=bottom - top, class_="beyond")
    yield line(x, top, x, bottom, "margin")


def _drawn(scale: Scale, cell: Cell, y: float) -> Iterator[Markup]:
    for dot in cell.dots:
        yield element("circle", cx=scale.at(dot), cy=y, r=1.6, class_="dot")
    if cell.low is not None and cell.high is not None:
        yield span(scale.at(cell.low), scale.at(cell.high), y, f"span {cell.outcome}")
        if not scale.holds(cell.low):
            yield element("path", d=f"M{scale.start + 6:.1f} {y - 4:.1f}l-6 4l6 4", class_=f"span {cell.outcome}")
        if not scale.holds(cell.high):
            yield element("path", d=f"M{scale.end - 6:.1f} {y - 4:.1f}l6 4l-6 4", class_=f"span {cell.outcome}")
    yield mark(cell.outcome or "plain", scale.at(cell.value), y, cell.told, 4)
