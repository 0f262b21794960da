"""Under load: how long requests took in each arm, as distributions, and the ratios of the blocks with their intervals.

A distribution is drawn whole, as the share of requests that took at most so long; its middle half and its tail are read
off the same line. The ratio, not the distribution, is what a gate judges: the block is its sample, and its dots are the
blocks themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from quantize.benchmark.config import Slo
from quantize.benchmark.quantities import e2e, measured, tpot, ttft
from quantize.benchmark.reading import BASELINE, Benchmarked
from quantize.evidence import Comparison
from quantize.handed import Row
from quantize.report.load_metrics import SHOWN, judged_limits, limits_of, loads_of, named, quantity_of
from quantize.report.numbers import seconds, times
from quantize.report.page.forest import WIDTH, Cell, Panel, forests
from quantize.report.page.known import compared, evidences, judge_of
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.plot import Scale, figure, label, line, logarithmic, polyline, short, with_numbers
from quantize.report.page.reading import Sources
from quantize.report.page.tables import fitting, grid_of, table
from quantize.run import VariantRecord

__all__ = ["latencies"]

_TIMES: Mapping[str, Callable[[Row], float]] = {"TTFT": ttft, "TPOT": tpot, "E2E": e2e}
_WORDS = {"TTFT": "until the first token", "TPOT": "for each token after it", "E2E": "until the end"}
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_HEIGHT, _TOP, _FOOT = 190.0, 30.0, 34.0
#: A line is drawn through so many points at most.
_POINTS = 120
#: So much of a variant's name stands beside its line.
_NAME = 16
#: So many arms stand beside each other, and so many bytes do ratios and distributions take each.
_ARMS, _ROOM = 24, 190_000
_CAPTION = (
    "Small dots are the blocks; the line through a mark is the interval that decided; dashed is the most, or of a rate "
    "the least, that the gate allows. Of a time less is better, of a rate more."
)


def latencies(sources: Sources) -> Markup | None:
    """Ratios of all variants, then the distributions of each; None where nothing was measured under load."""
    variants = [v for v, evidence in evidences(sources.record) if any(_ratio(c) for c in evidence.comparisons)]
    if not variants:
        return None
    loads = loads_of([metric for variant in variants for metric in compared(variant.evidence)])
    ratios, dropped = fitting((found for load in loads for found in _ratios(load, variants[:_ARMS])), _ROOM)
    known = [variant.name for variant in variants if variant.name in sources.requests]
    slo = sources.benchmarks.config.slo if sources.benchmarks.config is not None else None
    each = (found for name in known for found in _distributions(name, sources.requests[name], slo))
    drawn, left = fitting(each, _ROOM)
    more = dropped + left
    return joined(ratios, drawn, element("p", f"{more} more plots are left out.", class_="note") if more else None)


def _ratio(comparison: Comparison) -> bool:
    return comparison.metric.startswith("load.") and comparison.unit == "ratio"


def _ratios(load: str, variants: Sequence[VariantRecord]) -> Iterator[Markup]:
    wanted = [f"load.{quantity}/{load}" for quantity in SHOWN]
    rows = [m for m in wanted if any(m in (held := compared(v.evidence)) and _ratio(held[m]) for v in variants)]
    if not rows:
        return
    panels = [
        Panel(v.name, tuple(_cell(found.get(row), v) for row in rows))
        for v in variants
        for found in [compared(v.evidence)]
    ]
    title = f"Ratios to the baseline at {load}, in the same blocks"
    cells = [(quantity_of(row), *(_told(compared(v.evidence).get(row), v) for v in variants)) for row in rows]
    numbers = table(grid_of((load, *(v.name for v in variants)), cells), title, quiet=True)
    labels = [quantity_of(row) for row in rows]
    figures = list(forests(f"ratios-{load}", title, labels, panels, lambda value: f"×{value:g}", log=True))
    told = element("p", _CAPTION, class_="caption")
    yield joined(element("h3", title), told, figures[:-1], with_numbers(figures[-1], numbers, title))


def _cell(comparison: Comparison | None, variant: VariantRecord) -> Cell | None:
    if comparison is None or comparison.unit != "ratio" or comparison.difference <= 0:
        return None
    findings = variant.verdict.findings
    gate = judge_of(comparison.metric, findings, "latency")
    allowed = gate.numbers.get("at_most") if gate is not None else None
    low, high = limits_of(comparison, findings)
    return Cell(
        value=comparison.difference,
        low=low,
        high=high,
        told=f"{named(comparison.metric)}: {times(comparison.difference, low, high)}",
        outcome=gate.outcome if gate is not None else "",
        margin=_limit(comparison, allowed) if isinstance(allowed, float) else None,
        dots=tuple(math.exp(found) for found in comparison.extra.get("logs") or ()),
    )


def _limit(comparison: Comparison, allowed: float) -> float:
    """The ratio that the gate allows: of a time or, the other way about, of a rate."""
    return 1 / (1 + allowed) if comparison.extra.get("direction") == "higher" else 1 + allowed


def _told(comparison: Comparison | None, variant: VariantRecord) -> str:
    if comparison is None:
        return "–"
    decided = judged_limits(comparison.metric, variant.verdict.findings) is not None
    told = times(comparison.difference, *limits_of(comparison, variant.verdict.findings))
    return f"{told}\n{comparison.n} blocks{', judged' if decided else ''}"


def _distributions(name: str, held: Benchmarked, slo: Slo | None) -> Iterator[Markup]:
    """Of one variant and the baseline beside it, all times at every load."""
    other = next((arm for arm in held.arms if arm != BASELINE), None)
    if other is None or not held.rows:
        told = f"{name}: none of its blocks is valid, so there is no distribution to show."
        yield element("p", told, class_="note")
        return
    yield from (_load(name, other, load, held, slo) for load in held.loads)


def _load(name: str, other: str, load: str, held: Benchmarked, slo: Slo | None) -> Markup:
    arms = {arm: _values([r for r in held.rows if (r["arm"], r["load"]) == (arm, load)]) for arm in (BASELINE, other)}
    title = f"{name} at {load}: how long requests took"
    room = WIDTH / len(_TIMES)
    parts: list[Child] = []
    rows = []
    for place, time in enumerate(_TIMES):
        samples = {arm: found[time] for arm, found in arms.items()}
        ends = place * room + 34, (place + 1) * room - 14
        parts += _panel((name, time), samples, ends, _limit_of(slo, time))
        for arm, sample in samples.items():
            shown = name if arm == other else arm
            cells = [seconds(_quantile(sample, share)) if sample else "–" for share in _SHARES]
            rows.append((f"{time} {shown}", *cells, f"{len(sample):,}"))
    heads = ("time", *(f"{100 * share:g} %" for share in _SHARES), "requests")
    told = (
        f"Share of requests that took at most so long. Thick: {name}; thin and dashed: the baseline. Numbers beneath."
    )
    drawn = figure(f"times-{name}-{load}", title, told, (WIDTH, _HEIGHT), *parts)
    key = element(
        "p",
        f"The share of requests that took at most so long. {name} is the thick line, the baseline beside it the dashed "
        f"one. {len(held.valid)} of {len(held.blocks)} blocks that were run are valid, and only those are shown.",
        class_="caption",
    )
    return joined(element("h3", title), key, with_numbers(drawn, table(grid_of(heads, rows), title, quiet=True), title))


def _values(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The sorted times of the requests that were answered, in seconds."""
    answered = [row for row in measured(rows) if row["error.type"] is None]
    found = {}
    for name, time in _TIMES.items():
        usable = [row for row in answered if name != "TPOT" or row["gen_ai.usage.output_tokens"] > 1]
        found[name] = sorted(value for row in usable if (value := time(row)) > 0)
    return found


def _limit_of(slo: Slo | None, time: str) -> float | None:
    """What the recipe's service level allows, in seconds."""
    found: float | None = getattr(slo, time.lower()) if slo is not None else None
    return found


def _panel(
    names: tuple[str, str], samples: Mapping[str, list[float]], across: tuple[float, float], limit: float | None
) -> Iterator[Markup]:
    """One time of both arms; `names` are those of the variant and of the time."""
    name, time = names
    everything = [value for sample in samples.values() for value in sample]
    bottom = _HEIGHT - _FOOT
    yield label((across[0] + across[1]) / 2, 14, f"{time}, {_WORDS[time]}", "head", "middle")
    if not everything:
        yield label((across[0] + across[1]) / 2, _HEIGHT / 2, "no request was answered", "nothing", "middle")
        return
    scale = logarithmic([*everything, *([limit] if limit is not None else [])], *across, most=6)
    for share in (0.0, 0.5, 0.95):
        y = bottom - share * (bottom - _TOP)
        yield line(scale.start, y, scale.end, y, "axis" if share == 0 else "rule")
        yield label(scale.start - 4, y + 4, f"{100 * share:g} %", "tick", "end")
    last = -math.inf
    for value in scale.ticks:
        x = scale.at(value)
        yield line(x, bottom, x, bottom + 4, "axis")
        if x - last > 44:
            yield label(x, bottom + 17, seconds(value), "tick", "middle")
            last = x
    if limit is not None:
        yield line(scale.at(limit), _TOP, scale.at(limit), bottom, "margin")
        yield label(scale.at(limit), _TOP - 3, "SLO", "tick", "middle")
    for arm, sample in samples.items():
        count = min(_POINTS, len(sample))
        shares = [(number + 1) / count for number in range(count)]
        points = [(scale.at(_quantile(sample, share)), bottom - share * (bottom - _TOP)) for share in shares]
        if points:
            yield polyline([(points[0][0], bottom), *points], "arm baseline" if arm == BASELINE else "arm variant")
    yield from _line_names(name, samples, scale, bottom)


def _line_names(name: str, samples: Mapping[str, list[float]], scale: Scale, bottom: float) -> Iterator[Markup]:
    """The faster arm's name above its line, the slower one's beneath: where the other line is not."""
    fastest = min(samples, key=lambda arm: _quantile(samples[arm], 0.5) if samples[arm] else math.inf)
    for arm, sample in samples.items():
        if not sample:
            continue
        share, away, anchor = (0.72, -7, "end") if arm == fastest else (0.22, 9, "start")
        x, y = scale.at(_quantile(sample, share)), bottom - share * (bottom - _TOP)
        told = short(BASELINE if arm == BASELINE else name, _NAME)
        yield label(x + away, y, told, "name", anchor)


def _quantile(sample: Sequence[float], share: float) -> float:
    """Of a sorted sample, the smallest value that so large a share does not exceed."""
    return sample[max(0, math.ceil(share * len(sample)) - 1)]
