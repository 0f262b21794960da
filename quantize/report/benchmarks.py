"""What a run's benchmarks left in the store, beside what its record says of them: blocks, curves, rates, the recipe.

A report can do without: where the store no longer holds an artifact, what only it knows is not told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from pydantic import ValidationError

from quantize.benchmark.blockfile import REQUESTS_FILE, BlockRecord, CurvePoint, read_blocks, read_curve
from quantize.benchmark.config import Benchmark
from quantize.benchmark.keeping import LOADS_FILE, LoadRecord
from quantize.benchmark.requests import read as read_requests
from quantize.errors import QuantizeError, StoreError
from quantize.run import RunRecord
from quantize.run_record import RESOLVED
from quantize.served import Request
from quantize.store import Store

__all__ = ["AHEAD", "STAGE", "Artifact", "Benchmarks", "read_benchmarks"]

#: The names of the stages in a run's record: a variant's own, and the baseline's with the variant guessing ahead.
STAGE = "benchmark"
AHEAD = "benchmark.ahead"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One benchmark stage: `directory` it lies in, `blocks` in the order run, `curve` of the arms measured in it.

    `longest` is how many tokens the longest request has, its answer included; `shape` the mean tokens of prompts and of
    answers.
    """

    directory: Path
    blocks: tuple[BlockRecord, ...]
    curve: tuple[CurvePoint, ...]
    loads: LoadRecord | None
    longest: int | None = None
    shape: tuple[float, float] | None = None

    def valid(self) -> tuple[BlockRecord, ...]:
        """The blocks that count."""
        return tuple(block for block in self.blocks if block.valid)


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """The benchmarks of a run: what its recipe says of them, and artifacts by variant and by the baseline's suffix."""

    config: Benchmark | None = None
    variants: Mapping[str, Artifact] = field(default_factory=dict)
    baselines: Mapping[str, Artifact] = field(default_factory=dict)
    ahead: Mapping[str, Artifact] = field(default_factory=dict)


def read_benchmarks(record: RunRecord, directory: Path, store: Store, *, strict: bool = False) -> Benchmarks:
    """The benchmarks of the run in `directory`.

    What is missing or damaged is left out; with `strict` it raises StoreError or DataError instead.
    """
    reached = {key for label, key in record.baseline_stages.items() if label.partition("@")[0] == STAGE}
    reached |= {key for variant in record.variants for label, key in variant.stages.items() if label in (STAGE, AHEAD)}
    kept = {key: found for key in reached if (found := _kept(key, store, strict=strict)) is not None}
    suffixes = {variant.baseline for variant in record.variants}
    baselines = {suffix: record.baseline_stages.get(f"{STAGE}{suffix}", "") for suffix in suffixes}
    return Benchmarks(
        config=_config(directory, strict=strict),
        variants={v.name: kept[v.stages[STAGE]] for v in record.variants if v.stages.get(STAGE) in kept},
        baselines={suffix: kept[key] for suffix, key in baselines.items() if key in kept},
        ahead={v.name: kept[v.stages[AHEAD]] for v in record.variants if v.stages.get(AHEAD) in kept},
    )


def _kept(key: str, store: Store, *, strict: bool) -> Artifact | None:
    try:
        if store.find(STAGE, key) is None:
            raise StoreError(
                f"the benchmark {key[:12]} is not in the store any more.",
                where=str(store.root),
                fix="Run the same recipe again: it is measured anew.",
            )
        directory = store.path(STAGE, key)
        loads, asked = directory / LOADS_FILE, directory / REQUESTS_FILE
        requests = read_requests(asked) if asked.is_file() else []
        return Artifact(
            directory=directory,
            blocks=tuple(read_blocks(directory)),
            curve=tuple(read_curve(directory)),
            loads=LoadRecord.model_validate_json(loads.read_bytes()) if loads.is_file() else None,
            longest=max((r.input_tokens + r.output_tokens for r in requests), default=None),
            shape=_shape(requests),
        )
    except QuantizeError:
        if strict:
            raise
        return None  # a damaged artifact is for `verify` to tell
    except ValidationError as error:
        if strict:
            raise StoreError(
                f"{LOADS_FILE} was changed.",
                where=str(store.path(STAGE, key)),
                fix="Remove the artifact and run again.",
            ) from error
        return None


def _shape(requests: Sequence[Request]) -> tuple[float, float] | None:
    if not requests:
        return None
    return mean(r.input_tokens for r in requests), mean(r.output_tokens for r in requests)


def _config(directory: Path, *, strict: bool) -> Benchmark | None:
    """What the recipe of the run says of its benchmark."""
    path = directory / RESOLVED
    try:
        told = json.loads(path.read_text(encoding="utf-8")).get("benchmark")
        return Benchmark.model_validate(told) if told is not None else None
    except (OSError, ValueError) as error:
        if strict:
            raise StoreError(
                "the run's recipe cannot be read.", where=str(path), fix="Run the recipe again: stages are reused."
            ) from error
        return None
