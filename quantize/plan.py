"""Recipe -> Plan: a graph of stages with their keys. Pure but for what identifies the inputs (digests, a commit).

A key covers all that changes a stage's bytes or numbers and nothing else: the identity of what it reads, its config,
the keys of its inputs, the versions of the libraries that matter to it, and the class of device where numbers depend on
it. Paths, the executor and log levels are not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from quantize.device import Device
from quantize.errors import MissingDependency, UsageError
from quantize.protocols import Metric
from quantize.recipe import LoadedRecipe, Recipe, Variant
from quantize.record import digest
from quantize.stages import STAGES

__all__ = ["Plan", "Stage", "VariantPlan", "chosen_variants", "make_plan"]

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
class VariantPlan:
    """The way of one variant. `refuse` judges on the proof alone, for a variant whose proof failed."""

    variant: Variant
    quantize: Stage
    prove: Stage
    evaluate: dict[str, Stage]
    judge: Stage
    refuse: Stage


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a recipe, in an order that may be run as it stands."""

    recipe: Recipe
    device: Device
    fetch: Stage
    calibrate: Stage | None
    baseline: dict[str, Stage]
    variants: tuple[VariantPlan, ...]

    def stages(self) -> Iterator[Stage]:
        """Every stage that a run without failures passes through, dependencies first."""
        yield self.fetch
        if self.calibrate is not None:
            yield self.calibrate
        yield from self.baseline.values()
        for way in self.variants:
            yield way.quantize
            yield way.prove
            yield from way.evaluate.values()
            yield way.judge

    def keys(self) -> set[str]:
        """The keys that this recipe needs kept."""
        return {stage.key for stage in self.stages()} | {way.refuse.key for way in self.variants}


def make_plan(loaded: LoadedRecipe, device: Device, only: tuple[str, ...] = ()) -> Plan:
    """Plan a recipe for a device. `only` names the variants to plan (empty: all). Asks the source who it is."""
    recipe = loaded.recipe
    chosen = chosen_variants(recipe, only)
    make = _Maker(recipe, device)
    identity = recipe.model.identity()
    # A branch may move between the plan and the fetch; the worker is given the commit that the key was made from.
    source = recipe.model.model_copy(update={"revision": identity["commit"]}) if "commit" in identity else recipe.model
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
    identities = {metric.name: metric.identity() for metric in recipe.evals}
    baseline = {
        metric.name: make.evaluate(metric, identities[metric.name], "baseline", {"model": fetch})
        for metric in recipe.evals
    }
    variants = tuple(make.variant(variant, fetch, calibrate, baseline, identities) for variant in chosen)
    return Plan(recipe, device, fetch, calibrate, baseline, variants)


def chosen_variants(recipe: Recipe, only: tuple[str, ...]) -> list[Variant]:
    """The variants named by `only`, or all of them; raises UsageError for a name that the recipe has not."""
    names = [variant.name for variant in recipe.variants]
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: the recipe has no such variant (it has {', '.join(names)}).")
    return [variant for variant in recipe.variants if not only or variant.name in only]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes stages; holds what all of them share."""

    recipe: Recipe
    device: Device

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
        version = STAGES[kind].version
        key = digest(
            {
                "kind": kind,
                "version": version,
                "identity": identity,
                "inputs": {label: stage.key for label, stage in inputs.items()},
                "libraries": {library: _version(library) for library in libraries},
                "device": self.device.device_class if on_device else None,
                "threads": self.recipe.resources.threads if on_device else None,
            }
        )
        return Stage(kind, name, key, version, plain, inputs, libraries, self.device.kind if on_device else "cpu")

    def evaluate(self, metric: Metric, identity: dict[str, Any], arm: str, inputs: dict[str, Stage]) -> Stage:
        """The stage in which one arm answers one eval."""
        engine = self.recipe.engine
        return self.stage(
            "evaluate",
            f"{arm} {metric.name}",
            {"metric": metric, "engine": engine, "arm": arm, "identity": digest(identity)},
            {"metric": identity, "engine": _dump(engine), "arm": arm},
            inputs,
            (*engine.libraries, *_EVALUATION_LIBRARIES),
        )

    def variant(
        self,
        variant: Variant,
        fetch: Stage,
        calibrate: Stage | None,
        baseline: dict[str, Stage],
        identities: dict[str, Any],
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
        evaluate = {}
        for metric in self.recipe.evals:
            reads = {"model": fetch, "quantized": quantize, "proof": prove}
            if metric.needs_reference:
                reads["reference"] = baseline[metric.name]
            evaluate[metric.name] = self.evaluate(metric, identities[metric.name], variant.name, reads)
        measured = {f"baseline.{name}": stage for name, stage in baseline.items()}
        measured |= {f"variant.{name}": stage for name, stage in evaluate.items()}
        reached = {"model": fetch, "quantized": quantize, "proof": prove}
        return VariantPlan(
            variant,
            quantize,
            prove,
            evaluate,
            self._judge(variant, identities, {**reached, **measured}),
            self._judge(variant, identities, reached),
        )

    def _judge(self, variant: Variant, identities: dict[str, Any], inputs: dict[str, Stage]) -> Stage:
        rules = {
            "variant": variant.name,
            "gates": [_dump(gate) for gate in self.recipe.gates],
            "evals": identities,
        }
        config = {
            "variant": variant.name,
            "gates": list(self.recipe.gates),
            "evals": list(self.recipe.evals),
            "rules_digest": digest(rules),
        }
        return self.stage("judge", variant.name, config, rules, inputs, ("scipy",), on_device=False)


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
