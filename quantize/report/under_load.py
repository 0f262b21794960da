"""A variant's part "under load": every quantity beside the baseline's, then how it was measured and what disturbed it.

The numbers come from the run's record. Rates, blocks, the servers' own words and the curves come from the benchmark's
artifacts, as far as the store still holds them (`benchmarks`).
"""

from __future__ import annotations

from collections.abc import Sequence

from quantize.evidence import Comparison, Evidence, Measurement
from quantize.report.benchmarks import Artifact, Benchmarks
from quantize.report.grid import Column, Grid
from quantize.report.load_conditions import blocks_told, curves_told, facts_told, loads_told, roofline_told
from quantize.report.load_metrics import SHOWN, compared, labelled, loads_of, named, shown_value, split, under_load
from quantize.report.numbers import size, times
from quantize.run import VariantRecord
from quantize.verdict import Finding

__all__ = ["load_grid", "load_sentences"]

#: Of the arm itself, below the loads.
_OF_THE_ARM = ("memory_peak", "memory_kv", "concurrency")
_OUTCOMES = {"pass": "pass", "fail": "FAIL", "inconclusive": "not shown", "error": "ERROR"}
#: What stands for the baseline beside itself in a sentence, where no gate names what matters.
_TOLD = ("tpot_p50", "ttft_p95")


def load_grid(evidence: Evidence, findings: Sequence[Finding]) -> Grid | None:
    """A row per load and quantity; None where nothing was measured under load."""
    arms = [{m.name: m for m in found} for found in (evidence.baseline_measurements, evidence.measurements)]
    comparisons = {c.metric: c for c in evidence.comparisons if under_load(c.metric)}
    noise = {c.metric: c for c in evidence.noise}
    metrics = _shown([m.name for m in evidence.measurements] + list(comparisons), findings)
    if not metrics:
        return None
    heads = ("baseline", "variant", "ratio")
    columns = [
        Column("under load", "", text=True),
        *(Column(head, head) for head in heads),
        Column("gate", "gate", text=True),
        Column("baseline\nagainst itself", "noise"),
    ]
    rows = []
    for metric in metrics:
        comparison = comparisons.get(metric)
        rows.append(
            (
                labelled(metric),
                *_values(metric, comparison, arms),
                compared(comparison, findings) if comparison is not None else "",
                ", ".join(f"{f.kind} {_OUTCOMES[f.outcome]}" for f in findings if f.metric == metric),
                compared(noise[metric]) if metric in noise else "",
            )
        )
    return Grid(tuple(columns), tuple(rows)).filled()


def load_sentences(variant: VariantRecord, benchmarks: Benchmarks) -> tuple[str, ...]:
    """How it was measured under load; nothing where it was not."""
    evidence = variant.evidence
    if evidence is None or not any(under_load(m.name) for m in evidence.measurements):
        return ()
    config, artifact = benchmarks.config, benchmarks.variants.get(variant.name)
    baseline = benchmarks.baselines.get(variant.baseline)
    told = list(loads_told(config, artifact.loads if artifact is not None else None))
    told += blocks_told(artifact) if artifact is not None else _counted(evidence)
    told += _itself(evidence, variant.verdict.findings)
    told += _saturated(evidence)
    told += _memory(evidence, artifact)
    told += curves_told(artifact, baseline)
    arms = {"baseline": evidence.baseline_measurements, "variant": evidence.measurements}
    told += roofline_told(config, artifact, {arm: {m.name: m.value for m in found} for arm, found in arms.items()})
    told += facts_told(variant.engine, artifact, served=config is None or config.traffic.served)
    told += _ahead(variant, benchmarks)
    return tuple(told)


def _shown(names: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """The metrics of the table: load by load, then the arm's own; also whatever a gate looks at."""
    judged = {finding.metric for finding in findings}
    measured = dict.fromkeys(name for name in names if under_load(name))
    found = []
    for load in loads_of(measured):
        own = [name for name in measured if split(name)[1] == load]
        usual = [f"load.{quantity}/{load}" for quantity in SHOWN]
        found += [name for name in usual if name in measured]
        found += [name for name in own if name in judged and name not in usual]
    return found + [name for quantity in _OF_THE_ARM if (name := f"load.{quantity}") in measured]


def _values(metric: str, comparison: Comparison | None, arms: Sequence[dict[str, Measurement]]) -> tuple[str, str]:
    """Both arms' values: those that the ratio is of, else what was measured of each."""
    if comparison is not None:
        return shown_value(metric, comparison.baseline), shown_value(metric, comparison.variant)
    first, second = (shown_value(metric, arm[metric].value) if metric in arm else "" for arm in arms)
    return first, second


def _counted(evidence: Evidence) -> list[str]:
    """How many blocks count, from the comparisons alone."""
    for comparison in evidence.comparisons:
        if under_load(comparison.metric) and isinstance(comparison.extra.get("blocks"), int):
            run, invalid = comparison.extra["blocks"], comparison.extra.get("invalid", 0)
            return [f"{run - invalid} of {run} blocks are valid."]
    return []


def _itself(evidence: Evidence, findings: Sequence[Finding]) -> list[str]:
    """How far the baseline is from itself, in what the gates look at."""
    judged = {finding.metric for finding in findings if finding.kind == "latency"}
    noise = [c for c in evidence.noise if under_load(c.metric) and c.unit == "ratio"]
    chosen = [c for c in noise if c.metric in judged] or [c for c in noise if split(c.metric)[0] in _TOLD]
    spans = [
        f"{named(c.metric)} {c.low:.2f} to {c.high:.2f}" for c in chosen if c.low is not None and c.high is not None
    ]
    return [f"the baseline against itself: {', '.join(spans)}."] if spans else []


def _saturated(evidence: Evidence) -> list[str]:
    """Loads that an arm could not keep up with: an outcome, and a reason to read its times with care."""
    found: dict[str, list[str]] = {}
    for comparison in evidence.comparisons:
        arms = comparison.extra.get("saturated") if under_load(comparison.metric) else None
        if isinstance(arms, dict):
            held = found.setdefault(split(comparison.metric)[1], [])
            held += [arm for arm, full in arms.items() if full and arm not in held]
    return [
        f"at {load} the {' and the '.join(arms)} did not keep up: requests queued up, and times grow with its length."
        for load, arms in found.items()
        if arms
    ]


def _memory(evidence: Evidence, artifact: Artifact | None) -> list[str]:
    """What it takes while it serves, and how many of the longest requests fit in."""
    own, baseline = (
        {split(m.name)[0]: m.value for m in arm if under_load(m.name)}
        for arm in (evidence.measurements, evidence.baseline_measurements)
    )
    weights = [w for b in (artifact.valid() if artifact else ()) if (w := b.memory.get("variant", {}).get("weights"))]
    parts = [f"{size(own['memory_peak'])} of memory at most"] if "memory_peak" in own else []
    parts += [f"{size(max(weights))} of weights"] if weights else []
    parts += [f"{size(own['memory_kv'])} for keys and values"] if "memory_kv" in own else []
    if "concurrency" in own:
        longest = artifact.longest if artifact is not None else None
        long = f"of {longest:,} tokens" if longest is not None else "of the longest kind"
        beside = f" (baseline: {baseline['concurrency']:.0f})" if "concurrency" in baseline else ""
        parts.append(f"room for {own['concurrency']:.0f} requests {long} at the same time{beside}")
    return [f"while it served: {', '.join(parts)}."] if parts else []


def _ahead(variant: VariantRecord, benchmarks: Benchmarks) -> list[str]:
    """What the baseline gains when this variant guesses ahead for it; shown, and judged by no gate."""
    from quantize.benchmark.reading import read
    from quantize.errors import QuantizeError

    artifact = benchmarks.ahead.get(variant.name)
    if artifact is None:
        return []
    try:
        found = read(artifact.directory).comparisons(benchmarks.config.slo if benchmarks.config is not None else None)
    except QuantizeError:
        return []  # a damaged artifact is for `verify` to tell
    told = [
        f"{named(c.metric)} {times(c.difference, c.low, c.high)}"
        for c in found
        if c.unit == "ratio" and split(c.metric)[0] in ("ttft_p50", "tpot_p50", "e2e_p50", "output_tokens_per_second")
    ]
    return (
        [f"the baseline with {variant.name} guessing ahead, beside the baseline alone: {', '.join(told)}."]
        if told
        else []
    )
