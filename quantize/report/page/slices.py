"""Differences by slice as a forest plot: of each eval a row for the whole and each slice, a panel for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantize.evidence import Comparison
from quantize.report.grid import Grid
from quantize.report.numbers import change, interval
from quantize.report.page.forest import Panel, forests
from quantize.report.page.known import compared, evidences, judge_of, points_cell
from quantize.report.page.markup import Markup, element, joined
from quantize.report.page.plot import signed, with_numbers
from quantize.report.page.tables import fitting, grid_of, table
from quantize.report.sections import limits
from quantize.run import RunRecord
from quantize.verdict import Finding

__all__ = ["differences"]

#: The quantities that are means over items, of which more is better.
_SHARES = ("accuracy", "parsed")
#: So many slices of an eval are drawn, those with the greatest loss; a run may have thousands.
_SLICES = 30
#: So many arms are drawn of an eval.
_ARMS = 18
#: All evals together take so many bytes.
_ROOM = 280_000


@dataclass(frozen=True, slots=True)
class _Column:
    """An arm's comparisons by metric, and the findings on them."""

    name: str
    found: dict[str, Comparison]
    findings: Sequence[Finding]


def differences(record: RunRecord) -> Markup:
    """A forest plot for each share that was measured of an eval's items."""
    columns = _columns(record)
    evals = list(dict.fromkeys(m for column in columns for m, found in column.found.items() if _whole(found)))
    drawn, left = fitting((_eval(metric, columns) for metric in evals), _ROOM)
    return joined(drawn, element("p", f"{left} more evals are left out.", class_="note") if left else None)


def _whole(comparison: Comparison) -> bool:
    """Whether it is a mean over the items of an eval, and not over those of a slice."""
    return comparison.metric.partition(".")[2] in _SHARES


def _columns(record: RunRecord) -> list[_Column]:
    """The variants, and before them each baseline that was measured again."""
    noise: dict[str, _Column] = {}
    for variant, evidence in evidences(record):
        if evidence.noise and variant.baseline not in noise:
            name = "baseline again"
            noise[variant.baseline] = _Column(name, {c.metric: c for c in evidence.noise}, ())
    found = [_Column(v.name, compared(evidence), v.verdict.findings) for v, evidence in evidences(record)]
    several = len(noise) > 1
    again = [
        _Column(f"{column.name} {suffix or 'first'}".strip() if several else column.name, column.found, ())
        for suffix, column in noise.items()
    ]
    return [*again, *found]


def _eval(metric: str, columns: Sequence[_Column]) -> Markup:
    own = [column for column in columns if metric in column.found]
    drawn, dropped = own[:_ARMS], len(own) - _ARMS
    slices = sorted(
        {m for column in own for m in column.found if m.startswith(f"{metric}/")}, key=lambda m: _worst(m, own)
    )
    rows = [metric, *slices[:_SLICES]]
    labels = ["all items", *(name.partition("/")[2] for name in rows[1:])]
    panels = [
        Panel(
            column.name,
            tuple(points_cell(column.found[row], column.findings) if row in column.found else None for row in rows),
            reference=_margin(metric, column.findings),
        )
        for column in drawn
    ]
    title = f"Differences in {metric} to the baseline, points, by slice"
    figures = list(forests(f"slices-{metric}", title, labels, panels, signed))
    numbers = table(_numbers(rows[: len(labels)], drawn), title, quiet=True)
    left = len(slices) - _SLICES
    notes = [
        f"The {_SLICES} slices with the greatest loss are shown; {left} more stand in each variant's evidence above."
        if left > 0
        else None,
        f"{dropped} more {'arm stands' if dropped == 1 else 'arms stand'} in the table above." if dropped > 0 else None,
    ]
    return joined(
        element("h3", title),
        figures[:-1],
        with_numbers(figures[-1], numbers, title),
        [element("p", note, class_="note") for note in notes if note],
    )


def _worst(metric: str, columns: Sequence[_Column]) -> tuple[float, str]:
    return min((c.found[metric].difference for c in columns if metric in c.found), default=0.0), metric


def _margin(metric: str, findings: Sequence[Finding]) -> float | None:
    gate = judge_of(metric, findings, "noninferiority")
    margin = gate.numbers.get("margin") if gate is not None else None
    return -100 * margin if isinstance(margin, float) else None


def _numbers(rows: Sequence[str], columns: Sequence[_Column]) -> Grid:
    cells = [
        (row, *(_cell(column.found.get(row), column.findings) for column in columns), str(_items(row, columns)))
        for row in rows
    ]
    return grid_of(("slice", *(column.name for column in columns), "items"), cells)


def _cell(comparison: Comparison | None, findings: Sequence[Finding]) -> str:
    if comparison is None:
        return "–"
    return f"{change(comparison)}\n{interval(comparison.unit, *limits(comparison, findings))}".rstrip()


def _items(metric: str, columns: Sequence[_Column]) -> int:
    return max((c.found[metric].n for c in columns if metric in c.found), default=0)
