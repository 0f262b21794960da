"""Runs with benchmarks: records with made-up numbers, and the artifacts behind them as the stages write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from program import tiny_recipe
from report_runs import record, verdict

from quantize.artifact import Provenance
from quantize.benchmark.blockfile import REQUESTS_FILE, BlockRecord
from quantize.benchmark.keeping import ArmCurve, CurvePart, LoadRecord, write_artifact
from quantize.benchmark.quantities import curve_point
from quantize.evidence import Comparison, Evidence, Measurement
from quantize.handed import Row
from quantize.recipe import Recipe
from quantize.record import digest
from quantize.run import RESOLVED, RunRecord, VariantRecord
from quantize.served import Request
from quantize.store import Store
from quantize.verdict import Finding

TPOT, TTFT, FAILURES = "load.tpot_p50/single", "load.ttft_p95/traffic", "load.failures/traffic"
LONGEST = 240
OUTPUT = 16


def ratio(metric: str, baseline: float, value: float, low: float, high: float, **extra: Any) -> Comparison:
    """A time of the variant that is `value` of the baseline's, over ten blocks of which one was run twice."""
    told = {"logs": [], "direction": "lower", "blocks": 11, "invalid": 1, "saturated": {}, **extra}
    return Comparison(
        metric=metric,
        unit="ratio",
        baseline=baseline,
        variant=baseline * value,
        difference=value,
        low=low,
        high=high,
        level=0.9,
        n=10,
        method="t over blocks",
        extra=told,
    )


def failed(difference: float) -> Comparison:
    """The variant's failures at the open load beside the baseline's none."""
    return ratio(FAILURES, 0.0, 0.0, 0.0, 2 * difference).model_copy(
        update={"unit": "share", "variant": difference, "difference": difference}
    )


def judged(metric: str, kind: str, outcome: Any, **numbers: Any) -> Finding:
    """What a gate says of a quantity under load."""
    return Finding(gate=kind, kind=kind, metric=metric, outcome=outcome, sentence=f"{kind} said so.", numbers=numbers)


def _measured(name: str, value: float) -> Measurement:
    return Measurement(name=name, value=value, unit="", n=10, direction="lower")


def loaded(
    name: str, comparisons: Sequence[Comparison], findings: Sequence[Finding] = (), size: float = 0.41, **more: Any
) -> VariantRecord:
    """A variant with `size` of the baseline's bytes, benchmarked; `more` are fields of its record."""
    noise = [
        ratio(TPOT, 0.0241, 1.0, 0.98, 1.03),
        ratio(TTFT, 0.512, 1.01, 0.91, 1.12),
        ratio("load.tpot_p95/traffic", 0.03, 1.0, 0.96, 1.05),
    ]
    arm = {"load.memory_peak": 1.2e9, "load.concurrency": 12.0}
    evidence = Evidence(
        variant=name,
        artifact_digest="a",
        baseline_digest="b",
        measurements=[
            _measured("weights.bytes", size * 1e9),
            *(_measured(c.metric, c.variant) for c in comparisons),
            *(_measured(*item) for item in arm.items()),
        ],
        baseline_measurements=[
            _measured("weights.bytes", 1e9),
            *(_measured(c.metric, c.baseline) for c in comparisons),
            _measured("load.concurrency", 8.0),
        ],
        comparisons=list(comparisons),
        hard_stops=[],
        noise=noise,
    )
    found = list(findings) or [judged("prose.perplexity", "limit", "pass")]
    fields = {"stages": {}, "engine": "vllm", **more}
    return VariantRecord(name=name, verdict=verdict(name, found), evidence=evidence, decision=None, **fields)


def closed(arm: str, streams: int, count: int, ttft: float, tpot: float, lost: int = 0) -> list[Row]:
    """Rows of a closed loop in which every request takes the same time; the last `lost` of them come to nothing."""
    each = ttft + (OUTPUT - 1) * tpot
    rows: list[Row] = []
    for place in range(count):
        start = place // streams * each
        fell = place >= count - lost
        tokens = [start + ttft + number * tpot for number in range(OUTPUT)]
        rows.append(
            {
                "block": 0,
                "attempt": 0,
                "arm": arm,
                "load": f"curve-{streams}",
                "place": place,
                "warmup": False,
                "request": f"r{place}",
                "scheduled": start,
                "dispatched": start,
                "tokens": [] if fell else tokens,
                "end": tokens[-1],
                "gen_ai.usage.input_tokens": LONGEST - OUTPUT,
                "gen_ai.usage.output_tokens": None if fell else OUTPUT,
                "error.type": "timeout" if fell else None,
            }
        )
    return rows


def block(number: int, reasons: Sequence[str] = (), attempt: int = 0, **facts: str) -> BlockRecord:
    """A block of both arms; `facts` are the variant's own, beside a kernel that both chose."""
    return BlockRecord(
        block=number,
        attempt=attempt,
        order=["baseline", "variant"],
        valid=not reasons,
        reasons=list(reasons),
        starts={"baseline": 3.0, "variant": 2.5},
        memory={"variant": {"peak": 1_200_000_000, "weights": 410_000_000}},
        facts={"baseline": {"attention": "flash"}, "variant": {"attention": "flash", **facts}},
        machine={},
    )


def keep(store: Store, name: str, curve: list[list[Row]], blocks: Sequence[BlockRecord]) -> str:
    """Commit a benchmark's artifact; returns its key."""
    key = digest(name)
    draft = store.draft("benchmark", key)
    arms = {rows[0]["arm"] for rows in curve}
    points = [curve_point(rows[0]["arm"], int(rows[0]["load"].removeprefix("curve-")), rows) for rows in curve]
    part = CurvePart(
        arms=[
            ArmCurve(arm=arm, points=[point for point in points if point.arm == arm], left_out=[], reasons=[])
            for arm in sorted(arms)
        ]
    )
    request = asdict(Request("r0", "Hello", LONGEST - OUTPUT, OUTPUT))
    (draft / REQUESTS_FILE).write_text(json.dumps(request) + "\n", encoding="utf-8")
    loads = LoadRecord(rates={"traffic": 3.08}, knee=4.4, warning=None, left_out={}, reasons={})
    rows = [row for held in curve for row in held]
    write_artifact(draft, (part, rows), [(one, []) for one in blocks], loads, {"cpu": "one"})
    provenance = Provenance(
        created="2026-01-01T00:00:00+00:00",
        host="h",
        seconds=1.0,
        peak_memory_bytes=1,
        python="3.11",
        libraries={},
    )
    store.commit(draft, kind="benchmark", name=name, key=key, inputs={}, summary={}, provenance=provenance)
    return key


def recipe(benchmark: dict[str, Any] | None, **changes: Any) -> Recipe:
    """A recipe with one variant, `int8`, served by vLLM on two devices."""
    engine = {"kind": "vllm", "tensor_parallel_size": 2}
    variants = [{"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}, "engine": engine}]
    told = tiny_recipe(**{"variants": variants, "benchmark": benchmark, **changes})
    return Recipe.model_validate(told)


def write_run(root: Path, held: RunRecord, told: Recipe) -> Path:
    """Write a run's folder into the store at `root`, as far as reports read it."""
    folder = root / "runs" / held.run
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(held.model_dump_json(), encoding="utf-8")
    (folder / RESOLVED).write_text(told.model_dump_json(by_alias=True), encoding="utf-8")
    return folder


def run_of(*variants: VariantRecord, **baselines: str) -> RunRecord:
    """A run of some variants; `baselines` are the baseline's stages."""
    return record(*variants).model_copy(update={"baseline_stages": baselines})
