"""What can be known before any time is spent: what is impossible, what is doubtful, and what a run will cost.

Estimates, in bytes and seconds, with P parameters, p bytes per parameter in compute (4 on CPUs, which compute in
float32, else 2), T calibration tokens and a rate R of floating-point operations per second:

    memory of quantize, evaluate, prove    P * p * 1.3 + 1.5 GB   weights, activations, the interpreter with torch
    disk of a variant                      Linear weights at the scheme's bits + the rest as it is
    disk of an unquantized GGUF file       P * bytes of its dtype
    time of calibrated methods             passes * 2 * P * T / R with 3 passes (gptq: + its column loop, 4 * P * h / R)
    time of an importance matrix           2 * P * T / R
    time of an evaluation                  2 * P * tokens / R
    time of a benchmark                    see `benchmark.effort`, with B bytes a second that weights are read at

R and B are round figures for the device class, so the times say "minutes" or "hours" and no more; where the store holds
a stage of the same kind and name, its own time is shown instead.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantize import coverage, load_checks
from quantize.artifact import ModelFacts
from quantize.attempts import Ledger, basis
from quantize.benchmark import effort
from quantize.device import Device, gpus
from quantize.evidence import Spending, of_eval
from quantize.gates import GateConfig, NonInferiority
from quantize.leakage import seen_hashes
from quantize.methods import Existing, Gguf
from quantize.metrics import Items
from quantize.overlap import leaked
from quantize.plan import Plan, Stage
from quantize.protocols import Metric
from quantize.readiness import readiness
from quantize.recipe import Recipe, Variant
from quantize.sharing import at_once, share_of_threads
from quantize.store import Store

__all__ = ["Estimate", "Preflight", "attempts_of", "check", "estimates", "memory_of_stage"]

_CPU_RATE, _GPU_RATE = 6e10, 1e14
_CPU_BANDWIDTH, _GPU_BANDWIDTH = 1e10, 1e12
_BASE_MEMORY = 1.5e9
_TOKENS_PER_ITEM = 45
#: Kinds of stages that hold the whole model in memory.
_LOADS = ("calibrate", "convert", "imatrix", "quantize", "prove", "evaluate", "benchmark")


@dataclass(frozen=True, slots=True)
class Preflight:
    """`problems` make the run impossible; `notes` are worth knowing."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one stage will cost: bytes of memory and disk, seconds; `measured` where the time was seen in this store."""

    stage: Stage
    cached: bool
    memory: float | None
    disk: float | None
    seconds: float | None
    measured: bool


def check(
    recipe: Recipe,
    facts: ModelFacts,
    device: Device,
    store: Path,
    variants: tuple[Variant, ...],
    attempts: Mapping[str, int] | None = None,
    *,
    environments: bool = True,
    release: bool = True,
) -> Preflight:
    """Look for what would make a run fail late or decide nothing. `attempts` by variant; the first where not known.

    Without `environments`, missing ones are no problem: they are going to be made. Without `release`, the place that
    weights go to is not asked whether it takes them.
    """
    problems = recipe.model.problems(facts)
    notes = [*recipe.model.notes(facts), *(f"not known before fetching: {what}" for what in facts.unknown)]
    for variant in variants:
        found, said = coverage.check(variant, facts)
        for part, narrowed in coverage.asked(variant, facts):
            found += variant.method.problems(part, narrowed)
        notes += [f"variants.{variant.name}: {note}" for note in said]
        told = []
        if isinstance(variant.method, Existing | Gguf):
            told = variant.method.notes(variant.resolved_scheme(), facts)
        notes += [f"variants.{variant.name}: {note}" for note in told]
        problems += [f"variants.{variant.name}: {problem}" for problem in found]
    looks = (
        coverage.of_model(facts, variants, [recipe.engine_of(variant) for variant in variants]),
        readiness(recipe, device, variants, environments=environments),
        load_checks.check(recipe, facts, variants),
    )
    problems += [problem for found, _ in looks for problem in found]
    notes += [note for _, said in looks for note in said]
    for gate in (gate for gate in recipe.gates if of_eval(gate.metric)):
        absent = _no_slice(recipe, gate)
        problems += absent
        if isinstance(gate, NonInferiority) and not absent:
            few = _too_few(recipe, gate)
            problems += few
            notes += [] if few else _power(recipe, gate)
    problems += [] if problems else _tried_out(recipe, variants, attempts or {})
    problems += _overlap(recipe, variants)
    problems += _without_template(recipe, facts)
    problems += [
        f"evals.{metric.name}.scorer: {what}"
        for metric in recipe.evals
        if isinstance(metric, Items) and (what := metric.lacking()) is not None
    ]
    problems += _store_problems(
        store, sum(_disk(variant, facts) or 0 for variant in variants) + _whole(variants, facts)
    )
    problems += recipe.registry.problems() if release else []
    memory = memory_of_stage(facts, device)
    if memory is not None and device.memory is not None and memory > device.memory:
        notes.append(
            f"a stage needs about {memory / 1e9:.0f} GB of memory and {device.name} has {device.memory / 1e9:.0f} GB"
        )
    return Preflight(tuple(problems), (*notes, *_side_by_side(recipe, device)))


def estimates(plan: Plan, facts: ModelFacts, store: Store) -> list[Estimate]:
    """The cost of every stage of a plan, each variant at the attempt that it would be."""
    seen = {(m.kind, m.name): m.provenance.seconds for _, m in store.manifests()}
    found = []
    for stage in plan.stages(attempts_of(plan, store)):
        cached = store.find(stage.kind, stage.key) is not None
        measured = seen.get((stage.kind, stage.name))
        seconds = measured if measured is not None else _seconds(stage, plan, facts)
        memory = memory_of_stage(facts, plan.device) if stage.kind in _LOADS else None
        disk = None
        if stage.kind == "quantize":
            disk = _disk(next(way.variant for way in plan.variants if way.quantize is stage), facts)
        elif stage.kind == "convert":
            disk = _unquantized(facts)
        found.append(Estimate(stage, cached, memory, disk, seconds, measured is not None))
    return found


def attempts_of(plan: Plan, store: Store) -> dict[str, int]:
    """The attempt of each variant whose artifact is there already; the others would be the next one."""
    ledger = Ledger.of(store, ())
    baseline = store.find("fetch", plan.fetch.key)
    found = {}
    for way in plan.variants:
        made = store.find("quantize", way.quantize.key)
        digest = made.checkpoint_digest() if made is not None else ""
        before = baseline.checkpoint_digest() if baseline is not None else ""
        bases = [basis(before, dataset, way.variant.name) for dataset in plan.counted.values()]
        found[way.variant.name] = ledger.attempt(bases, digest)
    return found


def _side_by_side(recipe: Recipe, device: Device) -> list[str]:
    """One sentence where several stages run at once."""
    several, threads = at_once(recipe.resources, device, gpus()), share_of_threads(recipe.resources, device, gpus())
    if several == 1:
        return []
    each = recipe.resources.threads or threads
    return [
        f"up to {several} stages run side by side, with {each} CPU thread{'s' * (each != 1)} each; benchmarks alone"
    ]


def _store_problems(store: Path, need: float) -> list[str]:
    existing = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "you may not write in" if existing.is_dir() else "there is a file called"
        return [f"{store}: {reason} {existing}: choose another store with --store"]
    free = shutil.disk_usage(existing).free
    if need > free:
        mend = "make room with `quantize gc`, or choose another store with --store"
        return [f"{store}: the variants need about {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: {mend}"]
    return []


def _parts(recipe: Recipe, gate: GateConfig) -> tuple[Metric, str]:
    """The eval that a gate looks at, and the slice of it; empty for all items."""
    name = gate.metric.partition(".")[0]
    return next(metric for metric in recipe.evals if metric.name == name), gate.metric.partition("/")[2]


def _no_slice(recipe: Recipe, gate: GateConfig) -> list[str]:
    """One sentence where the gate looks at a slice that no item is in."""
    metric, slice_name = _parts(recipe, gate)
    known = metric.slices()
    if "/" not in gate.metric or slice_name in known or (slice_name and not metric.cluster_sizes()):
        return []
    listed = f"it has {', '.join(known)}" if known else "it has no slices"
    return [f"gates {gate.metric}: the eval {metric.name!r} has no slice {slice_name!r}: {listed}"]


def _spent(recipe: Recipe, gate: NonInferiority, attempt: int = 1) -> float:
    """The alpha that the gate's last test has at an attempt."""
    from quantize.stats import spent_alpha

    counted = Spending(attempt=attempt, confirmation=recipe.confirmation).attempt_at(gate.metric)
    return spent_alpha(gate.alpha, counted, recipe.early_stopping.share if recipe.early_stopping.enabled else 0.0)


def _too_few(recipe: Recipe, gate: NonInferiority, attempt: int = 1) -> list[str]:
    """One sentence where the gate could not pass even if no answer changed, at the alpha that is left for its test."""
    from quantize.stats import can_pass, least_clusters

    sizes = _sizes(recipe, gate)
    if not sizes:
        return []
    mean, largest = sum(sizes) / len(sizes), max(sizes)
    alpha = _spent(recipe, gate, attempt)
    what = "items" if largest == 1 else f"clusters ({sum(sizes)} items, {largest} in the largest)"

    def enough(count: int, margin: float) -> bool:
        return can_pass(count, margin, alpha) if largest == 1 else count >= least_clusters(margin, alpha, mean, largest)

    if enough(len(sizes), gate.margin):
        return []
    least = len(sizes) + 1
    while not enough(least, gate.margin):
        least += 1
    # The closed form is a lower bound; the exact test may ask for a little more.
    points = math.ceil(1000 * (1 - alpha ** (1 / len(sizes))))
    while points < 1000 and not enough(len(sizes), points / 1000):
        points += 1
    mend = f", or raise the margin to {points / 10:.1f} points" if points < 1000 else ""
    problem = (
        f"gates {gate.metric}: {len(sizes)} {what} cannot show a loss below {100 * gate.margin:g} points even if no "
        f"answer changes: at least {least} are needed at the alpha of {alpha:.2g} that is left after early stopping "
        f"and {'the allowance for further attempts' if attempt == 1 else f'at attempt {attempt}'}. "
        f"Add {'items' if largest == 1 else 'clusters'}{mend}"
    )
    return [problem]


def _tried_out(recipe: Recipe, variants: tuple[Variant, ...], attempts: Mapping[str, int]) -> list[str]:
    """One sentence a variant that was tried so often that it cannot pass any more."""
    found = []
    for variant in variants:
        attempt = attempts.get(variant.name, 1)
        tests = [gate for gate in recipe.gates if isinstance(gate, NonInferiority) and not gate.advisory]
        problems = [problem for gate in tests for problem in _too_few(recipe, gate, attempt)] if attempt > 1 else []
        found += [f"variants.{variant.name}: {problems[0]}, or leave it out with --only"] if problems else []
    return found


def _sizes(recipe: Recipe, gate: NonInferiority) -> list[int]:
    metric, slice_name = _parts(recipe, gate)
    return metric.cluster_sizes(slice_name or None, gate.metric.partition(".")[2].partition("/")[0])


def _power(recipe: Recipe, gate: NonInferiority) -> list[str]:
    from quantize.stats import planning_table

    sizes = _sizes(recipe, gate)
    if not sizes:
        return []
    alpha = _spent(recipe, gate)
    table = ", ".join(f"{row.items} at {100 * row.flip_rate:g} %" for row in planning_table(gate.margin, alpha))
    grouped = f" in {len(sizes)} clusters (the table is for unclustered ones)" if max(sizes) > 1 else ""
    note = (
        f"{gate.metric}: {sum(sizes)} items{grouped}; for 90 % power at no true difference, alpha {alpha:.3f} and this "
        f"share of flips: {table}"
    )
    return [note]


def _overlap(recipe: Recipe, variants: tuple[Variant, ...]) -> list[str]:
    """One sentence an eval whose texts are in the calibration data, as far as that is at hand."""
    if recipe.calibration is None or not any(variant.calibrated for variant in variants):
        return []
    return leaked(recipe, seen_hashes(recipe.calibration.texts()) if not recipe.calibration.allow_overlap else [])


def _without_template(recipe: Recipe, facts: ModelFacts) -> list[str]:
    """One sentence for what talks to a model which has no chat template: evals, and the calibration data."""
    if facts.chat is not False:
        return []
    found = []
    if recipe.calibration is not None and recipe.calibration.chats():
        found.append(
            "calibration: its documents are conversations (`messages`), and the model has no chat template. Give them "
            "as `text`, or the model a chat_template.jinja"
        )
    return found + [
        f"evals.{metric.name}: its items are conversations (`messages`), and the model has no chat template. Give them "
        "a `prompt`, or the model a chat_template.jinja"
        for metric in recipe.evals
        if isinstance(metric, Items) and metric.chats()
    ]


def memory_of_stage(facts: ModelFacts, device: Device) -> float | None:
    """Bytes that a stage needs which holds the whole model; None where its size is not known."""
    if facts.parameters is None:
        return None
    return facts.parameters * (4 if device.kind == "cpu" else 2) * 1.3 + _BASE_MEMORY


def _disk(variant: Variant, facts: ModelFacts) -> float | None:
    return coverage.weight_bytes(variant, facts, 4 if facts.dtype == "float32" else 2)


def _unquantized(facts: ModelFacts) -> float | None:
    return None if facts.parameters is None else float(facts.parameters * (4 if facts.dtype == "float32" else 2))


def _whole(variants: tuple[Variant, ...], facts: ModelFacts) -> float:
    """Bytes of the unquantized GGUF file that GGUF variants are made from."""
    return (_unquantized(facts) or 0) if any(isinstance(variant.method, Gguf) for variant in variants) else 0


def _seconds(stage: Stage, plan: Plan, facts: ModelFacts) -> float | None:
    if facts.parameters is None:
        return None
    rate = _CPU_RATE if plan.device.kind == "cpu" else _GPU_RATE
    forward = 2.0 * facts.parameters
    calibration = stage.inputs["tokens"].config["calibration"] if "tokens" in stage.inputs else None
    tokens = calibration["samples"] * calibration["tokens"] if calibration is not None else 0
    if stage.kind == "quantize" and "tokens" in stage.inputs:
        return 3 * forward * tokens / rate + 4.0 * facts.parameters * (facts.hidden_size or 4096) / rate + 10
    if stage.kind == "imatrix":
        return forward * tokens / rate + 10
    if stage.kind == "evaluate":
        metric: Metric = next(m for m in plan.recipe.evals if m.name == stage.config["metric"]["name"])
        items = sum(metric.cluster_sizes())
        return forward * items * _TOKENS_PER_ITEM / rate + 10 if items else None
    if stage.kind == "benchmark" and plan.recipe.benchmark is not None:
        cost = effort.effort(plan.recipe.benchmark, 1 if plan.recipe.benchmark.alone else 2)
        bandwidth, width = (_CPU_BANDWIDTH, 4) if plan.device.kind == "cpu" else (_GPU_BANDWIDTH, 2)
        return effort.seconds(cost, plan.recipe.benchmark, facts.parameters, rate, bandwidth, width)
    return 10.0 if stage.kind in ("convert", "quantize", "prove") else None
