"""The arms of a run that a capacity can be worked out for: baselines, variants, and baselines with a draft ahead."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize.benchmark.blockfile import FINGERPRINT_FILE
from quantize.benchmark.config import Benchmark
from quantize.benchmark.keeping import CURVE_ROWS_FILE
from quantize.benchmark.quantities import IN_BLOCK, percentiles
from quantize.capacity import Point, Rate
from quantize.errors import StoreError, UsageError
from quantize.evidence import Measurement
from quantize.recipe import Recipe
from quantize.report.benchmarks import Artifact, read_benchmarks
from quantize.run import RunRecord, VariantRecord
from quantize.run_record import RESOLVED
from quantize.store import Store

__all__ = ["LIMITED", "Arm", "Measured", "read_arms"]

#: The quantities that a limit can be set to.
LIMITED = tuple(f"{time}_p{percent}" for time in ("ttft", "tpot", "itl", "e2e") for percent in (50, 90, 95, 99))

#: Which percentile of a time the recipe's own SLO, which is of single requests, is taken for: the tail, where known.
_OF_THE_RECIPE = ("p95", "p50")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: `devices` of a replica, its curve's points, and what it took in memory (bytes) where that is known.

    `doubts` are what disturbed its curve.
    """

    name: str
    engine: str
    devices: int
    points: tuple[Point, ...]
    memory: float | None = None
    concurrency: float | None = None
    production: bool = True
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """The arms of a run, and what its recipe says of prices and limits."""

    arms: tuple[Arm, ...]
    config: Benchmark

    def limits(self) -> dict[str, float]:
        """The recipe's SLO as limits of the curve's quantities; empty where it has none."""
        slo = self.config.slo
        if slo is None:
            return {}
        known = [set(point.times) for arm in self.arms for point in arm.points if not point.failures]
        found = {}
        for time, limit in (("ttft", slo.ttft), ("tpot", slo.tpot), ("e2e", slo.e2e)):
            names = [f"{time}_{percentile}" for percentile in _OF_THE_RECIPE]
            told = [name for name in names if all(name in times for times in known)]
            if limit is not None:
                found[(told or names)[0]] = limit
        return found

    def price(self) -> Rate | None:
        """The recipe's price."""
        price = self.config.price
        return Rate(price.per_device_hour, price.currency) if price is not None else None


def read_arms(record: RunRecord, directory: Path, store: Store) -> Measured:
    """The arms of the run in `directory`. Raises UsageError where it has no benchmark, StoreError where it is gone."""
    benchmarks = read_benchmarks(record, directory, store, strict=True)
    if benchmarks.config is None:
        raise UsageError(
            "the run measured nothing under load.",
            where=record.run,
            fix="Add `benchmark: {}` to its recipe and run it again: what is done already is reused.",
        )
    if not benchmarks.variants:
        raise UsageError(
            "no variant of the run came to its benchmark: only those that pass their evals do.",
            where=record.run,
            fix="`quantize report` says why; a variant that passes is measured by the next run.",
        )
    recipe, served = _recipe(directory), benchmarks.config.traffic.served
    arms = []
    for suffix, artifact in benchmarks.baselines.items():
        users = [variant for variant in record.variants if variant.baseline == suffix]
        name = (
            "baseline"
            if len(benchmarks.baselines) == 1
            else f"baseline in {suffix.removeprefix('@') or users[0].engine}"
        )
        known = [m for v in users if v.evidence is not None for m in v.evidence.baseline_measurements]
        arms.append(_arm(name, users[0], "baseline", artifact, known, recipe, served=served))
    for variant in record.variants:
        if variant.name in benchmarks.variants:
            artifact = benchmarks.variants[variant.name]
            known = variant.evidence.measurements if variant.evidence is not None else []
            arms.append(_arm(variant.name, variant, "variant", artifact, known, recipe, served=served))
        if variant.name in benchmarks.ahead:
            name = f"baseline with {variant.name} ahead"
            arms.append(_arm(name, variant, "variant", benchmarks.ahead[variant.name], [], recipe, served=served))
    return Measured(tuple(arms), benchmarks.config)


def _arm(
    name: str,
    variant: VariantRecord,
    arm: str,
    artifact: Artifact,
    known: Sequence[Measurement],
    recipe: Recipe,
    *,
    served: bool,
) -> Arm:
    """An arm that is served as `variant` is; `arm` is its name in the artifact."""
    values = {m.name: m.value for m in known}
    planned = next((v for v in recipe.variants if v.name == variant.name), None)
    engine = recipe.engine_of(planned) if planned is not None else recipe.engine
    return Arm(
        name=name,
        engine=variant.engine,
        devices=getattr(engine, "tensor_parallel_size", None) or _gpus(artifact.directory / FINGERPRINT_FILE),
        points=_points(artifact, arm),
        memory=values.get("load.memory_peak"),
        concurrency=values.get("load.concurrency"),
        production=served and variant.engine != "transformers",
        doubts=tuple(artifact.loads.reasons.get(arm, ())) if artifact.loads is not None else (),
    )


def _gpus(path: Path) -> int:
    """How many GPUs the machine's fingerprint has, all of which an engine without a setting of its own spreads over."""
    try:
        return max(1, int(json.loads(path.read_text(encoding="utf-8")).get("gpus", "1")))
    except (OSError, ValueError):
        return 1


def _points(artifact: Artifact, arm: str) -> tuple[Point, ...]:
    """The curve of an arm, with every time that the requests behind each point tell."""
    more = _times(artifact.directory / CURVE_ROWS_FILE, arm)
    found = []
    for point in artifact.curve:
        if point.arm != arm:
            continue
        own = {name: getattr(point, name) for name in ("ttft_p50", "ttft_p95", "tpot_p50", "e2e_p50")}
        found.append(
            Point(
                streams=point.streams,
                requests=point.requests,
                requests_per_second=point.requests_per_second,
                output_tokens_per_second=point.output_tokens_per_second,
                failures=point.failures,
                times={
                    **more.get(point.streams, {}),
                    **{name: value for name, value in own.items() if value is not None},
                },
            )
        )
    return tuple(found)


def _times(path: Path, arm: str) -> Mapping[int, dict[str, float]]:
    """Times by quantity, by requests under way, from the rows of a curve; empty where they were not kept."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return {}
    found: dict[int, list[dict[str, object]]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["arm"] == arm:
            found.setdefault(int(row["load"].removeprefix("curve-")), []).append(row)
    return {streams: percentiles(rows, IN_BLOCK) for streams, rows in found.items()}


def _recipe(directory: Path) -> Recipe:
    path = directory / RESOLVED
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            "the run's recipe cannot be read.", where=str(path), fix="Run the recipe again: stages are reused."
        ) from error
