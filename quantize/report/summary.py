"""What a report says, before it is drawn: one row a variant, one sentence a finding.

Terminal and Markdown show the same cells, so a number is formatted once, here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantize.evidence import Comparison, Measurement
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Finding

__all__ = ["Row", "Summary", "summarise"]

_VERDICTS = {
    "pass": "not worse",
    "fail": "worse",
    "inconclusive": "not shown",
    "error": "error",
}
_FLIPS = "flips"
_ACTIONS = {"promote": "promoted", "hold": "held", "reject": "rejected"}


@dataclass(frozen=True, slots=True)
class Row:
    """One arm: its name, its cells by column, its outcome, and its findings."""

    name: str
    outcome: str
    cells: tuple[str, ...]
    findings: tuple[Finding, ...]
    decision: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A report: a title, its column heads, a row for the baseline and one for each variant, and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def summarise(record: RunRecord) -> Summary:
    """The summary of a run."""
    measured = next((v for v in record.variants if v.evidence is not None and len(v.evidence.comparisons) > 1), None)
    baseline = measured.evidence.baseline_measurements if measured and measured.evidence else []
    metrics = _metrics(measured.evidence.comparisons if measured and measured.evidence else [])
    columns = ("variant", "bytes", "bits/w", *metrics, "verdict", "decision")
    rows = [_baseline(baseline, metrics)] if baseline else []
    rows += [_row(variant, metrics) for variant in record.variants]
    return Summary(f"{record.recipe} on {record.device}", columns, tuple(rows), _notes(record))


def _metrics(comparisons: list[Comparison]) -> list[str]:
    """The compared quantities that make a column: no slices, no tails, no sizes (they have columns of their own)."""
    names = [c.metric for c in comparisons if "/" not in c.metric and not c.metric.startswith("weights.")]
    columns = []
    for name in names:
        columns.append(name)
        if any(c.metric == name and "losses" in c.extra for c in comparisons):
            columns.append(f"{name} {_FLIPS}")
    return columns


def _baseline(measurements: list[Measurement], metrics: list[str]) -> Row:
    known = {m.name: m for m in measurements}
    cells = [_number(known[name], bare=True) if name in known else "" for name in metrics]
    return Row("baseline", "", ("baseline", _size(known), _bits(known), *cells, "", ""), (), "")


def _row(variant: VariantRecord, metrics: list[str]) -> Row:
    verdict = variant.verdict
    known = {m.name: m for m in variant.evidence.measurements} if variant.evidence else {}
    comparisons = {c.metric: c for c in variant.evidence.comparisons} if variant.evidence else {}
    cells = []
    for name in metrics:
        base = name.removesuffix(f" {_FLIPS}")
        comparison = comparisons.get(base)
        if comparison is None:
            cells.append("–")
        elif base != name:
            cells.append(f"−{comparison.extra['losses']} +{comparison.extra['gains']}")
        else:
            cells.append(_difference(comparison, known.get(base), verdict.findings))
    decision = variant.decision
    done = _ACTIONS[decision.action] if decision else "as before"
    word = _VERDICTS[verdict.outcome]
    return Row(
        variant.name,
        verdict.outcome,
        (variant.name, _size(known), _bits(known), *cells, word, done),
        tuple(verdict.findings),
        decision.sentence if decision else "",
    )


def _difference(comparison: Comparison, measurement: Measurement | None, findings: list[Finding]) -> str:
    """The variant's value, then its difference with the interval that decided: the gate's, where there is one."""
    gate = next((f for f in findings if f.metric == comparison.metric and "lower" in f.numbers), None)
    low, high = comparison.low, comparison.high
    if gate is not None:
        low, high = float(gate.numbers["lower"] or 0.0), float(gate.numbers["upper"] or 0.0)
    if comparison.unit == "share":
        interval = f" ({100 * low:+.1f}, {100 * high:+.1f})" if low is not None and high is not None else ""
        return f"{100 * comparison.variant:.1f} %\n{100 * comparison.difference:+.1f}{interval}"
    value = _number(measurement, bare=True) if measurement is not None else f"{comparison.variant:.4g}"
    if comparison.unit == "ln ratio":
        interval = f" ({math.exp(low):.3f}, {math.exp(high):.3f})" if low is not None and high is not None else ""
        return f"{value}\n×{math.exp(comparison.difference):.3f}{interval}"
    return f"{value}\n({low:.2g}, {high:.2g})" if low is not None and high is not None else value


def _number(measurement: Measurement, *, bare: bool) -> str:
    if measurement.unit == "share":
        text = f"{100 * measurement.value:.1f} %"
    elif measurement.value >= 100:
        text = f"{measurement.value:.1f}"
    else:
        text = f"{measurement.value:.3g}" if measurement.value < 1 else f"{measurement.value:.2f}"
    if bare or measurement.low is None or measurement.high is None:
        return text
    return f"{text} ({measurement.low:.3g} to {measurement.high:.3g})"


def _size(known: dict[str, Measurement]) -> str:
    size = known.get("weights.bytes")
    return f"{size.value / 1e6:,.1f} MB" if size else "–"


def _bits(known: dict[str, Measurement]) -> str:
    bits = known.get("weights.bits_per_weight")
    return f"{bits.value:.1f}" if bits else "–"


def _notes(record: RunRecord) -> tuple[str, ...]:
    stages = f"{len(record.ran)} stages ran, {len(record.reused)} were done before, {record.seconds:.0f} s"
    legend = "second lines: difference or ratio (×) to the baseline with its interval; flips: answers lost and gained"
    return (legend, f"run {record.run}: {stages}")
