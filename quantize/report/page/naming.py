"""Where marks and their names stand in a plot of points: marks told apart, names clear of each other and of marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from quantize.report.page.markup import Markup
from quantize.report.page.plot import label, line, short

__all__ = ["Box", "apart", "names"]

#: The height of a name, how far it stands from its mark, and the pixels that one of its letters takes.
_LINE, _AWAY, _LETTER = 13.0, 9.0, 7.2
#: So much of a name is drawn, and where there are many less; a pointer on the mark, and the table beneath, have it all.
_LETTERS, _FEW_LETTERS, _MANY = 24, 15, 8
#: How near two marks may stand, and by how much all that share a place are moved apart at most.
_APART, _SPREAD = 5.0, 24.0
#: How many lines above or below its mark a name may stand, the nearest first.
_STEPS = (0, *(sign * step for step in range(1, 12) for sign in (-1, 1)))
#: How much further to the side it may stand, in pixels.
_ASIDE = (0.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the plot, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a part in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other lies within it."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


def apart(places: Sequence[float]) -> list[float]:
    """Places along the x axis, those of one value set a little beside each other and about it.

    However many share one, they are moved no further than half of `_SPREAD`: a mark must not seem to have another size.
    """
    order = sorted(range(len(places)), key=lambda number: places[number])
    groups: list[list[int]] = []
    for number in order:
        if groups and places[number] - places[groups[-1][0]] < _APART:
            groups[-1].append(number)
        else:
            groups.append([number])
    found = list(places)
    for group in groups:
        step = min(_APART, _SPREAD / max(1, len(group) - 1))
        middle = sum(places[number] for number in group) / len(group)
        for place, number in enumerate(sorted(group)):
            found[number] = middle + step * (place - (len(group) - 1) / 2) if len(group) > 1 else places[number]
    return found


def names(
    marks: Sequence[tuple[str, float, float]], frame: Box, taken: Sequence[Box], spans: Sequence[Box]
) -> Iterator[Markup]:
    """The names of marks at (x, y), clear of what is `taken` if they can be, then crossing few of `spans`, then near.

    A thin line leads from a mark to a name that stands lines away from it.
    """
    filled = [*taken, *(Box(x - 6, y - 6, x + 6, y + 6) for _, x, y in marks)]
    room = _LETTERS if len(marks) <= _MANY else _FEW_LETTERS
    for name, x, y in marks:
        told = short(name, room)
        box, ends = _free((x, y), _LETTER * len(told), frame, filled, spans)
        filled.append(box)
        edge = box.right if ends else box.left
        middle = (box.top + box.bottom) / 2
        if max(abs(middle - y), abs(edge - x) - _AWAY) > 1.5 * _LINE:
            yield line(x, y, edge, middle, "leader")
        yield label(edge, box.bottom - 2.5, told, "name", "end" if ends else "start")


def _free(
    at: tuple[float, float], width: float, frame: Box, filled: Sequence[Box], spans: Sequence[Box]
) -> tuple[Box, bool]:
    """The box of a name, and whether it ends at its mark rather than begins there."""
    best: tuple[float, Box, bool] | None = None
    for step, aside, ends in product(_STEPS, _ASIDE, (False, True)):
        away = _AWAY + aside
        left, middle = at[0] - away - width if ends else at[0] + away, at[1] + step * _LINE
        box = Box(left, middle - _LINE / 2, left + width, middle + _LINE / 2)
        hidden, crossed = (sum(box.meets(other) for other in others) for others in (filled, spans))
        far = abs(step) + 0.12 * aside + 0.3 * ends
        cost = 100.0 * hidden + 1.6 * crossed + far + 1000.0 * (not frame.holds(box))
        if best is None or cost < best[0]:
            best = cost, box, ends
    assert best is not None  # there is always a step
    return best[1], best[2]
