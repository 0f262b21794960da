"""Recipe -> Plan. Pure but for what identifies the inputs: digests, a commit, what other interpreters have installed.

Which stages there are, what they read and what is theirs alone; `keys` makes their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from quantize.device import Device
from quantize.engines import EngineConfig
from quantize.errors import UsageError
from quantize.evidence import LOAD, Spending
from quantize.gates import NonInferiority
from quantize.judgement import Rules
from quantize.keys import Needs, StageMaker, dump, served, settings
from quantize.machine import fingerprint
from quantize.methods import Existing, Gguf
from quantize.metrics import Items
from quantize.plan import BASELINE, NOISE, Baseline, Measured, Plan, Stage, VariantPlan
from quantize.protocols import Metric
from quantize.recipe import LoadedRecipe, Recipe, Variant
from quantize.record import digest
from quantize.stopping import blocking

__all__ = ["chosen_variants", "make_plan", "needed_environments"]

#: The environment with llama.cpp's own tools.
LLAMACPP = "llamacpp"

_EVALUATION_LIBRARIES = ("lm_eval", "datasets")


def make_plan(loaded: LoadedRecipe, device: Device, only: tuple[str, ...] = ()) -> Plan:
    """Plan a recipe for a device. `only` names the variants to plan (empty: all). Asks the source who it is."""
    recipe = loaded.recipe
    chosen = chosen_variants(recipe, only)
    identity = recipe.model.identity()
    source = recipe.model.pinned(identity)
    identities = {metric.name: metric.identity() for metric in recipe.ordered_evals()}
    datasets = {metric.name: metric.dataset() for metric in recipe.ordered_evals()}
    make = StageMaker(recipe, device)
    planner = _Planner(make, identities, datasets)
    libraries = ("safetensors", *source.libraries)
    fetch = make.stage("fetch", "", {"source": source}, identity, {}, libraries, False, online=source.online)
    forms = _Forms(planner, fetch)
    baselines = planner.baselines([recipe.engine_of(variant) for variant in chosen], forms)
    variants = tuple(planner.variant(variant, forms, planner.baseline_of(variant, baselines)) for variant in chosen)
    return Plan(recipe, device, fetch, baselines, variants, planner.counted())


def needed_environments(recipe: Recipe, variants: Sequence[Variant], device: str) -> tuple[str, ...]:
    """The environments that these variants, and the baseline in their engines, are made and measured in."""
    needed: set[str] = set()
    for variant in variants:
        engine = recipe.engine_of(variant)
        wanted = (variant.method.environment, *variant.method.tools, engine.environment(device))
        needed |= {name for name in wanted if name is not None} | ({LLAMACPP} if engine.form == "gguf" else set())
    if recipe.benchmark is not None and recipe.benchmark.traffic.environment is not None:
        needed.add(recipe.benchmark.traffic.environment)
    return tuple(sorted(needed))


def chosen_variants(recipe: Recipe, only: tuple[str, ...]) -> list[Variant]:
    """The variants named by `only`, or all of them; raises UsageError for a name that the recipe has not."""
    names = [variant.name for variant in recipe.variants]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: the recipe has no such variant (it has {', '.join(names)}).")
    return [variant for variant in recipe.variants if not only or variant.name in only]


@dataclass(frozen=True, slots=True)
class _Planner:
    """Lays out stages; holds what all of them share. `identities` and `datasets` are the evals', by name."""

    make: StageMaker
    identities: dict[str, Any]
    datasets: dict[str, str]

    @property
    def recipe(self) -> Recipe:
        """What is planned."""
        return self.make.recipe

    @property
    def device(self) -> Device:
        """What it is planned for."""
        return self.make.device

    def counted(self) -> dict[str, str]:
        """The datasets on which attempts count: the confirmation's, or all that a test looks at."""
        tested = {gate.metric.partition(".")[0] for gate in self.recipe.gates if isinstance(gate, NonInferiority)}
        names = {self.recipe.confirmation} if self.recipe.confirmation else tested
        return {name: dataset for name, dataset in self.datasets.items() if name in names}

    def baselines(self, engines: Sequence[EngineConfig], forms: _Forms) -> tuple[Baseline, ...]:
        """The baseline in every engine that is used, each once, in the order of first use."""
        found: list[Baseline] = []
        for engine in engines:
            if all(self._as(baseline.engine) != self._as(engine) for baseline in found):
                suffix = _suffix(engine, self.device.kind, found)
                found.append(self._baseline(engine, suffix, forms))
        return tuple(found)

    def baseline_of(self, variant: Variant, baselines: tuple[Baseline, ...]) -> Baseline:
        """The baseline in a variant's engine."""
        engine = self._as(self.recipe.engine_of(variant))
        return next(baseline for baseline in baselines if self._as(baseline.engine) == engine)

    def _as(self, engine: EngineConfig) -> dict[str, Any]:
        """An engine as far as it matters whether two are the same: more, where time is measured."""
        return settings(engine) if self.recipe.benchmark is None else served(engine)

    def _baseline(self, engine: EngineConfig, suffix: str, forms: _Forms) -> Baseline:
        inputs, form, prove = {"model": forms.fetch}, None, None
        if engine.form == "gguf":
            form = forms.gguf()
            prove = self.prove(f"{BASELINE}{suffix}", engine, {**inputs, "quantized": form})
            inputs = {**inputs, "quantized": form, "proof": prove}
        evals = self.recipe.ordered_evals()
        evaluate = {metric.name: self.evaluate(metric, BASELINE, engine, inputs, suffix=suffix) for metric in evals}
        noise = {
            name: self.evaluate(metric, NOISE, engine, {**inputs, "reference": evaluate[name]}, suffix=suffix)
            for name, metric in ((metric.name, metric) for metric in evals)
            if self.recipe.noise_floor
        }
        benchmark = self.recipe.benchmark
        paired = benchmark is not None and not benchmark.alone
        own = {
            "model": forms.fetch,
            **({"form": form, "proof": prove} if form is not None and prove is not None else {}),
        }
        timed = self.benchmark(f"{BASELINE}{suffix}", engine, own) if paired else None
        return Baseline(engine, suffix, form, prove, evaluate, noise, timed)

    def benchmark(self, name: str, engine: EngineConfig, inputs: dict[str, Stage]) -> Stage | None:
        """The stage in which arms are measured under load: the baseline and, with `reference`, a variant.

        None where the recipe wants no benchmark.
        """
        benchmark = self.recipe.benchmark
        if benchmark is None:
            return None
        sender = benchmark.traffic.environment
        needs = self._of_engine(engine)
        needs = Needs((*needs.environments, *((sender,) if sender is not None else ())), needs.hosted)
        config: dict[str, Any] = {
            "benchmark": benchmark,
            "engine": engine,
            "seed": self.recipe.seed,
            "machine": fingerprint(self.device.kind),
            "requests": digest(benchmark.requests.identity()),
        }
        identity = {**config, "benchmark": benchmark.identity(), "engine": served(engine)}
        # Of the baseline's benchmark a block depends on the curve alone, which is a part of that.
        own = {label: stage for label, stage in inputs.items() if label != "reference"}
        reference = inputs["reference"].config["parts"] if "reference" in inputs else None
        of_blocks = {**identity, "benchmark": benchmark.of_blocks(), "reference": reference}
        libraries = (*engine.libraries, "transformers", "pyarrow")
        config["parts"] = self.make.key("benchmark", of_blocks, own, libraries, on_device=True, needs=needs)
        return self.make.stage("benchmark", name, config, identity, inputs, libraries, needs=needs, alone=True)

    def prove(self, name: str, engine: EngineConfig, inputs: dict[str, Stage]) -> Stage:
        """The stage in which an engine loads what was made and answers as it did in memory."""
        config, needs = {"engine": engine}, self._of_engine(engine)
        return self.make.stage(
            "prove", name, config, {"engine": settings(engine)}, inputs, engine.libraries, needs=needs
        )

    def _of_engine(self, engine: EngineConfig) -> Needs:
        name = engine.environment(self.device.kind)
        return Needs(() if name is None else (name,), name if engine.hosted else None)

    def evaluate(
        self,
        metric: Metric,
        arm: str,
        engine: EngineConfig,
        inputs: dict[str, Stage],
        spending: Spending | None = None,
        suffix: str = "",
    ) -> Stage:
        """The stage in which one arm answers one eval. With `spending`, it stops when the gates are certain.

        The parts that it keeps are keyed without the gates: a changed margin starts from what was answered.
        """
        noise = arm == NOISE
        needs = self._of_engine(engine)
        engine = engine.in_other_batches() if noise else engine
        identity = self.identities[metric.name]
        asked = {
            "metric": {**identity, **_held(metric)},
            "engine": settings(engine),
            "arm": arm,
            # Not the recipe's: another order, or other sampled answers, must not be had for the asking.
            "seed": int(self.datasets[metric.name][:8], 16) + noise if metric.paired else 0,
            "look": self.recipe.early_stopping.look if metric.paired else 0,
        }
        tested = spending is not None and spending.early > 0 and metric.paired
        gates = blocking(self.recipe.gates, metric) if tested else []
        rules = {"gates": dump(gates), "spending": dump(spending)} if gates else None
        libraries = (*engine.libraries, *_EVALUATION_LIBRARIES)
        config = {
            "metric": metric,
            "engine": engine,
            "arm": arm,
            "identity": digest(identity),
            "seed": asked["seed"],
            "look": asked["look"],
            "gates": gates,
            "spending": spending,
            "parts": self.make.key("evaluate", asked, inputs, libraries, on_device=True, needs=needs),
        }
        name = f"{arm}{suffix} {metric.name}"
        return self.make.stage("evaluate", name, config, {**asked, "rules": rules}, inputs, libraries, needs=needs)

    def variant(self, variant: Variant, forms: _Forms, baseline: Baseline) -> VariantPlan:
        """All stages of one variant."""
        method, engine = variant.method, self.recipe.engine_of(variant)
        inputs = {"model": forms.fetch}
        tokens: dict[str, Stage] = {}
        needed: list[Stage] = []
        calibrate = forms.calibrate(variant)
        if calibrate is not None:
            tokens["tokens"] = calibrate
        if isinstance(method, Gguf):
            inputs["full"] = forms.gguf()
            needed.append(inputs["full"])
            imatrix = forms.imatrix(variant) if method.calibrated else None
            if imatrix is not None:
                inputs["importance"] = imatrix
                needed.append(imatrix)
        else:
            inputs |= tokens
        quantize = self._quantize(variant, inputs)
        reads = {"model": forms.fetch, "quantized": quantize}
        prove = self.prove(variant.name, engine, reads)
        reads = {**reads, "proof": prove}
        reached = {**reads, **tokens}
        under_load = {"form": baseline.form, "reference": baseline.benchmark}
        arms = {**reads, **{label: stage for label, stage in under_load.items() if stage is not None}}
        timed = self.benchmark(variant.name, engine, arms)
        ahead = self._ahead(variant, engine, {**arms, "draft": quantize})

        @cache
        def measured(attempt: int) -> Measured:
            spending = self.recipe.spending(variant.name, attempt)
            evaluate = {
                metric.name: self.evaluate(
                    metric,
                    variant.name,
                    engine,
                    {**reads, "reference": baseline.evaluate[metric.name]},
                    spending,
                )
                for metric in self.recipe.ordered_evals()
            }
            seen, judges = dict(reached), []
            left = [*evaluate, *((LOAD,) if timed is not None else ())]
            while True:
                judges.append(self._judge(variant, spending, dict(seen), tuple(left)))
                if not left:
                    return Measured(evaluate, tuple(judges), timed, ahead)
                seen |= _arms(left.pop(0), baseline, evaluate, timed)

        return VariantPlan(variant, baseline, calibrate, tuple(needed), quantize, prove, measured)

    def _quantize(self, variant: Variant, inputs: dict[str, Stage]) -> Stage:
        """The stage that makes the artifact; of an existing checkpoint its files are the identity, not their place."""
        method, hosted = variant.method, variant.method.environment
        config = {
            "method": dump(method),
            "scheme": asdict(variant.resolved_scheme()),
            "ignore": list(variant.ignore),
            "seed": self.recipe.seed,
        }
        if variant.experts is not None and variant.experts.uncovered != "calibrate_all":  # what is done anyway
            config["experts"] = dump(variant.experts)
        identity, online = config, False
        if isinstance(method, Existing):
            found = method.identity()
            config = {**config, "method": dump(method.pinned(found)), "identity": digest(found)}
            identity, online = {**config, "method": found}, method.online
        needs = Needs((*method.tools, *((hosted,) if hosted is not None else ())), hosted)
        return self.make.stage(
            "quantize", variant.name, config, identity, inputs, method.libraries, needs=needs, online=online
        )

    def _ahead(self, variant: Variant, engine: EngineConfig, inputs: dict[str, Stage]) -> Stage | None:
        """The baseline with this variant guessing ahead, paired with the baseline alone; where the recipe names it."""
        benchmark = self.recipe.benchmark
        if benchmark is None or benchmark.draft != variant.name or "reference" not in inputs:
            return None
        own = {label: stage for label, stage in inputs.items() if label != "quantized"}
        return self.benchmark(f"baseline with {variant.name} ahead", engine, own)

    def _judge(self, variant: Variant, spending: Spending, inputs: dict[str, Stage], skipped: tuple[str, ...]) -> Stage:
        judging, benchmark = self.recipe.gates_of(variant.name), self.recipe.benchmark
        gates = [dump(gate) for gate in judging]
        # The recipe's rules alone, whatever was skipped and however often it was tried.
        digest_of_rules = digest({"variant": variant.name, "gates": gates, "evals": self.identities})
        calibration = self.recipe.calibration
        rules = Rules(
            variant=variant.name,
            rules_digest=digest_of_rules,
            counted=self.counted(),
            spending=spending,
            skipped=skipped,
            allow_overlap=calibration is not None and calibration.allow_overlap,
            slo=benchmark.slo if benchmark is not None else None,
        )
        config = {"rules": rules, "gates": judging, "evals": self.recipe.ordered_evals()}
        identity = {"rules": dump(rules), "gates": gates, "evals": self.identities}
        return self.make.stage("judge", variant.name, config, identity, inputs, ("scipy",), on_device=False)


class _Forms:
    """The model as methods and engines want it: the checkpoint, tokens, one GGUF file, its importance matrix."""

    def __init__(self, plan: _Planner, fetch: Stage) -> None:
        self.fetch = fetch
        self._plan = plan
        self._calibrations: dict[str, Stage] = {}

    def calibrate(self, variant: Variant) -> Stage | None:
        """The stage that makes a variant's tokens; None where it looks at none."""
        wanted = self._plan.recipe.calibration_of(variant)
        if wanted is None:
            return None
        name = " ".join(filter(None, (wanted.kind, self._size(variant))))
        if name not in self._calibrations:
            config, libraries = {"calibration": wanted.pinned()}, wanted.libraries
            self._calibrations[name] = self._plan.make.stage(
                "calibrate", name, config, wanted.identity(), {"model": self.fetch}, libraries, online=wanted.online
            )
        return self._calibrations[name]

    def _size(self, variant: Variant) -> str:
        """What tells a variant's own size of calibration from the recipe's, in names."""
        wanted, usual = self._plan.recipe.calibration_of(variant), self._plan.recipe.calibration
        return f"{wanted.samples}x{wanted.tokens_per_sample}" if wanted is not None and wanted != usual else ""

    @cache  # noqa: B019 (lives as long as one plan is made)
    def gguf(self) -> Stage:
        """The checkpoint as an unquantized GGUF file."""
        needs, libraries = Needs((LLAMACPP,)), ("torch", "transformers", "gguf")
        return self._plan.make.stage("convert", "gguf", {}, {}, {"model": self.fetch}, libraries, needs=needs)

    def imatrix(self, variant: Variant) -> Stage | None:
        """What a variant's calibration tokens do to every weight's inputs."""
        tokens = self.calibrate(variant)
        if tokens is None:
            return None
        inputs = {"full": self.gguf(), "tokens": tokens}
        return self._plan.make.stage("imatrix", self._size(variant), {}, {}, inputs, (), needs=Needs((LLAMACPP,)))


def _held(metric: Metric) -> dict[str, str]:
    """What this machine holds a scoring command in: where it allows something else, both arms are scored anew."""
    held = metric.held_in() if isinstance(metric, Items) else None
    return {"held_in": held} if held is not None else {}


def _arms(name: str, baseline: Baseline, evaluate: dict[str, Stage], timed: Stage | None) -> dict[str, Stage]:
    """What a judge reads of one eval, or of the benchmark: the variant's, and the baseline's own beside it."""
    if name == LOAD:
        found = {"benchmark": timed, "benchmark.baseline": baseline.benchmark}
    else:
        found = {f"baseline.{name}": baseline.evaluate[name], f"variant.{name}": evaluate[name]}
        found |= {f"noise.{name}": baseline.noise.get(name)}
    return {label: stage for label, stage in found.items() if stage is not None}


def _suffix(engine: EngineConfig, device: str, others: Sequence[Baseline]) -> str:
    """What tells this engine's baseline from the others': where it runs, and a digest where two run there."""
    if not others:
        return ""
    name = f"@{engine.environment(device) or engine.kind}"
    return name if all(baseline.suffix != name for baseline in others) else f"{name}-{engine.digest()[:6]}"
