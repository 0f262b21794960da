"""The closed table of stages: kind -> version and function(config, inputs, out, device, progress) -> summary.

A stage's function runs in a worker process, reads only its config and its inputs, and writes only into `out`. A version
is raised, with the reason beside it, when the meaning of a stage's output changes: every key of that kind changes with
it. The imports of heavy libraries lie behind the functions that are called here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from quantize.protocols import Calibrator, Engine, Gate, Method, Metric, Progress, QuantizeJob, Source

__all__ = ["STAGES", "StageKind"]

Config = dict[str, Any]
Inputs = dict[str, Path]
StageFunction = Callable[[Config, Inputs, Path, str, Progress], Config]


@dataclass(frozen=True, slots=True)
class StageKind:
    """What a stage does, and the version of what it means."""

    version: int
    run: StageFunction


def fetch(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """Model as named -> `checkpoint/` (checked) and its facts."""
    from quantize.sources import SourceConfig, checkpoint_facts

    source: Source = TypeAdapter(SourceConfig).validate_python(config["source"])
    checkpoint = out / "checkpoint"
    checkpoint.mkdir()
    source.fetch(checkpoint, progress)
    return {"facts": checkpoint_facts(checkpoint).model_dump(mode="json")}


def calibrate(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """Baseline -> `tokens.safetensors` with `input_ids` int64 (samples, tokens), and each row's digest."""
    from hashlib import sha256

    from safetensors.torch import save_file

    from quantize.calibrators import CalibratorConfig

    calibrator: Calibrator = TypeAdapter(CalibratorConfig).validate_python(config["calibration"])
    tokens = calibrator.tokens(inputs["model"] / "checkpoint", device, progress)
    save_file({"input_ids": tokens.contiguous()}, out / "tokens.safetensors")
    rows = [sha256(row.numpy().tobytes()).hexdigest() for row in tokens]
    return {"samples": tokens.shape[0], "tokens": tokens.shape[1], "distinct": len(set(rows)), "rows": rows}


def quantize(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """Checkpoint + tokens -> `checkpoint/` quantized, and `witness/`, what it answered before it was saved."""
    from functools import partial

    from safetensors.torch import load_file

    from quantize.methods import MethodConfig
    from quantize.proof import record
    from quantize.scheme import Scheme

    method: Method = TypeAdapter(MethodConfig).validate_python(config["method"])
    checkpoint, witness = out / "checkpoint", out / "witness"
    checkpoint.mkdir()
    witness.mkdir()
    source = inputs["model"] / "checkpoint"
    job = QuantizeJob(
        checkpoint=source,
        out=checkpoint,
        scheme=Scheme(**config["scheme"]),
        ignore=tuple(config["ignore"]),
        tokens=load_file(inputs["tokens"] / "tokens.safetensors")["input_ids"] if "tokens" in inputs else None,
        device=device,
        seed=config["seed"],
        witness=partial(record, tokenizer_dir=source, out=witness),
        progress=progress,
    )
    method.quantize(job)
    return {"format": method.format, "scheme": config["scheme"]["name"], "method": method.kind}


def prove(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """Load the saved checkpoint in this clean process and compare it with what it was in memory -> `proof.json`."""
    from quantize import proof
    from quantize.engines import EngineConfig
    from quantize.errors import Interrupted, QuantizeError

    engine: Engine = TypeAdapter(EngineConfig).validate_python(config["engine"])
    started = time.monotonic()
    loading = 0.0
    progress("loading", 0, None)
    try:
        session = engine.open(inputs["quantized"] / "checkpoint", device)
    except Interrupted:
        raise  # a stop is no proof of anything
    except QuantizeError as error:
        result = proof.not_loaded(str(error))
    else:
        loading = time.monotonic() - started
        result = proof.prove(
            checkpoint=inputs["quantized"] / "checkpoint",
            witness=inputs["quantized"] / "witness",
            baseline=inputs["model"] / "checkpoint",
            session=session,
        )
    (out / "proof.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    return {"outcome": result.outcome, "sentences": list(result.sentences), "load_seconds": round(loading, 3)}


def evaluate(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """One arm answers one eval -> `rows.parquet`, `measurements.json`."""
    from quantize.engines import EngineConfig
    from quantize.errors import DataError
    from quantize.metrics import MetricConfig
    from quantize.record import digest

    engine: Engine = TypeAdapter(EngineConfig).validate_python(config["engine"])
    metric: Metric = TypeAdapter(MetricConfig).validate_python(config["metric"])
    if digest(metric.identity()) != config["identity"]:
        raise DataError("the eval set was changed after the run was planned.", where=metric.name, fix="Run again.")
    baseline = inputs["model"] / "checkpoint"
    checkpoint = inputs["quantized"] / "checkpoint" if "quantized" in inputs else baseline
    progress("loading", 0, None)
    session = engine.open(checkpoint, device)
    arm = metric.measure(session, config["arm"], out, inputs.get("reference"), baseline, progress)
    (out / "measurements.json").write_text(arm.model_dump_json(indent=1), encoding="utf-8")
    return {"measurements": {m.name: m.value for m in arm.measurements}, "hard_stops": arm.hard_stops}


def judge(config: Config, inputs: Inputs, out: Path, device: str, progress: Progress) -> Config:
    """Both arms' artifacts + gates -> `evidence.json`, `verdict.json`."""
    from quantize.gates import GateConfig
    from quantize.judgement import collect, decide
    from quantize.metrics import MetricConfig

    metrics: Sequence[Metric] = TypeAdapter(list[MetricConfig]).validate_python(config["evals"])
    gates: Sequence[Gate] = TypeAdapter(list[GateConfig]).validate_python(config["gates"])
    collected = collect(config["variant"], metrics, inputs)
    verdict = decide(collected, gates, config["rules_digest"])
    (out / "evidence.json").write_text(collected.evidence.model_dump_json(indent=1), encoding="utf-8")
    (out / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
    return {"outcome": verdict.outcome, "verdict_digest": verdict.digest()}


STAGES: dict[str, StageKind] = {
    "fetch": StageKind(1, fetch),
    "calibrate": StageKind(1, calibrate),
    "quantize": StageKind(1, quantize),
    "prove": StageKind(1, prove),
    "evaluate": StageKind(1, evaluate),
    "judge": StageKind(1, judge),
}
