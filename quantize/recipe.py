"""Recipes: YAML in, a closed and validated value out, every problem with its file and line.

A recipe is read three times over one text: as nodes (for line numbers and duplicate keys), as plain data
(`yaml.safe_load`, with `--set` applied), and as the `Recipe` model that the rest of the program sees. A recipe may
`include` others (`including`). Relative `path`s
are relative to the recipe's own directory; those given by `--set` to the current one.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from quantize import __version__
from quantize.benchmark.config import Benchmark
from quantize.calibrators import CalibratorConfig, sized
from quantize.consistency import inconsistencies
from quantize.engines import ENGINES_BY_FORMAT, EngineConfig, Transformers
from quantize.errors import RecipeError
from quantize.evidence import Spending
from quantize.executors import ExecutorConfig, Local
from quantize.gates import GateConfig, ServiceLevel
from quantize.including import PATH_KEYS, read, resolve_paths
from quantize.metrics import MetricConfig
from quantize.notices import NoticeConfig
from quantize.problems import Locator, describe
from quantize.record import Record, digest
from quantize.registries import RegistryConfig, public
from quantize.sources import SourceConfig
from quantize.variant import Name, Variant

__all__ = ["EarlyStopping", "LoadedRecipe", "Recipe", "Releasing", "Resources", "Variant", "json_schema", "load"]

#: The one version of recipes that there is: it is raised when an old recipe would mean something else.
VERSION: Literal[1] = 1
SCHEMA_URL = "recipe.schema.json"
_INCLUDE = "include"
_INCLUDED = "Files of recipes that lie below this one: mappings are merged, anything else is replaced."


class Resources(Record):
    """What stages may use. `device`: `auto` takes the CUDA devices if there are any, else the CPU.

    Only `device` and `threads` are part of keys: where a stage ran, and beside which others, changes none. `executor`
    is this machine, or a Ray cluster.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[
        int | None, Field(ge=1, description="CPU threads of a stage; unset: all cores, shared by stages side by side.")
    ] = None
    stages: Annotated[int | None, Field(ge=1, description="Stages at once; unset: one for each GPU, one on a CPU.")] = (
        None
    )
    memory_gb: Annotated[
        float | None, Field(gt=0, description="Host memory for stages side by side, in GB; unset: the machine's.")
    ] = None
    executor: ExecutorConfig = Field(default_factory=Local)


class EarlyStopping(Record):
    """Variants answer in looks of `look` items and stop when their gates are certain; the baseline answers everything.

    `share` of each gate's alpha pays for passing early. Without `enabled` every variant answers every item.
    """

    enabled: bool = True
    look: Annotated[int, Field(ge=8, le=4096, description="Items between two looks at the gates.")] = 48
    share: Annotated[float, Field(gt=0, lt=1, description="Share of alpha that pays for an early pass.")] = 0.2


class Releasing(Record):
    """What a release waits for and whom it tells. No part of any stage's key.

    `require_approval` keeps a variant that passes as candidate until a person promotes it; `notify` is told afterwards.
    """

    require_approval: bool = False
    notify: list[NoticeConfig] = Field(default_factory=list)


class Recipe(Record):
    """The user's YAML: model, calibration, variants, evals, gates, registry, resources.

    `noise_floor` measures the baseline twice, in other batches and another order. `confirmation` names an eval that is
    run only for a variant that has passed every other gate; attempts are then counted on it alone.
    """

    version: Literal[1]
    name: Name
    model: SourceConfig
    variants: Annotated[list[Variant], Field(min_length=1)]
    evals: Annotated[list[MetricConfig], Field(min_length=1)]
    gates: Annotated[list[GateConfig], Field(min_length=1)]
    registry: RegistryConfig
    calibration: CalibratorConfig | None = None
    engine: EngineConfig = Transformers()
    environments: dict[str, str] = Field(
        default_factory=dict, description="Interpreters to use instead of environments that quantize makes."
    )
    resources: Resources = Resources()
    early_stopping: EarlyStopping = EarlyStopping()
    benchmark: Annotated[Benchmark | None, Field(description="Latency under load, of what passes its evals.")] = None
    noise_floor: bool = True
    confirmation: Annotated[str | None, Field(description="An eval that only passing variants are shown.")] = None
    release: Annotated[Releasing, Field(description="Approval by a person, and who is told.")] = Releasing()
    seed: Annotated[int, Field(ge=0)] = 0

    def engine_of(self, variant: Variant) -> EngineConfig:
        """What serves a variant: its own engine, else the one that its format needs, else the recipe's."""
        return variant.engine or ENGINES_BY_FORMAT.get(variant.method.format, self.engine)

    def calibration_of(self, variant: Variant) -> CalibratorConfig | None:
        """Where a variant's tokens come from, at its own size; None where it looks at none."""
        if self.calibration is None or not variant.calibrated:
            return None
        return sized(self.calibration, variant.calibration) if variant.calibration is not None else self.calibration

    def gates_of(self, variant: str) -> list[GateConfig]:
        """The gates that judge a variant: a target's service level counts for what the target may draw from."""
        targets = self.registry.targets
        return [
            gate
            for gate in self.gates
            if not isinstance(gate, ServiceLevel) or gate.target is None or variant in targets[gate.target].from_
        ]

    def ordered_evals(self) -> list[MetricConfig]:
        """Texts, which have no early end, first; the confirmation last."""
        return sorted(self.evals, key=lambda metric: (metric.name == self.confirmation, bool(metric.paired)))

    def spending(self, variant: str, attempt: int) -> Spending:
        """What of alpha an attempt of a variant may use."""
        rivals = [len(rule.from_) for rule in self.registry.targets.values() if variant in rule.from_]
        return Spending(
            attempt=attempt,
            early=self.early_stopping.share if self.early_stopping.enabled else 0.0,
            choices=max(rivals, default=1),
            confirmation=self.confirmation,
        )

    @model_validator(mode="wrap")
    @classmethod
    def _fits_together(cls, data: Any, validate: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        """Problems of single values and problems between them, all at once."""
        between = [
            InitErrorDetails(type=PydanticCustomError("inconsistent", "{text}", {"text": text}), loc=place, input=data)
            for place, text in inconsistencies(data)
        ]
        try:
            recipe = validate(data)
        except ValidationError as error:
            single = [_again(problem) for problem in error.errors()]
            raise ValidationError.from_exception_data("Recipe", [*single, *between]) from None
        if between:
            raise ValidationError.from_exception_data("Recipe", between)
        return recipe


def _again(problem: ErrorDetails) -> InitErrorDetails:
    """An error that pydantic has told, in the form in which it takes one."""
    return InitErrorDetails(
        type=PydanticCustomError(problem["type"], "{text}", {**problem.get("ctx", {}), "text": problem["msg"]}),
        loc=problem["loc"],
        input=problem["input"],
    )


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe, the text it came from, and the digest of its data before paths were made absolute.

    In the text the addresses of webhooks are hidden: copies of it go where others read.
    """

    recipe: Recipe
    path: Path
    text: str
    digest: str
    overrides: tuple[str, ...]


def load(path: Path, overrides: tuple[str, ...] = ()) -> LoadedRecipe:
    """Read and validate a recipe. Raises RecipeError with all its problems, each with file:line and a mend."""
    text, data, locator = read(path)
    if len(locator.files) > 1:
        origin = ", ".join(str(file) for file in locator.files)
        text = f"# Merged by quantize from {origin}\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}"
    for override in overrides:
        _override(data, override, locator)
    _check_version(data, locator)
    as_written = copy.deepcopy(data)
    resolve_paths(data, path.absolute().parent)
    problems = list(locator.problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        schema = json_schema()
        problems += [describe(problem, data, locator, schema) for problem in error.errors()]
    if problems:
        raise RecipeError(locator.in_order(problems))
    return LoadedRecipe(recipe, path, _without_secrets(path, text, recipe), digest(as_written), overrides)


def _check_version(data: dict[str, Any], locator: Locator) -> None:
    """Raise RecipeError, before anything else is told, for a recipe that another program's rules are meant for."""
    version = data.get("version")
    if not isinstance(version, int) or version == VERSION:
        return
    newer = f"a newer quantize reads it: upgrade (this is {__version__}), or write it for version {VERSION}"
    mend = newer if version > VERSION else f"there never was one: write `version: {VERSION}`"
    where = locator.where(("version",))
    raise RecipeError([f"{where}: this recipe is of version {version} and this program reads {VERSION}; {mend}"])


def _without_secrets(path: Path, text: str, recipe: Recipe) -> str:
    """The text with the addresses of webhooks hidden. Raises RecipeError for one that cannot be found to be hidden.

    Also for a registry's name and password: they belong into the environment.
    """
    address = recipe.registry.uri or ""
    if public(address) != address:
        problem = "an address holds no credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        raise RecipeError([f"{path}: registry.uri: {problem}"])
    hidden = text
    for notifier in recipe.release.notify:
        for secret in notifier.secrets:
            hidden = hidden.replace(secret, "https://hidden/...")
            if secret in yaml.safe_dump(yaml.safe_load(hidden), width=math.inf, allow_unicode=True):
                problem = "write the url plainly, in one line, or take url_env: copies of the recipe hide it"
                raise RecipeError([f"{path}: release.notify: {problem}"])
    return hidden


@functools.cache
def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors and for other programs. Read only."""
    schema = Recipe.model_json_schema(by_alias=True)
    files = {"type": "array", "items": {"type": "string"}, "title": "Include", "description": _INCLUDED}
    schema["properties"][_INCLUDE] = files
    # What a file that includes others does not say itself, they may.
    whole = {"if": {"required": [_INCLUDE]}, "else": {"required": schema.pop("required")}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "quantize recipe", **schema, **whole}


def _override(data: dict[str, Any], override: str, locator: Locator) -> None:
    """Apply one `a.b.0.c=value`; list items are named by index or by their `name`."""
    address, equals, raw = override.partition("=")
    if address.partition(".")[0] == _INCLUDE:
        raise RecipeError([f"--set {override}: files are included before --set is looked at: write it into the recipe"])
    if not equals or not address:
        raise RecipeError([f"--set {override}: write it as key=value, for example variants.0.group_size=64"])
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise RecipeError([f"--set {override}: {raw!r} is not a YAML value"]) from None
    *parents, last = address.split(".")
    flag = f"--set {address}"
    node: Any = data
    place: list[str | int] = []
    for part in parents:
        step = _step(node, part, override)
        place.append(step)
        if isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
            locator.overridden(tuple(place), flag)
        node = node[step]
    step = _step(node, last, override)
    node[step] = value
    resolve_paths(node if step in PATH_KEYS else value, Path.cwd())
    locator.overridden((*place, step), flag)


def _step(node: Any, part: str, override: str) -> str | int:
    if isinstance(node, dict):
        return part
    if isinstance(node, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in node]
        if part in names:
            return names.index(part)
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        known = ", ".join(str(name if name is not None else index) for index, name in enumerate(names)) or "none"
        raise RecipeError([f"--set {override}: the list has no item {part!r} (it has {known})"])
    raise RecipeError([f"--set {override}: {part!r} is below a plain value"])
