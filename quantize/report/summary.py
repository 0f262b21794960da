"""What a report says, before it is drawn: one table of all arms, then a section for each variant.

Terminal and Markdown show the same grids and the same sentences; numbers are written by `numbers`. The table answers
what one decides by: how small, in which format, loaded by which engine, how far from the baseline, on how many items,
and what came of it. A variant is compared with the baseline in its own engine, so there is a row of the baseline for
each engine in use. Everything else that was measured stands in the variant's section (`sections`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantize.evidence import Comparison, Measurement
from quantize.report.benchmarks import Benchmarks
from quantize.report.grid import Column, Grid
from quantize.report.numbers import amount, change, duration, interval, measured, size
from quantize.report.sections import Section, limits, section
from quantize.report.speed import Speed, headlines, speed_of
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Finding, Verdict

__all__ = ["Summary", "done_word", "summarise", "verdict_word"]

_VERDICTS = {"pass": "within margin", "fail": "worse", "inconclusive": "not shown", "error": "error"}
#: What stands in the place of a divergence that is only known from below.
_BOUND = "kl_divergence_at_least"
_ACTIONS = {"promote": "promoted", "hold": "held", "reject": "rejected", "stale": "stale"}
_ARM = (
    Column("variant", "arm", text=True),
    Column("verdict", "arm", text=True),
    Column("size", "arm"),
    Column("format\nloads in", "arm", text=True),
    Column("peak\nmemory", "arm"),
)


@dataclass(frozen=True, slots=True)
class Summary:
    """A report: a title, the table of all arms, a section for each variant, and notes below.

    `headlines` stand right below the table: what is smaller but slower. `outcomes` by variant; the last note says what
    early stopping saved.
    """

    title: str
    table: Grid
    sections: tuple[Section, ...]
    outcomes: dict[str, str]
    notes: tuple[str, ...]
    headlines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Eval:
    """One eval as the table shows it: a text by perplexity and divergence, items by accuracy, flips and count."""

    name: str
    text: bool

    def columns(self) -> tuple[Column, ...]:
        """A text's two, or the three of items."""
        heads = ("perplexity", "KL") if self.text else ("accuracy", "flips", "items")
        return tuple(Column(f"{self.name}\n{head}", self.name) for head in heads)


@dataclass(frozen=True, slots=True)
class _Baseline:
    """The baseline in one engine: what was measured of it, its difference from itself, and who is compared with it."""

    name: str
    engine: str
    known: dict[str, Measurement]
    noise: dict[str, Comparison]
    variants: tuple[str, ...]


def summarise(
    record: RunRecord, item_seconds: Mapping[str, float] | None = None, benchmarks: Benchmarks | None = None
) -> Summary:
    """The summary of a run. `item_seconds` is what the baseline took for an item, by eval (`timing`).

    `benchmarks` are what the store holds of it under load (`benchmarks.read_benchmarks`).
    """
    evals, baselines, speed = _evals(record), _baselines(record), speed_of(record)
    seconds, kept = item_seconds or {}, benchmarks or Benchmarks()
    columns = (*_ARM, *speed.columns(), *(column for found in evals for column in found.columns()))
    rows = [row for baseline in baselines for row in _baseline_rows(baseline, evals, speed)]
    rows += [_row(variant, evals, speed) for variant in record.variants]
    told = _engines(baselines, evals) if len(baselines) > 1 else ()
    return Summary(
        title=f"{record.recipe} on {record.device}",
        table=Grid(columns, tuple(rows)).filled(),
        sections=tuple(section(variant, seconds, kept) for variant in record.variants),
        outcomes={variant.name: variant.verdict.outcome for variant in record.variants},
        notes=(_legend(record, speed), *told, *_notes(record, seconds)),
        headlines=headlines(record, speed),
    )


def _evals(record: RunRecord) -> list[_Eval]:
    """Every eval that any variant was compared on, in the order measured."""
    found: dict[str, _Eval] = {}
    for variant in record.variants:
        for comparison in variant.evidence.comparisons if variant.evidence else []:
            name, _, quantity = comparison.metric.partition(".")
            if quantity in ("accuracy", "perplexity"):
                found.setdefault(name, _Eval(name, quantity == "perplexity"))
    return list(found.values())


def _baselines(record: RunRecord) -> list[_Baseline]:
    """The baseline in each engine, with what the variants in that engine were compared with."""
    held: dict[str, list[VariantRecord]] = {}
    for variant in record.variants:
        if variant.evidence is not None:
            held.setdefault(variant.baseline, []).append(variant)
    engines = [variants[0].engine for variants in held.values()]
    found = []
    for suffix, variants in held.items():
        engine = variants[0].engine
        label = engine if engines.count(engine) == 1 else suffix.removeprefix("@") or engine
        evidences = [variant.evidence for variant in variants if variant.evidence is not None]
        found.append(
            _Baseline(
                name=f"baseline in {label}" if len(held) > 1 else "baseline",
                engine=engine,
                known={m.name: m for evidence in evidences for m in evidence.baseline_measurements},
                noise={c.metric: c for evidence in evidences for c in evidence.noise},
                variants=tuple(variant.name for variant in variants),
            )
        )
    return found


def _baseline_rows(baseline: _Baseline, evals: list[_Eval], speed: Speed) -> list[tuple[str, ...]]:
    """The row of what the baseline measured, and that of measuring it again."""
    known = baseline.known
    cells = [cell for found in evals for cell in _own(found, known)]
    loaded = speed.of_baseline(known, baseline.noise)
    rows = [(baseline.name, "", _size(known), baseline.engine, _memory(known), *loaded, *cells)]
    if baseline.noise:
        again = [cell for found in evals for cell in _compared(found, baseline.noise, [], "")]
        rows.append((f"{baseline.name} again", "", "", "", "", *speed.of_noise(baseline.noise), *again))
    return rows


def _own(found: _Eval, known: dict[str, Measurement]) -> tuple[str, ...]:
    if found.text:
        return measured(known.get(f"{found.name}.perplexity")), ""
    accuracy = known.get(f"{found.name}.accuracy")
    return measured(accuracy), "", str(accuracy.n) if accuracy is not None else ""


def _row(variant: VariantRecord, evals: list[_Eval], speed: Speed) -> tuple[str, ...]:
    evidence = variant.evidence
    known = {m.name: m for m in evidence.measurements} if evidence else {}
    comparisons = {c.metric: c for c in evidence.comparisons} if evidence else {}
    cells: list[str] = []
    for found in evals:
        progressed = evidence.progressed.get(found.name) if evidence else None
        stopped = f"▸ {progressed.stopped}" if progressed and progressed.stopped else ""
        cells += _compared(found, comparisons, variant.verdict.findings, stopped)
    loads = f"{evidence.format if evidence else ''}\n{variant.engine}".strip()
    arm = (variant.name, f"{verdict_word(variant.verdict)}\n{done_word(variant)}", _size(known), loads, _memory(known))
    return (*arm, *speed.of_variant(variant), *cells)


def done_word(variant: VariantRecord) -> str:
    """What was done with the variant, in a word or two."""
    return _ACTIONS[variant.decision.action] if variant.decision else "as before"


def verdict_word(verdict: Verdict) -> str:
    """The verdict in a word; what was refused without a test that failed is not called worse."""
    tested = any(f.outcome == "fail" and f.kind == "noninferiority" and not f.advisory for f in verdict.findings)
    return _VERDICTS[verdict.outcome] if verdict.outcome != "fail" or tested else "refused"


def _compared(
    found: _Eval, comparisons: dict[str, Comparison], findings: list[Finding], stopped: str
) -> tuple[str, ...]:
    """An arm's cells of one eval: value and difference, the interval that decided below."""
    if found.text:
        ratio, divergence = (comparisons.get(f"{found.name}.{q}") for q in ("perplexity", "kl_divergence"))
        bound = comparisons.get(f"{found.name}.{_BOUND}")
        value = f"{amount(ratio.variant, 'perplexity')} " if ratio else ""
        distance = f"≥ {_difference(bound, findings)}" if bound else _difference(divergence, findings)
        return f"{value}{_difference(ratio, findings)}", distance
    accuracy = comparisons.get(f"{found.name}.accuracy")
    if accuracy is None:
        return "–", "", ""
    flips = f"−{accuracy.extra['losses']} +{accuracy.extra['gains']}"
    items = accuracy.extra.get("items", accuracy.n)
    count = f"{accuracy.n}/{items}" if items != accuracy.n else str(items)
    value = f"{amount(accuracy.variant, accuracy.unit)} {_difference(accuracy, findings)}"
    return value, flips, f"{count}\n{stopped}".rstrip()


def _difference(comparison: Comparison | None, findings: list[Finding]) -> str:
    if comparison is None:
        return "–"
    return f"{change(comparison)}\n{interval(comparison.unit, *limits(comparison, findings))}".rstrip()


def _size(known: dict[str, Measurement]) -> str:
    held, bits = known.get("weights.bytes"), known.get("weights.bits_per_weight")
    if held is None:
        return "–"
    return f"{size(held.value)}\n{bits.value:.1f} bits/w" if bits is not None else size(held.value)


def _memory(known: dict[str, Measurement]) -> str:
    peak = known.get("memory.peak")
    return size(peak.value) if peak is not None else ""


def _legend(record: RunRecord, speed: Speed) -> str:
    """What the table's signs mean, as far as they are in it."""
    told = (
        "Second lines: the interval that decided; where no gate looks, one of at least 90 %. Accuracy is that of the "
        "items answered; its difference (points) is to the baseline on the same items. flips: answers lost and gained; "
        "×: ratio to the baseline; KL in nats; ▸: stopped early, and why. bits/w: the weight files' bits by all of the "
        "model's parameters, embeddings included."
    )
    evidences = [variant.evidence for variant in record.variants if variant.evidence is not None]
    if any(m.name == "memory.peak" for evidence in evidences for m in evidence.measurements):
        told += " Peak memory: of the process that held the weights, while the artifact was proven in its engine."
    if any(c.metric.endswith(f".{_BOUND}") for evidence in evidences for c in evidence.comparisons):
        told += " ≥: at least; the engine gives the likeliest tokens only."
    if speed.metrics():
        told += (
            " Under load: ratios of times to the baseline's in the same blocks; slower or faster where the whole "
            "interval says so. TTFT: from when a request was due to its first token; TPOT: from then on, for a token."
        )
    return told


def _engines(baselines: list[_Baseline], evals: list[_Eval]) -> tuple[str, ...]:
    """What each engine's baseline measured, and which variants are compared with it."""
    lines = ["Each variant is compared with the baseline in its own engine, never with that in another."]
    for baseline in baselines:
        told = []
        for found in evals:
            quantity = "perplexity" if found.text else "accuracy"
            own = baseline.known.get(f"{found.name}.{quantity}")
            told += [f"{found.name} {quantity} {measured(own)}"] if own is not None else []
        lines.append(f"{baseline.name}: {', '.join(told)}; beside it {', '.join(baseline.variants)}.")
    return tuple(lines)


def _notes(record: RunRecord, seconds: Mapping[str, float]) -> tuple[str, ...]:
    stages = f"{len(record.ran)} stages ran, {len(record.reused)} were done before, {record.seconds:.0f} s"
    told = f"run {record.run}: {stages}"
    saved = _saved(record, seconds)
    return (told, *([saved] if saved else []), *record.remarks)


def _saved(record: RunRecord, seconds: Mapping[str, float]) -> str:
    """What early stopping saved over all variants; nothing where no sample was looked at."""
    total = left = 0
    spared = 0.0
    for variant in record.variants:
        for name, progressed in variant.evidence.progressed.items() if variant.evidence else ():
            total += progressed.items
            if progressed.stopped is not None:
                left += progressed.items - progressed.answered
                spared += (progressed.items - progressed.answered) * seconds.get(name, 0.0)
    if not any(variant.evidence and variant.evidence.spending.early for variant in record.variants) or not total:
        return ""
    time = f", about {duration(spared)}" if spared else ""
    return f"early stopping saved {left:,} of {total:,} items{time}"
