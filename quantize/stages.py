"""The closed table of stages: kind -> version and function(config, work) -> summary.

A stage's function runs in a worker process, reads only its config and its inputs, and writes only into `out` and the
parts that it keeps on the way. A version is raised, with the reason beside it, when the meaning of a stage's output
changes: every key of that kind changes with it. The imports of heavy libraries lie behind the functions that are called
here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from quantize.evidence import Spending
from quantize.handed import EvaluateJob, Host, Progress, QuantizeJob, Row, Session, Stop
from quantize.parts import StoreParts
from quantize.protocols import Calibrator, Engine, Gate, Method, Metric, Source
from quantize.served import Service, TimedSession

__all__ = ["STAGES", "StageKind", "Work"]

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage is given beside its config: its inputs, an empty `out`, a device, and a way to keep parts.

    `parts(base, name)` holds the lease on the parts of `base` for the time of a `with`; `host` has the interpreters of
    other environments.
    """

    inputs: dict[str, Path]
    out: Path
    device: str
    progress: Progress
    parts: Callable[[str, str], AbstractContextManager[StoreParts]]
    host: Host


#: Names inside artifacts that two stages, or a stage and a leaf package, agree on.
SOURCE_GGUF, MODEL_GGUF, IMATRIX = "source.gguf", "model.gguf", "imatrix.gguf"
#: The folder of a store in which a judge's scores are kept between stages.
JUDGED = "judged"

StageFunction = Callable[[Config, Work], Config]


@dataclass(frozen=True, slots=True)
class StageKind:
    """What a stage does, and the version of what it means."""

    version: int
    run: StageFunction


def fetch(config: Config, work: Work) -> Config:
    """Model as named -> `checkpoint/` (checked), its facts, and what was done to it on the way (`notes`)."""
    from quantize.sources import SourceConfig, checkpoint_facts

    source: Source = TypeAdapter(SourceConfig).validate_python(config["source"])
    checkpoint = work.out / "checkpoint"
    checkpoint.mkdir()
    source.fetch(checkpoint, work.progress)
    named = config["source"].get("base", config["source"])
    place = {name: named.get(name) for name in ("kind", "repo", "revision")}
    notes = source.notes(source.facts())
    facts = checkpoint_facts(checkpoint).model_dump(mode="json")
    return {"facts": facts, "origin": place, **({"notes": notes} if notes else {})}


def calibrate(config: Config, work: Work) -> Config:
    """Baseline, data -> `tokens.safetensors`, and each row's digest (`calibration`).

    `seen.json` are hashes of what the tokens were drawn from, by which eval items are recognised (`leakage`).
    """
    import json

    from quantize.calibration import save_rows, told
    from quantize.calibrators import CalibratorConfig
    from quantize.leakage import seen_hashes

    calibrator: Calibrator = TypeAdapter(CalibratorConfig).validate_python(config["calibration"])
    drawn = calibrator.draw(work.inputs["model"] / "checkpoint", work.device, work.progress)
    save_rows(drawn.rows, work.out)
    (work.out / "seen.json").write_text(json.dumps(seen_hashes(drawn.documents)), encoding="utf-8")
    return told(drawn)


def convert(config: Config, work: Work) -> Config:
    """Checkpoint -> `checkpoint/` with the same numbers as one GGUF file, and the baseline's own `witness/`.

    Where the model came as a GGUF file, that file is expanded instead: it keeps what it says of itself.
    """
    from quantize.engines import Transformers
    from quantize.methods import convert_to_gguf
    from quantize.proof import record

    checkpoint, witness, model = work.out / "checkpoint", work.out / "witness", work.inputs["model"]
    checkpoint.mkdir()
    witness.mkdir()
    source = model / SOURCE_GGUF
    facts = convert_to_gguf(
        model / "checkpoint", source if source.is_symlink() else None, checkpoint, work.host, work.progress
    )
    work.progress("asking the model itself", 0, None)
    session = Transformers().open(model / "checkpoint", work.device)
    record(session.model, tokenizer_dir=model / "checkpoint", out=witness)
    return {"format": "gguf", **facts}


def imatrix(config: Config, work: Work) -> Config:
    """GGUF + tokens -> `imatrix.gguf`, by llama.cpp's own arithmetic and in its own form."""
    from quantize.calibration import read_rows
    from quantize.methods import collect_imatrix

    tokens = read_rows(work.inputs["tokens"])
    full = work.inputs["full"] / "checkpoint" / MODEL_GGUF
    return dict(collect_imatrix(full, tokens, work.out / IMATRIX, work.device, work.host, work.progress))


def quantize(config: Config, work: Work) -> Config:
    """Checkpoint + tokens -> `checkpoint/` quantized, its card, and `witness/`: its answers before it was saved."""
    from quantize.calibration import read_rows
    from quantize.card import describe_variant
    from quantize.errors import SourceError
    from quantize.methods import Existing, MethodConfig, gguf_contents
    from quantize.proof import record, refer
    from quantize.record import digest
    from quantize.scheme import scheme_of

    method: Method = TypeAdapter(MethodConfig).validate_python(config["method"])
    checkpoint, witness = work.out / "checkpoint", work.out / "witness"
    checkpoint.mkdir()
    witness.mkdir()
    source = work.inputs["model"] / "checkpoint"
    tokens, told = work.inputs.get("tokens"), Config()
    job = QuantizeJob(
        checkpoint=source,
        out=checkpoint,
        scheme=scheme_of(config["scheme"]),
        ignore=tuple(config["ignore"]),
        tokens=read_rows(tokens) if tokens is not None else None,
        device=work.device,
        seed=config["seed"],
        witness=partial(record, tokenizer_dir=source, out=witness),
        refer=partial(refer, baseline=source, out=witness, device=work.device),
        progress=work.progress,
        host=work.host,
        full=work.inputs["full"] / "checkpoint" / MODEL_GGUF if "full" in work.inputs else None,
        importance=work.inputs["importance"] / IMATRIX if "importance" in work.inputs else None,
        tell=told.update,
        **config.get("experts", {}),
    )
    method.quantize(job)
    theirs = method.identity() if isinstance(method, Existing) else {}
    if theirs and digest(theirs) != config["identity"]:
        raise SourceError(
            "the checkpoint was changed after the run was planned.",
            where=config["method"].get("path"),
            fix="Run again.",
        )
    held = gguf_contents(checkpoint / MODEL_GGUF) if method.format == "gguf" else {}
    # A checkpoint of somebody else is judged as it is; only a lone GGUF file is given what belongs beside it.
    if not theirs or theirs.keys() & {"gguf", "file"}:
        describe_variant(config, method, work.inputs, checkpoint)
    return {"format": method.format, "scheme": config["scheme"]["name"], "method": method.kind, **held, **told}


def prove(config: Config, work: Work) -> Config:
    """Load what was saved in its engine and compare it with what it was in memory -> `proof.json`.

    What it cost goes into the summary: equal bytes give equal proofs.
    """
    from quantize import proof
    from quantize.engines import EngineConfig
    from quantize.errors import EngineLost, Interrupted, QuantizeError

    engine: Engine = TypeAdapter(EngineConfig).validate_python(config["engine"])
    made = work.inputs["quantized"]
    started = time.monotonic()
    loading, memory = 0.0, {}
    work.progress("loading", 0, None)
    try:
        session = engine.open(made / "checkpoint", work.device, work.host)
    except (Interrupted, EngineLost):
        raise  # neither proves anything
    except QuantizeError as error:
        result = proof.not_loaded(error, proof.damage(made / "checkpoint"))
    else:
        loading = time.monotonic() - started
        work.progress("asking", 0, None)
        try:
            baseline = work.inputs["model"] / "checkpoint"
            result = proof.prove(made / "checkpoint", made / "witness", baseline, session, engine.kind)
            memory = session.memory()
        finally:
            session.close()
    (work.out / "proof.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    return {
        "outcome": result.outcome,
        "sentences": list(result.sentences),
        "load_seconds": round(loading, 3),
        "memory": memory,
    }


def evaluate(config: Config, work: Work) -> Config:
    """One arm answers one eval -> `rows.parquet`, `measurements.json`. Every look is kept as a part."""
    from quantize.engines import EngineConfig
    from quantize.errors import DataError
    from quantize.gates import GateConfig
    from quantize.metrics import MetricConfig, read_rows
    from quantize.record import digest
    from quantize.stopping import never, stopping_rule

    engine: Engine = TypeAdapter(EngineConfig).validate_python(config["engine"])
    metric: Metric = TypeAdapter(MetricConfig).validate_python(config["metric"])
    gates: Sequence[Gate] = TypeAdapter(list[GateConfig]).validate_python(config["gates"])
    if digest(metric.identity()) != config["identity"]:
        raise DataError("the eval set was changed after the run was planned.", where=metric.name, fix="Run again.")
    baseline = work.inputs["model"] / "checkpoint"
    checkpoint = work.inputs["quantized"] / "checkpoint" if "quantized" in work.inputs else baseline
    reference = work.inputs.get("reference")
    stop: Callable[[list[Row]], Stop | None] = never
    if gates and reference is not None:
        stop = stopping_rule(metric, gates, read_rows(reference), Spending(**config["spending"]))
    with ExitStack() as opened:

        @cache
        def session() -> Session:
            work.progress("loading", 0, None)
            loaded = engine.open(checkpoint, work.device, work.host)
            opened.callback(loaded.close)
            return loaded

        parts = opened.enter_context(work.parts(config["parts"], f"{config['arm']} {metric.name}"))
        arm = metric.measure(
            EvaluateJob(
                arm=config["arm"],
                out=work.out,
                engine=engine.kind,
                device=work.device,
                session=session,
                seed=config["seed"],
                look=config["look"],
                parts=parts,
                stop=stop,
                reference=reference,
                baseline=baseline,
                progress=work.progress,
                kept=parts.store.root / JUDGED,
            )
        )
    (work.out / "measurements.json").write_text(arm.model_dump_json(indent=1), encoding="utf-8")
    return {
        "measurements": {m.name: m.value for m in arm.measurements},
        "hard_stops": arm.hard_stops,
        "progressed": arm.progressed.model_dump(mode="json") if arm.progressed is not None else None,
        "parts": parts.used,
    }


def benchmark(config: Config, work: Work) -> Config:
    """Two arms of one engine under load -> `requests.parquet`, `blocks.json`, `curve.json`. Every block is a part.

    The baseline is paired with itself, and its knee found; with a `reference`, that one's, it is paired with a variant.
    """
    from quantize import benchmark as bench
    from quantize.benchmark.config import Benchmark
    from quantize.engines import EngineConfig
    from quantize.errors import DataError
    from quantize.machine import fingerprint
    from quantize.record import digest
    from quantize.sources import checkpoint_facts
    from quantize.watching import Watch, check_alone

    engine: Engine = TypeAdapter(EngineConfig).validate_python(config["engine"])
    wanted = Benchmark.model_validate(config["benchmark"])
    if fingerprint(work.device) != config["machine"]:
        raise DataError("this is not the machine that the run was planned on.", fix="Plan and run on one machine.")
    if digest(wanted.requests.identity()) != config["requests"]:
        raise DataError("the prompts were changed after the run was planned.", where="benchmark", fix="Run again.")
    model, reference = work.inputs["model"] / "checkpoint", work.inputs.get("reference")
    baseline = work.inputs["form"] / "checkpoint" if "form" in work.inputs else model
    variant = work.inputs["quantized"] / "checkpoint" if "quantized" in work.inputs else baseline
    draft = work.inputs["draft"] / "checkpoint" if "draft" in work.inputs else None

    up = partial(_up, engine, work, served=wanted.traffic.served)
    arms = {"baseline": partial(up, baseline), "variant": partial(up, variant, ahead=draft)}
    if wanted.alone:
        del arms["baseline"]
    work.progress("making the requests", 0, None)
    room = engine.room(checkpoint_facts(model).context)
    made, note = bench.write(wanted.requests, work.out, model, bench.needed(wanted), config["seed"], room)
    with ExitStack() as opened:
        parts = opened.enter_context(work.parts(config["parts"], "blocks"))
        sender = wanted.traffic.open(model, work.host)
        opened.callback(sender.close)
        bench.measure(
            bench.PairJob(
                out=work.out,
                arms=arms,
                benchmark=wanted,
                requests=made,
                sender=sender,
                watch=partial(Watch, work.device, foreign=wanted.foreign),
                parts=parts,
                seed=config["seed"],
                progress=work.progress,
                fingerprint=config["machine"],
                ceilings=partial(_ceilings, work.device),
                knee=bench.knee_of(reference) if reference is not None else None,
                curves=("baseline",) if reference is None and not wanted.alone else ("variant",),
                alone=partial(check_alone, work.device, foreign=wanted.foreign),
            )
        )
    return {**bench.summary(work.out), "note": note, "parts": parts.used}


def _ceilings(device: str, dtype: str) -> dict[str, float]:
    """What a device can do at most in a dtype: FLOP/s, and bytes/s read."""
    from quantize import roofline

    return asdict(roofline.measure(device, dtype))


@contextmanager
def _up(
    engine: Engine, work: Work, checkpoint: Path, ahead: Path | None = None, *, served: bool
) -> Iterator[Service | TimedSession]:
    """A fresh server, or a session to be timed, while the context lasts. `ahead` is a draft."""
    opened: Service | TimedSession
    if served:
        opened = engine.serve(checkpoint, work.device, work.host, ahead)
    else:
        opened = cast("TimedSession", engine.open(checkpoint, work.device, work.host))
    try:
        yield opened
    finally:
        opened.close()


def judge(config: Config, work: Work) -> Config:
    """All arms' artifacts + gates -> `rules.json`, `evidence.json`, `verdict.json`."""
    from quantize.gates import GateConfig
    from quantize.judgement import Rules, collect, decide
    from quantize.metrics import MetricConfig

    metrics: Sequence[Metric] = TypeAdapter(list[MetricConfig]).validate_python(config["evals"])
    gates: Sequence[Gate] = TypeAdapter(list[GateConfig]).validate_python(config["gates"])
    rules = Rules(**config["rules"])
    collected = collect(rules, metrics, work.inputs)
    verdict = decide(collected, gates, rules)
    (work.out / "rules.json").write_text(rules.model_dump_json(indent=1), encoding="utf-8")
    (work.out / "evidence.json").write_text(collected.evidence.model_dump_json(indent=1), encoding="utf-8")
    (work.out / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
    return {"outcome": verdict.outcome, "verdict_digest": verdict.digest()}


STAGES: dict[str, StageKind] = {
    "fetch": StageKind(3, fetch),  # brings all that a licence is made of, and says where the model came from
    "calibrate": StageKind(2, calibrate),  # keeps what it has read, for the check against eval items
    "convert": StageKind(1, convert),
    "imatrix": StageKind(1, imatrix),
    "quantize": StageKind(3, quantize),  # a model card and the licence beside the weights; causal in every architecture
    "prove": StageKind(2, prove),  # in the serving engine, with its own tokenizer, template and stop
    "evaluate": StageKind(3, evaluate),  # texts have a column for engines that give the likeliest tokens only
    "benchmark": StageKind(1, benchmark),
    "judge": StageKind(4, judge),  # times under load
}
