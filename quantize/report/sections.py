"""A variant's section of the report: its findings, what was done, and everything else that was measured.

Below the sentences stands a table of all quantities, slices worst first, each beside the baseline's difference from
itself where that was measured: what is no larger than that is noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.evidence import Comparison, Evidence, Look, Measurement, Progressed, of_eval
from quantize.report.benchmarks import Benchmarks
from quantize.report.grid import Column, Grid
from quantize.report.numbers import amount, change, duration, interval, points, probability, size
from quantize.report.under_load import load_grid, load_sentences
from quantize.review import as_text
from quantize.run import VariantRecord
from quantize.verdict import Finding

__all__ = ["Path", "Section", "compared_grid", "limits", "section"]

_STOPPED = {
    "pass": "it stopped there, because the margin of {gate} was already kept",
    "fail": "it stopped there, because a loss beyond the margin of {gate} was already shown",
    "futile": "it stopped there, because {gate} could not pass any more",
}
_TAILS = ("median", "p90", "p95", "p99", "p99.9", "max")


@dataclass(frozen=True, slots=True)
class Path:
    """The confidence sequence of one gate: the limits of the difference after so many items, in points."""

    metric: str
    looks: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One variant: findings, what was done, sentences about the measuring, confidence sequences, all quantities.

    `load` and `load_sentences` are what was measured under load, and how; `review` is the checklist, line by line.
    """

    name: str
    findings: tuple[Finding, ...]
    decision: str
    sentences: tuple[str, ...]
    paths: tuple[Path, ...]
    table: Grid | None
    load: Grid | None = None
    load_sentences: tuple[str, ...] = ()
    review: tuple[str, ...] = ()


def section(variant: VariantRecord, item_seconds: Mapping[str, float], benchmarks: Benchmarks) -> Section:
    """The section of a variant of a run."""
    evidence, verdict = variant.evidence, variant.verdict
    against = variant.decision.against if variant.decision else []
    checklist = variant.checklist
    sentences = [checklist.told()] if checklist is not None else []
    if evidence is not None:
        sentences += [_reached(*reached, item_seconds) for reached in evidence.progressed.items()]
        sentences += _tried(evidence, verdict.findings)
        sentences += _tails(evidence.measurements)
        sentences += _loaded(variant.engine, evidence.measurements)
    return Section(
        name=variant.name,
        findings=(*verdict.findings, *against),
        decision=_done(variant),
        sentences=tuple(sentences),
        paths=tuple(Path(f.metric, _looks(f.looks)) for f in (*verdict.findings, *against) if len(f.looks) > 1),
        table=_table(evidence, verdict.findings) if evidence is not None else None,
        load=load_grid(evidence, verdict.findings) if evidence is not None else None,
        load_sentences=load_sentences(variant, benchmarks),
        review=tuple(as_text(checklist)) if checklist is not None else (),
    )


def limits(comparison: Comparison, findings: Sequence[Finding]) -> tuple[float | None, float | None]:
    """The interval that decided on a quantity: the gate's, else the comparison's own."""
    for finding in findings:
        low, high = finding.numbers.get("lower"), finding.numbers.get("upper")
        if finding.metric == comparison.metric and isinstance(low, float) and isinstance(high, float):
            return low, high
    return comparison.low, comparison.high


def compared_grid(
    comparisons: Sequence[Comparison],
    arms: tuple[str, str],
    findings: Sequence[Finding] = (),
    noise: Mapping[str, Comparison] | None = None,
) -> Grid:
    """All quantities of two arms, a row each: the slices below their whole, worst first."""
    heads = (*arms, "difference", "flips", "n", "McNemar p")
    columns = [Column("quantity", "", text=True), *(Column(head, head) for head in heads)]
    columns.append(Column("baseline\nagainst itself", "noise"))
    rows = []
    for comparison in _worst_first(comparisons):
        p = comparison.extra.get("mcnemar")
        again = (noise or {}).get(comparison.metric)
        rows.append(
            (
                comparison.metric,
                _value(comparison, comparison.baseline),
                _value(comparison, comparison.variant),
                f"{change(comparison)} {interval(comparison.unit, *limits(comparison, findings))}".rstrip(),
                _flips(comparison),
                _count(comparison),
                probability(p) if p is not None else "",
                f"{change(again)}  {_flips(again)}".rstrip() if again is not None else "",
            )
        )
    return Grid(tuple(columns), tuple(rows)).filled()


def _table(evidence: Evidence, findings: Sequence[Finding]) -> Grid | None:
    """Everything that was compared but the size, which the table of all arms holds."""
    found = [c for c in evidence.comparisons if of_eval(c.metric)]
    noise = {c.metric: c for c in evidence.noise}
    return compared_grid(found, ("baseline", "variant"), findings, noise) if found else None


def _worst_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """In the order given; but slices follow their whole, the greatest loss first."""
    found: list[Comparison] = []
    for whole in (c for c in comparisons if "/" not in c.metric):
        slices = [c for c in comparisons if c.metric.startswith(f"{whole.metric}/")]
        found += [whole, *sorted(slices, key=lambda c: (c.difference, c.metric))]
    return found


def _count(comparison: Comparison) -> str:
    items, clusters = comparison.extra.get("items", comparison.n), comparison.extra.get("clusters")
    counted = f"{comparison.n:,}" if items == comparison.n else f"{comparison.n:,}/{items:,}"
    return f"{counted} in {clusters}" if clusters else counted


def _value(comparison: Comparison, value: float) -> str:
    """One arm's own value; nothing where the quantity is a distance and has none."""
    if comparison.unit in ("nats", "probability", "share of items") or comparison.metric.endswith("_disagreement"):
        return ""
    return amount(value, "share" if comparison.unit == "share" else "")


def _flips(comparison: Comparison) -> str:
    extra = comparison.extra
    return f"−{extra['losses']} +{extra['gains']}" if "losses" in extra else ""


def _looks(looks: Sequence[Look]) -> tuple[tuple[str, str, str], ...]:
    return tuple((str(look.items), points(look.lower), points(look.upper)) for look in looks)


def _reached(name: str, progressed: Progressed, item_seconds: Mapping[str, float]) -> str:
    """How far the variant came in an eval, why no further, and what that saved."""
    left = progressed.items - progressed.answered
    looks = f"{progressed.looks} look{'s' if progressed.looks != 1 else ''}"
    if not left:
        return f"{name}: all {progressed.items} items were answered, in {looks}."
    told = f"{name}: {progressed.answered} of {progressed.items} items were answered, in {looks}; "
    if progressed.stopped is None:
        return f"{told}what came out was worthless."
    seconds = item_seconds.get(name)
    time = f", about {duration(left * seconds)} at the baseline's pace" if seconds else ""
    why = _STOPPED[progressed.stopped].format(gate=progressed.gate)
    return f"{told}{why}. That saved {left} items{time}."


def _tried(evidence: Evidence, findings: Sequence[Finding]) -> list[str]:
    """At which alpha each test was made, and where it comes from."""
    spending = evidence.spending
    found = []
    for finding in findings:
        alpha, attempt = finding.numbers.get("alpha"), finding.numbers.get("attempt")
        if not isinstance(alpha, float) or attempt is None:
            continue  # time is measured anew in every run: nothing is tried until it passes
        early = spending.early * alpha
        told = f"{finding.metric}: attempt {attempt} on this eval set, judged at alpha {alpha:.3g}"
        if early:
            among = f" ({early / spending.choices:.2g} with {spending.choices} variants to choose from)"
            told += f": {early:.2g} of it for an early pass{among if spending.choices > 1 else ''}, "
            told += f"{alpha - early:.2g} for the whole set"
        found.append(f"{told}.")
    return found


def _tails(measurements: Sequence[Measurement]) -> list[str]:
    """How far the worst positions of a text are from the baseline, and in which direction the probabilities went."""
    known = {m.name: m for m in measurements}
    found = []
    for name in [name for name in known if name.endswith((".kl_divergence", ".kl_divergence_at_least"))]:
        tails = [(tail, known.get(f"{name}/{tail}")) for tail in _TAILS]
        told = [f"{tail} {amount(m.value, m.unit)}" for tail, m in tails if m is not None]
        moved = known.get(f"{name.partition('.')[0]}.delta_p")
        mean = f"; mean change of the true token's probability {points(moved.value)} points" if moved else ""
        found.append(f"{name} by position: {', '.join(told)} nats{mean}.")
    return found


def _loaded(engine: str, measurements: Sequence[Measurement]) -> list[str]:
    """What the artifact took in memory where it was loaded."""
    known = {m.name: m.value for m in measurements}
    if "memory.peak" not in known:
        return []
    weights = f", of which {size(known['memory.weights'])} are weights" if "memory.weights" in known else ""
    return [f"loaded in {engine}, it took {size(known['memory.peak'])} of memory at most{weights}."]


def _done(variant: VariantRecord) -> str:
    """The decision, without the sentences of findings that stand above it."""
    if variant.decision is None:
        return ""
    told = variant.decision.sentence
    for finding in (*variant.verdict.findings, *variant.decision.against):
        told = told.replace(finding.sentence, "")
    return " ".join(told.split())
