"""What a plan is: a graph of stages with their keys, and the ways of the baseline and of each variant through it.

`planner.py` makes it from a recipe; `run.py` walks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantize.device import Device
from quantize.engines import EngineConfig
from quantize.environments import Environment
from quantize.recipe import Recipe, Variant

__all__ = ["BASELINE", "NOISE", "Baseline", "Measured", "Plan", "Stage", "VariantPlan"]

#: The arms that are no variant: the model as given, and once more in other batches and another order.
BASELINE, NOISE = "baseline", "noise-floor"


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of work. `config` is what the worker is given; the key was made from its identity instead.

    It may call the interpreters of `environments`, and runs in that of `hosted` itself (None: the program's own).
    `alone`: it measures time, so nothing else may use the device meanwhile. `online`: it may ask the hub.
    """

    kind: str
    name: str
    key: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Stage]
    libraries: tuple[str, ...]
    device: str
    environments: dict[str, Environment] = field(default_factory=dict)
    hosted: str | None = None
    alone: bool = False
    online: bool = False

    @property
    def label(self) -> str:
        """How the stage is called on a terminal and in file names."""
        return f"{self.kind} {self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline in one engine: what variants in that engine are paired with. `suffix` is empty for the first.

    `form` makes what the engine loads, where that is not the checkpoint itself, and `prove` proves it. `noise`
    measures once more. `benchmark` finds the knee under load and pairs the baseline with itself; it is run when the
    first variant needs it.
    """

    engine: EngineConfig
    suffix: str
    form: Stage | None
    prove: Stage | None
    evaluate: dict[str, Stage]
    noise: dict[str, Stage]
    benchmark: Stage | None = None

    def stages(self) -> Iterator[Stage]:
        """All that every variant needs, dependencies first."""
        yield from (stage for stage in (self.form, self.prove) if stage is not None)
        yield from self.evaluate.values()
        yield from self.noise.values()

    def labels(self) -> dict[str, str]:
        """Keys by the names that a run's record gives them; but for the benchmark, which not every run comes to."""
        made = {"convert": self.form, "prove": self.prove}
        return {
            **{f"{kind}{self.suffix}": stage.key for kind, stage in made.items() if stage is not None},
            **{f"evaluate.{name}{self.suffix}": stage.key for name, stage in self.evaluate.items()},
            **{f"noise.{name}{self.suffix}": stage.key for name, stage in self.noise.items()},
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """How a variant is measured and judged at one attempt.

    `judges[k]` judges after the first k evals; `judges[0]` on the proof alone, for a variant whose proof failed. With a
    `benchmark`, which only survivors of all evals come to, there is one judge more. `ahead` measures the baseline with
    the variant as its draft; it is shown and not judged.
    """

    evaluate: dict[str, Stage]
    judges: tuple[Stage, ...]
    benchmark: Stage | None = None
    ahead: Stage | None = None


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """The way of one variant. How it is measured depends on how often it was tried before: `measured(attempt)`.

    `forms` are what its method reads and the baseline in its engine does not have: a GGUF file, an importance matrix.
    `calibrate` has its tokens, where it looks at any.
    """

    variant: Variant
    baseline: Baseline
    calibrate: Stage | None
    forms: tuple[Stage, ...]
    quantize: Stage
    prove: Stage
    measured: Callable[[int], Measured]


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a recipe, in an order that may be run as it stands. `baselines` has one for each engine in use.

    `counted` are the datasets, by eval, on which attempts are counted.
    """

    recipe: Recipe
    device: Device
    fetch: Stage
    baselines: tuple[Baseline, ...]
    variants: tuple[VariantPlan, ...]
    counted: dict[str, str]

    def calibrations(self) -> list[Stage]:
        """The stages that make tokens, one for each size that variants ask for."""
        found = {way.calibrate.key: way.calibrate for way in self.variants if way.calibrate is not None}
        return list(found.values())

    def calibrated(self) -> dict[str, str]:
        """Keys of those stages by the names that a run's record gives them: `calibrate`, and one for another size."""
        return {".".join((stage.kind, *stage.name.split()[1:])): stage.key for stage in self.calibrations()}

    def stages(self, attempts: Mapping[str, int] | None = None) -> Iterator[Stage]:
        """Every stage that a run without failures passes through, dependencies first. `attempts` by variant."""
        yield self.fetch
        yield from self.calibrations()
        for baseline in self.baselines:
            yield from baseline.stages()
        seen = {baseline.form.key for baseline in self.baselines if baseline.form is not None}
        for way in self.variants:
            measured = way.measured((attempts or {}).get(way.variant.name, 1))
            yield from (form for form in way.forms if form.key not in seen)
            seen |= {form.key for form in way.forms}
            yield way.quantize
            yield way.prove
            yield from measured.evaluate.values()
            yield from self._timed(way, measured, seen)
            yield measured.judges[-1]

    def _timed(self, way: VariantPlan, measured: Measured, seen: set[str]) -> Iterator[Stage]:
        """A variant's benchmark, and before it the baseline's in the same engine, if nobody has come to it yet."""
        for stage in (way.baseline.benchmark, measured.benchmark, measured.ahead):
            if stage is not None and stage.key not in seen:
                seen.add(stage.key)
                yield stage
