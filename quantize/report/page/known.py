"""What several parts of a page ask of a run's record: the metric that matters most, gates, sizes, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantize.evidence import Comparison, Evidence, of_eval
from quantize.report.numbers import amount, change, interval
from quantize.report.page.forest import Cell
from quantize.report.sections import limits
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Finding, Outcome

__all__ = ["MARKS", "WORDS", "compared", "evidences", "judge_of", "points_cell", "qualities", "size_of", "told_of"]

WORDS: Mapping[Outcome, str] = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "not shown either way",
    "error": "in error",
}
#: The signs that stand beside colours in text, as on a terminal.
MARKS: Mapping[Outcome, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!"}

#: The quantities of an eval that stand for its quality, in the order of preference.
_QUALITIES = ("accuracy", "perplexity")


def compared(evidence: Evidence | None) -> dict[str, Comparison]:
    """A variant's comparisons by metric."""
    return {c.metric: c for c in evidence.comparisons} if evidence is not None else {}


def evidences(record: RunRecord) -> list[tuple[VariantRecord, Evidence]]:
    """The variants that were measured."""
    return [(variant, variant.evidence) for variant in record.variants if variant.evidence is not None]


def qualities(record: RunRecord) -> list[str]:
    """The metrics that quality is shown by: those that a blocking gate tests first, then one for each other eval."""
    tested = [
        f.metric
        for variant in record.variants
        for f in variant.verdict.findings
        if f.kind == "noninferiority" and not f.advisory and f.numbers.get("margin") is not None and "/" not in f.metric
    ]
    held = [c.metric for _, evidence in evidences(record) for c in evidence.comparisons if of_eval(c.metric)]
    usual = [m for m in held if m.partition(".")[2] in _QUALITIES]
    return list(dict.fromkeys(metric for metric in (*tested, *usual) if metric in held))


def judge_of(metric: str, findings: Sequence[Finding], kind: str) -> Finding | None:
    """What the gate of a kind found of a metric: a blocking one before an advisory one."""
    found = [finding for finding in findings if (finding.metric, finding.kind) == (metric, kind)]
    return min(found, key=lambda finding: finding.advisory, default=None)


def points_cell(comparison: Comparison, findings: Sequence[Finding]) -> Cell:
    """A difference of shares as points, with the interval that decided and the margin it was held against."""
    finding = judge_of(comparison.metric, findings, "noninferiority")
    low, high = limits(comparison, findings)
    margin = finding.numbers.get("margin") if finding is not None else None
    return Cell(
        value=100 * comparison.difference,
        low=100 * low if low is not None else None,
        high=100 * high if high is not None else None,
        told=told_of(comparison, findings),
        outcome=finding.outcome if finding is not None else "",
        margin=-100 * margin if isinstance(margin, float) else None,
    )


def told_of(comparison: Comparison, findings: Sequence[Finding]) -> str:
    """A comparison in a line: both values, the difference and its interval."""
    difference = f"{change(comparison)} {interval(comparison.unit, *limits(comparison, findings))}".rstrip()
    if comparison.unit == "share":
        before, after = (amount(value, "share") for value in (comparison.baseline, comparison.variant))
        return f"{comparison.metric}: {before} → {after}, {difference} points, n {comparison.n:,}"
    return f"{comparison.metric}: {difference}, n {comparison.n:,}"


def size_of(evidence: Evidence, *, baseline: bool = False) -> float | None:
    """Bytes of the weights of the variant, or of what it is compared with."""
    found = evidence.baseline_measurements if baseline else evidence.measurements
    return next((m.value for m in found if m.name == "weights.bytes"), None)
