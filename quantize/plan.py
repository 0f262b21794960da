"""Recipe -> Plan: a graph of stages with their keys. Pure but for what identifies the inputs (digests, a commit).

A key covers all that changes a stage's bytes or numbers and nothing else: the identity of what it reads, its config,
the keys of its inputs, the versions of the libraries that matter to it, and the class of device where numbers depend on
it. Paths, the executor and log levels are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any

from quantize.device import Device
from quantize.errors import MissingDependency, UsageError
from quantize.evidence import Spending
from quantize.gates import NonInferiority
from quantize.judgement import Rules
from quantize.protocols import Metric
from quantize.recipe import LoadedRecipe, Recipe, Variant
from quantize.record import digest
from quantize.stages import STAGES
from quantize.stopping import blocking

__all__ = ["BASELINE", "NOISE", "Measured", "Plan", "Stage", "VariantPlan", "chosen_variants", "make_plan"]

#: The arms that are no variant: the model as given, and once more in other batches and another order.
BASELINE, NOISE = "baseline", "noise-floor"

_EVALUATION_LIBRARIES = ("lm_eval", "datasets")


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of work. `config` is what the worker is given; the key was made from its identity instead."""

    kind: str
    name: str
    key: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Stage]
    libraries: tuple[str, ...]
    device: str

    @property
    def label(self) -> str:
        """How the stage is called on a terminal and in file names."""
        return f"{self.kind} {self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Measured:
    """How a variant is measured and judged at one attempt.

    `judges[k]` judges after the first k evals; `judges[0]` on the proof alone, for a variant whose proof failed.
    """

    evaluate: dict[str, Stage]
    judges: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """The way of one variant. How it is measured depends on how often it was tried before: `measured(attempt)`."""

    variant: Variant
    quantize: Stage
    prove: Stage
    measured: Callable[[int], Measured]


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a recipe, in an order that may be run as it stands. `noise` measures the baseline once more.

    `counted` are the datasets, by eval, on which attempts are counted.
    """

    recipe: Recipe
    device: Device
    fetch: Stage
    calibrate: Stage | None
    baseline: dict[str, Stage]
    noise: dict[str, Stage]
    variants: tuple[VariantPlan, ...]
    counted: dict[str, str]

    def stages(self, attempts: Mapping[str, int] | None = None) -> Iterator[Stage]:
        """Every stage that a run without failures passes through, dependencies first. `attempts` by variant."""
        yield self.fetch
        if self.calibrate is not None:
            yield self.calibrate
        yield from self.baseline.values()
        yield from self.noise.values()
        for way in self.variants:
            measured = way.measured((attempts or {}).get(way.variant.name, 1))
            yield way.quantize
            yield way.prove
            yield from measured.evaluate.values()
            yield measured.judges[-1]


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
    evals = recipe.ordered_evals()
    baseline = {metric.name: make.evaluate(metric, BASELINE, {"model": fetch}) for metric in evals}
    noise = {
        metric.name: make.evaluate(metric, NOISE, {"model": fetch, "reference": baseline[metric.name]})
        for metric in evals
        if recipe.noise_floor
    }
    variants = tuple(make.variant(variant, fetch, calibrate, baseline, noise) for variant in chosen)
    return Plan(recipe, device, fetch, calibrate, baseline, noise, variants, make.counted())


def chosen_variants(recipe: Recipe, only: tuple[str, ...]) -> list[Variant]:
    """The variants named by `only`, or all of them; raises UsageError for a name that the recipe has not."""
    names = [variant.name for variant in recipe.variants]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: the recipe has no such variant (it has {', '.join(names)}).")
    return [variant for variant in recipe.variants if not only or variant.name in only]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes stages; holds what all of them share. `identities` and `datasets` are the evals', by name."""

    recipe: Recipe
    device: Device
    identities: dict[str, Any]
    datasets: dict[str, str]

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
    ) -> Stage:
        """Key and build one stage. `identity` replaces `config` in the key: it has digests where config has paths."""
        plain = {key: _dump(value) for key, value in config.items()}
        key = self._key(kind, identity, inputs, libraries, on_device=on_device)
        device = self.device.kind if on_device else "cpu"
        return Stage(kind, name, key, STAGES[kind].version, plain, inputs, libraries, device)

    def _key(
        self,
        kind: str,
        identity: dict[str, Any],
        inputs: dict[str, Stage],
        libraries: tuple[str, ...],
        *,
        on_device: bool,
    ) -> str:
        return digest(
            {
                "kind": kind,
                "version": STAGES[kind].version,
                "identity": identity,
                "inputs": {label: stage.key for label, stage in inputs.items()},
                "libraries": {library: _version(library) for library in libraries},
                "device": self.device.device_class if on_device else None,
                "threads": self.recipe.resources.threads if on_device else None,
            }
        )

    def evaluate(self, metric: Metric, arm: str, inputs: dict[str, Stage], spending: Spending | None = None) -> Stage:
        """The stage in which one arm answers one eval. With `spending`, it stops when the gates are certain.

        The parts that it keeps are keyed without the gates: a changed margin starts from what was answered.
        """
        noise = arm == NOISE
        engine = self.recipe.engine.in_other_batches() if noise else self.recipe.engine
        identity = self.identities[metric.name]
        asked = {
            "metric": identity,
            "engine": _dump(engine),
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
            "parts": self._key("evaluate", asked, inputs, libraries, on_device=True),
        }
        name = f"{arm} {metric.name}"
        return self.stage("evaluate", name, config, {**asked, "rules": rules}, inputs, libraries)

    def variant(
        self,
        variant: Variant,
        fetch: Stage,
        calibrate: Stage | None,
        baseline: dict[str, Stage],
        noise: dict[str, Stage],
    ) -> VariantPlan:
        """All stages of one variant."""
        config = {
            "method": _dump(variant.method),
            "scheme": asdict(variant.resolved_scheme()),
            "ignore": list(variant.ignore),
            "seed": self.recipe.seed,
        }
        inputs = {"model": fetch}
        if variant.method.calibrated and calibrate is not None:
            inputs["tokens"] = calibrate
        quantize = self.stage("quantize", variant.name, config, config, inputs, variant.method.libraries)
        engine = self.recipe.engine
        prove = self.stage(
            "prove",
            variant.name,
            {"engine": engine},
            {"engine": _dump(engine)},
            {"model": fetch, "quantized": quantize},
            engine.libraries,
        )
        reached = {**inputs, "quantized": quantize, "proof": prove}

        @cache
        def measured(attempt: int) -> Measured:
            spending = self.recipe.spending(variant.name, attempt)
            reads = {"model": fetch, "quantized": quantize, "proof": prove}
            evaluate = {
                metric.name: self.evaluate(
                    metric, variant.name, {**reads, "reference": baseline[metric.name]}, spending
                )
                for metric in self.recipe.ordered_evals()
            }
            judges = []
            for count in range(len(evaluate) + 1):
                arms: dict[str, Stage] = {}
                for name in list(evaluate)[:count]:
                    arms |= {f"baseline.{name}": baseline[name], f"variant.{name}": evaluate[name]}
                    arms |= {f"noise.{name}": noise[name]} if name in noise else {}
                judges.append(self._judge(variant, spending, {**reached, **arms}, tuple(list(evaluate)[count:])))
            return Measured(evaluate, tuple(judges))

        return VariantPlan(variant, quantize, prove, measured)

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
