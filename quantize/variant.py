"""Variants: what a recipe says of one compressed model, and what it cannot say together."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from quantize.calibrators import CalibrationSize
from quantize.engines import EngineConfig
from quantize.handed import Uncovered
from quantize.methods import Existing, MethodConfig
from quantize.patterns import pattern_problem
from quantize.record import Record
from quantize.registries import alias_problem
from quantize.scheme import Group, Scheme, mixed, preset

__all__ = ["ConfigGroup", "Experts", "Name", "Variant"]

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


def _is_pattern(value: str) -> str:
    problem = pattern_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def _granularity(name: str) -> str:
    scheme = preset(name)
    return f"of {scheme.group_size} channels" if scheme.group_size is not None else f"per {scheme.strategy}"


Name = Annotated[str, AfterValidator(_is_name)]
Pattern = Annotated[str, AfterValidator(_is_pattern)]
VariantName = Annotated[str, AfterValidator(_is_variant_name)]


def _resolved(name: str, group_size: int | None) -> Scheme:
    """The preset, with another group size where one is given."""
    if group_size is None:
        return preset(name)
    if preset(name).fixed_groups:
        raise ValueError(f"group_size has no meaning for {name}: its scales are {_granularity(name)}")
    return replace(preset(name), group_size=group_size)


def _takes_groups(method: MethodConfig, **wanted: bool) -> None:
    """Raises ValueError where a method of another library is asked for what llm-compressor does."""
    if method.format.startswith("compressed-tensors"):
        return
    asked = [name for name, told in wanted.items() if told]
    if asked:
        raise ValueError(
            f"method {method.kind} has no {' and no '.join(asked)}: take a method of llm-compressor, as rtn"
        )


class ConfigGroup(Record):
    """A scheme for the modules that `targets` name."""

    targets: Annotated[
        tuple[Pattern, ...], Field(min_length=1, description="Full names, or `re:` and what a name must begin with.")
    ]
    scheme: Annotated[str, AfterValidator(_is_preset)]
    group_size: Annotated[int | None, Field(gt=0, description="Overrides the preset's group size.")] = None

    @model_validator(mode="after")
    def _group_size_needs_groups(self) -> ConfigGroup:
        _resolved(self.scheme, self.group_size)
        return self


class Experts(Record):
    """What becomes of experts that the router sends fewer than `least_tokens` of the calibration tokens.

    `calibrate_all` (what is done if nothing is said): every expert sees all tokens, whatever the router says. `refuse`
    and `leave`: each sees the tokens that are sent to it; where those are too few, the variant ends before anything is
    calibrated, or all experts of that layer stay as they are, because engines read one scheme for them all.
    """

    uncovered: Uncovered
    least_tokens: Annotated[int, Field(gt=0, description="Tokens with which an expert counts as covered.")] = 64


class Variant(Record):
    """One compressed model: numbers (one `scheme`, or `config_groups`) and a method (how they are found)."""

    name: VariantName
    scheme: Annotated[
        Annotated[str, AfterValidator(_is_preset)] | None,
        Field(
            description="The preset of all Linear modules. An existing checkpoint may leave it out: it says so itself."
        ),
    ] = None
    config_groups: Annotated[
        dict[str, ConfigGroup], Field(description="A scheme for each pattern of module names, instead of `scheme`.")
    ] = Field(default_factory=dict)
    kv_cache: Annotated[
        Literal["fp8"] | None, Field(description="Round keys and values too; their scales need calibration.")
    ] = None
    method: MethodConfig
    engine: Annotated[
        EngineConfig | None, Field(description="What serves it; unset: what its format needs, else the recipe's.")
    ] = None
    group_size: Annotated[int | None, Field(gt=0, description="Overrides the preset's group size.")] = None
    calibration: Annotated[
        CalibrationSize | None, Field(description="Another size and length of the recipe's calibration.")
    ] = None
    experts: Annotated[
        Experts | None, Field(description="Experts that calibration hardly reaches; unset: each sees all tokens.")
    ] = None
    ignore: Annotated[tuple[Pattern, ...], Field(description="Modules left alone, by name or `re:` pattern.")] = (
        "lm_head",
    )
    force: Annotated[
        bool, Field(description="Run it although `plan` knows that it will not load here; it ends in its proof.")
    ] = False

    def resolved_scheme(self) -> Scheme:
        """The preset with this variant's group size, or those of its groups as one; and what keys and values are.

        Of an existing checkpoint, what it says itself. Raises SourceError.
        """
        if isinstance(self.method, Existing):
            held = self.method.held().scheme
            if self.scheme is None or (held is not None and held.name == self.scheme):
                return self.method.scheme()
        if self.scheme is not None:
            scheme = _resolved(self.scheme, self.group_size)
        else:
            groups = [Group(n, g.targets, _resolved(g.scheme, g.group_size)) for n, g in self.config_groups.items()]
            scheme = mixed(groups)
        return replace(scheme, kv_cache=self.kv_cache)

    @property
    def calibrated(self) -> bool:
        """True where it is made with calibration tokens: its method looks at them, or its scheme stores ranges."""
        if isinstance(self.method, Existing):
            return False  # whoever made it has done so
        return self.method.calibrated or self.resolved_scheme().calibrated

    @model_validator(mode="after")
    def _gguf_names_tensors(self) -> Variant:
        if self.method.kind == "gguf" and "ignore" in self.model_fields_set and self.ignore != ("lm_head",):
            raise ValueError("ignore has no meaning for GGUF: name the types of tensors with method.tensor_types")
        return self

    @model_validator(mode="after")
    def _says_which_numbers(self) -> Variant:
        grouped = bool(self.config_groups)
        if self.scheme is not None and grouped:
            raise ValueError("a variant has either a `scheme` or `config_groups`")
        if grouped and self.group_size is not None:
            raise ValueError("group_size belongs into the groups of config_groups")
        if isinstance(self.method, Existing):
            if grouped or self.kv_cache is not None:
                raise ValueError("an existing checkpoint says itself which numbers it has: leave them out")
            return self
        if self.scheme is None and not grouped:
            raise ValueError("a variant has either a `scheme` or `config_groups`")
        self.resolved_scheme()
        told = {"kv_cache": self.kv_cache is not None, "experts": self.experts is not None}
        _takes_groups(self.method, config_groups=grouped, **told)
        return self

    @model_validator(mode="after")
    def _calibrates_where_it_says_how(self) -> Variant:
        asked = [name for name in ("calibration", "experts") if getattr(self, name) is not None]
        # An existing checkpoint is not opened to find out.
        if asked and (isinstance(self.method, Existing) or not self.calibrated):
            raise ValueError(f"{self.method.kind} with these numbers looks at no tokens: leave {asked[0]} out")
        return self
