"""Recipes: YAML in, a closed and validated value out, every problem with its file and line.

A recipe is read three times over one text: as nodes (for line numbers and duplicate keys), as plain data
(`yaml.safe_load`, with `--set` applied), and as the `Recipe` model that the rest of the program sees. Relative `path`s
are relative to the recipe's own directory; those given by `--set` to the current one.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from quantize.benchmark.config import Benchmark
from quantize.calibrators import CalibratorConfig
from quantize.consistency import inconsistencies
from quantize.engines import ENGINES_BY_FORMAT, EngineConfig, Transformers
from quantize.errors import RecipeError
from quantize.evidence import Spending
from quantize.gates import GateConfig, ServiceLevel
from quantize.methods import MethodConfig
from quantize.metrics import MetricConfig
from quantize.problems import Locator, describe
from quantize.record import Record, digest
from quantize.registries import RegistryConfig, alias_problem
from quantize.scheme import Scheme, preset
from quantize.sources import SourceConfig

__all__ = ["EarlyStopping", "LoadedRecipe", "Recipe", "Resources", "Variant", "json_schema", "load"]

SCHEMA_URL = "recipe.schema.json"
_PATH_KEYS = frozenset({"path", "include_path"})
#: The key of a mapping whose values are all paths.
_ENVIRONMENTS = "environments"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def _is_name(value: str) -> str:
    if not _NAME.match(value) or ".." in value:
        raise ValueError(f"{value!r} is not a name: use lower-case letters, digits, '.', '_' and '-', 63 at most")
    return value


def _is_variant_name(value: str) -> str:
    problem = alias_problem(_is_name(value))
    if problem:
        raise ValueError(problem)
    return value


def _is_preset(value: str) -> str:
    preset(value)
    return value


Name = Annotated[str, AfterValidator(_is_name)]
VariantName = Annotated[str, AfterValidator(_is_variant_name)]


class Variant(Record):
    """One compressed model: a scheme (which numbers) and a method (how they are found)."""

    name: VariantName
    scheme: Annotated[str, AfterValidator(_is_preset)]
    method: MethodConfig
    engine: Annotated[
        EngineConfig | None, Field(description="What serves it; unset: what its format needs, else the recipe's.")
    ] = None
    group_size: Annotated[int | None, Field(gt=0, description="Overrides the preset's group size.")] = None
    ignore: Annotated[tuple[str, ...], Field(description="Modules left alone, by name or `re:` pattern.")] = (
        "lm_head",
    )
    force: Annotated[
        bool, Field(description="Run it although `plan` knows that it will not load here; it ends in its proof.")
    ] = False

    def resolved_scheme(self) -> Scheme:
        """The preset with this variant's group size."""
        scheme = preset(self.scheme)
        return scheme if self.group_size is None else replace(scheme, group_size=self.group_size)

    @model_validator(mode="after")
    def _gguf_names_tensors(self) -> Variant:
        if self.method.kind == "gguf" and "ignore" in self.model_fields_set and self.ignore != ("lm_head",):
            raise ValueError("ignore has no meaning for GGUF: name the types of tensors with method.tensor_types")
        return self

    @model_validator(mode="after")
    def _group_size_needs_groups(self) -> Variant:
        if self.group_size is not None and preset(self.scheme).strategy != "group":
            raise ValueError(
                f"group_size has no meaning for {self.scheme}: its scales are per {preset(self.scheme).strategy}"
            )
        return self


class Resources(Record):
    """What stages may use. `device`: `auto` takes the first CUDA device if there is one, else the CPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads of a stage; unset: all cores.")] = None


class EarlyStopping(Record):
    """Variants answer in looks of `look` items and stop when their gates are certain; the baseline answers everything.

    `share` of each gate's alpha pays for passing early. Without `enabled` every variant answers every item.
    """

    enabled: bool = True
    look: Annotated[int, Field(ge=8, le=4096, description="Items between two looks at the gates.")] = 48
    share: Annotated[float, Field(gt=0, lt=1, description="Share of alpha that pays for an early pass.")] = 0.2


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
    seed: Annotated[int, Field(ge=0)] = 0

    def engine_of(self, variant: Variant) -> EngineConfig:
        """What serves a variant: its own engine, else the one that its format needs, else the recipe's."""
        return variant.engine or ENGINES_BY_FORMAT.get(variant.method.format, self.engine)

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
    """A recipe, the text it came from, and the digest of its data before paths were made absolute."""

    recipe: Recipe
    path: Path
    text: str
    digest: str
    overrides: tuple[str, ...]


def load(path: Path, overrides: tuple[str, ...] = ()) -> LoadedRecipe:
    """Read and validate a recipe. Raises RecipeError with all its problems, each with file:line and a mend."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" There are {', '.join(near)}." if near else ""
        raise RecipeError([f"{path}: there is no such recipe.{hint}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as UTF-8 text ({error})."]) from None
    locator = Locator(path, text)
    data = locator.data()
    for override in overrides:
        _override(data, override, locator)
    as_written = copy.deepcopy(data)
    _resolve_paths(data, path.absolute().parent)
    problems = list(locator.problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        schema = json_schema()
        problems += [describe(problem, data, locator, schema) for problem in error.errors()]
    if problems:
        raise RecipeError(locator.in_order(problems))
    return LoadedRecipe(recipe, path, text, digest(as_written), overrides)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors and for other programs."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "quantize recipe", **schema}


def _override(data: dict[str, Any], override: str, locator: Locator) -> None:
    """Apply one `a.b.0.c=value`; list items are named by index or by their `name`."""
    address, equals, raw = override.partition("=")
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
    _resolve_paths(node if step in _PATH_KEYS else value, Path.cwd())
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


def _resolve_paths(node: Any, base: Path) -> None:
    """Make every relative path below `node` absolute, in place."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _PATH_KEYS and isinstance(value, str):
                node[key] = str(base / Path(value).expanduser())
            elif key == _ENVIRONMENTS and isinstance(value, dict):
                for name, place in value.items():
                    value[name] = str(base / Path(place).expanduser()) if isinstance(place, str) else place
            else:
                _resolve_paths(value, base)
    elif isinstance(node, list):
        for item in node:
            _resolve_paths(item, base)
