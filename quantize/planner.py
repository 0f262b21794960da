"""Recipe -> Plan. Pure but for what identifies the inputs: digests, a commit, what other interpreters have installed.

A key covers all that changes a stage's bytes or numbers and nothing else: the identity of what it reads, its config,
the keys of its inputs, the versions of the libraries that matter to it (those of another environment as its identity),
and the class of device where numbers depend on it. Paths, the executor and log levels are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from quantize.device import Device
from quantize.engines import EngineConfig
from quantize.environments import Environment, locate
from quantize.errors import MissingDependency, UsageError
from quantize.evidence import Spending
from quantize.gates import NonInferiority
from quantize.judgement import Rules
from quantize.plan import BASELINE, NOISE, Baseline, Measured, Plan, Stage, VariantPlan
from quantize.protocols import Metric
from quantize.recipe import LoadedRecipe, Recipe, Variant
from quantize.record import digest
from quantize.stages import STAGES
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
    # A branch may move between the plan and the fetch; the worker is given the commit that the key was made from.
    source = recipe.model.model_copy(update={"revision": identity["commit"]}) if "commit" in identity else recipe.model
    identities = {metric.name: metric.identity() for metric in recipe.ordered_evals()}
    datasets = {metric.name: metric.dataset() for metric in recipe.ordered_evals()}
    make = _Maker(recipe, device, identities, datasets)
    fetch = make.stage("fetch", "", {"source": source}, identity, {}, ("safetensors",), False)
    calibrate = None
    if recipe.calibration is not None and any(variant.method.calibrated for variant in chosen):
        calibrate = make.stage(
            "calibrate",
            recipe.calibration.kind,
            {"calibration": recipe.calibration},
            recipe.calibration.identity(),
            {"model": fetch},
            ("torch", "transformers"),
        )
    forms = _Forms(make, fetch, calibrate)
    baselines = make.baselines([recipe.engine_of(variant) for variant in chosen], forms)
    variants = tuple(make.variant(variant, forms, _of(recipe.engine_of(variant), baselines)) for variant in chosen)
    return Plan(recipe, device, fetch, calibrate, baselines, variants, make.counted())


def needed_environments(recipe: Recipe, variants: Sequence[Variant], device: str) -> tuple[str, ...]:
    """The environments that these variants, and the baseline in their engines, are made and measured in."""
    needed: set[str] = set()
    for variant in variants:
        engine = recipe.engine_of(variant)
        wanted = (variant.method.environment, *variant.method.tools, engine.environment(device))
        needed |= {name for name in wanted if name is not None} | ({LLAMACPP} if engine.form == "gguf" else set())
    return tuple(sorted(needed))


def chosen_variants(recipe: Recipe, only: tuple[str, ...]) -> list[Variant]:
    """The variants named by `only`, or all of them; raises UsageError for a name that the recipe has not."""
    names = [variant.name for variant in recipe.variants]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: the recipe has no such variant (it has {', '.join(names)}).")
    return [variant for variant in recipe.variants if not only or variant.name in only]


@dataclass(frozen=True, slots=True)
class Needs:
    """The environments whose interpreters a stage calls, and the one that it runs in itself."""

    environments: tuple[str, ...] = ()
    hosted: str | None = None


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes stages; holds what all of them share. `identities` and `datasets` are the evals', by name."""

    recipe: Recipe
    device: Device
    identities: dict[str, Any]
    datasets: dict[str, str]
    located: dict[str, Environment] = field(default_factory=dict)

    def environments(self, *names: str | None) -> dict[str, Environment]:
        """Where environments are, each looked for once."""
        for name in names:
            if name is not None and name not in self.located:
                self.located[name] = locate(name, self.recipe.environments)
        return {name: self.located[name] for name in names if name is not None}

    def counted(self) -> dict[str, str]:
        """The datasets on which attempts count: the confirmation's, or all that a test looks at."""
        tested = {gate.metric.partition(".")[0] for gate in self.recipe.gates if isinstance(gate, NonInferiority)}
        names = {self.recipe.confirmation} if self.recipe.confirmation else tested
        return {name: dataset for name, dataset in self.datasets.items() if name in names}

    def stage(
        self,
        kind: str,
        name: str,
        config: dict[str, Any],
        identity: dict[str, Any],
        inputs: dict[str, Stage],
        libraries: tuple[str, ...],
        on_device: bool = True,
        needs: Needs = Needs(),
    ) -> Stage:
        """Key and build one stage. `identity` replaces `config` in the key: it has digests where config has paths."""
        plain = {key: _dump(value) for key, value in config.items()}
        key = self._key(kind, identity, inputs, libraries, on_device=on_device, needs=needs)
        device = self.device.kind if on_device else "cpu"
        version, environments = STAGES[kind].version, self.environments(*needs.environments)
        return Stage(kind, name, key, version, plain, inputs, libraries, device, environments, needs.hosted)

    def _key(
        self,
        kind: str,
        identity: dict[str, Any],
        inputs: dict[str, Stage],
        libraries: tuple[str, ...],
        *,
        on_device: bool,
        needs: Needs,
    ) -> str:
        # What is installed in another environment is its own identity's to say.
        asked = () if needs.hosted is not None else libraries
        environments = {name: found.identity for name, found in self.environments(*needs.environments).items()}
        return digest(
            {
                "kind": kind,
                "version": STAGES[kind].version,
                "identity": identity,
                "inputs": {label: stage.key for label, stage in inputs.items()},
                "libraries": {library: _version(library) for library in asked},
                "device": self.device.device_class if on_device else None,
                "threads": self.recipe.resources.threads if on_device else None,
                # Engines that are compiled for a machine, or choose their kernels by it, answer as its instructions let
                # them; what runs in the program's own environment is float32 on any CPU.
                **({"environments": environments, "instructions": self.device.instructions} if environments else {}),
            }
        )

    def baselines(self, engines: Sequence[EngineConfig], forms: _Forms) -> tuple[Baseline, ...]:
        """The baseline in every engine that is used, each once, in the order of first use."""
        found: list[Baseline] = []
        for engine in engines:
            if all(_settings(baseline.engine) != _settings(engine) for baseline in found):
                suffix = _suffix(engine, self.device.kind, found)
                found.append(self._baseline(engine, suffix, forms))
        return tuple(found)

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
        return Baseline(engine, suffix, form, prove, evaluate, noise)

    def prove(self, name: str, engine: EngineConfig, inputs: dict[str, Stage]) -> Stage:
        """The stage in which an engine loads what was made and answers as it did in memory."""
        config, needs = {"engine": engine}, self._of_engine(engine)
        return self.stage("prove", name, config, {"engine": _settings(engine)}, inputs, engine.libraries, needs=needs)

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
            "metric": identity,
            "engine": _settings(engine),
            "arm": arm,
            # Not the recipe's: another order, or other sampled answers, must not be had for the asking.
            "seed": int(self.datasets[metric.name][:8], 16) + noise if metric.paired else 0,
            "look": self.recipe.early_stopping.look if metric.paired else 0,
        }
        tested = spending is not None and spending.early > 0 and metric.paired
        gates = blocking(self.recipe.gates, metric) if tested else []
        rules = {"gates": _dump(gates), "spending": _dump(spending)} if gates else None
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
            "parts": self._key("evaluate", asked, inputs, libraries, on_device=True, needs=needs),
        }
        name = f"{arm}{suffix} {metric.name}"
        return self.stage("evaluate", name, config, {**asked, "rules": rules}, inputs, libraries, needs=needs)

    def variant(self, variant: Variant, forms: _Forms, baseline: Baseline) -> VariantPlan:
        """All stages of one variant."""
        method, engine = variant.method, self.recipe.engine_of(variant)
        config = {
            "method": _dump(method),
            "scheme": asdict(variant.resolved_scheme()),
            "ignore": list(variant.ignore),
            "seed": self.recipe.seed,
        }
        inputs = {"model": forms.fetch}
        seen: dict[str, Stage] = {}
        needed: list[Stage] = []
        if method.calibrated and forms.calibrate is not None:
            seen["tokens"] = forms.calibrate
        if method.format == "gguf":
            inputs["full"] = forms.gguf()
            needed.append(inputs["full"])
            imatrix = forms.imatrix() if method.calibrated else None
            if imatrix is not None:
                inputs["importance"] = imatrix
                needed.append(imatrix)
        else:
            inputs |= seen
        hosted = method.environment
        needs = Needs((*method.tools, *((hosted,) if hosted is not None else ())), hosted)
        quantize = self.stage("quantize", variant.name, config, config, inputs, method.libraries, needs=needs)
        reads = {"model": forms.fetch, "quantized": quantize}
        prove = self.prove(variant.name, engine, reads)
        reads = {**reads, "proof": prove}
        reached = {**reads, **seen}

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
            judges = []
            for count in range(len(evaluate) + 1):
                arms: dict[str, Stage] = {}
                for name in list(evaluate)[:count]:
                    arms |= {f"baseline.{name}": baseline.evaluate[name], f"variant.{name}": evaluate[name]}
                    arms |= {f"noise.{name}": baseline.noise[name]} if name in baseline.noise else {}
                judges.append(self._judge(variant, spending, {**reached, **arms}, tuple(list(evaluate)[count:])))
            return Measured(evaluate, tuple(judges))

        return VariantPlan(variant, baseline, tuple(needed), quantize, prove, measured)

    def _judge(self, variant: Variant, spending: Spending, inputs: dict[str, Stage], skipped: tuple[str, ...]) -> Stage:
        gates = [_dump(gate) for gate in self.recipe.gates]
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
        )
        config = {"rules": rules, "gates": list(self.recipe.gates), "evals": self.recipe.ordered_evals()}
        identity = {"rules": _dump(rules), "gates": gates, "evals": self.identities}
        return self.stage("judge", variant.name, config, identity, inputs, ("scipy",), on_device=False)


class _Forms:
    """The model as methods and engines want it: the checkpoint, tokens, one GGUF file, its importance matrix."""

    def __init__(self, make: _Maker, fetch: Stage, calibrate: Stage | None) -> None:
        self.fetch, self.calibrate = fetch, calibrate
        self._make = make

    @cache  # noqa: B019 (lives as long as one plan is made)
    def gguf(self) -> Stage:
        """The checkpoint as an unquantized GGUF file."""
        needs, libraries = Needs((LLAMACPP,)), ("torch", "transformers", "gguf")
        return self._make.stage("convert", "gguf", {}, {}, {"model": self.fetch}, libraries, needs=needs)

    @cache  # noqa: B019 (as above)
    def imatrix(self) -> Stage | None:
        """What the calibration tokens do to every weight's inputs."""
        if self.calibrate is None:
            return None
        inputs = {"full": self.gguf(), "tokens": self.calibrate}
        return self._make.stage("imatrix", "", {}, {}, inputs, (), needs=Needs((LLAMACPP,)))


def _of(engine: EngineConfig, baselines: tuple[Baseline, ...]) -> Baseline:
    return next(baseline for baseline in baselines if _settings(baseline.engine) == _settings(engine))


def _suffix(engine: EngineConfig, device: str, others: Sequence[Baseline]) -> str:
    """What tells this engine's baseline from the others': where it runs, and a digest where two run there."""
    if not others:
        return ""
    name = f"@{engine.environment(device) or engine.kind}"
    return name if all(baseline.suffix != name for baseline in others) else f"{name}-{engine.digest()[:6]}"


def _settings(engine: EngineConfig) -> dict[str, Any]:
    """An engine's settings as far as an answer may depend on them: how long to wait for one is none."""
    return engine.model_dump(mode="json", by_alias=True, exclude={"load_seconds", "request_seconds"})


def _dump(value: Any) -> Any:
    if isinstance(value, list):
        return [_dump(item) for item in value]
    return value.model_dump(mode="json", by_alias=True) if hasattr(value, "model_dump") else value


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        raise MissingDependency(
            f"the package {library} is not installed.", fix=f"Run: pip install {library} -c constraints.txt"
        ) from None
