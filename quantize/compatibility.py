"""What serves what: format x scheme x device x engine, as data (`compatibility.toml`), and one question to ask of it.

The rules come from the engines' own documentation or from what was run, and each says which. They are read from the
top; what is not known of a machine (a GPU's compute capability, a CPU's instruction sets) speaks against nothing.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints

from quantize.device import Device
from quantize.record import Record
from quantize.scheme import PRESETS, Scheme

__all__ = ["ENGINES", "FORMATS", "Compatibility", "Row", "Rule", "rules", "table", "verdict"]

Outcome = Literal["yes", "slow", "no"]
EngineName = Literal["transformers", "transformers@gptqmodel", "vllm", "llamacpp", "sglang", "tensorrt-llm"]
Format = Literal["none", "compressed-tensors", "compressed-tensors+rotations", "bitsandbytes", "gptq", "awq", "gguf"]

#: Engines by name. Those after `llamacpp` are never run here: serving files are written for them.
ENGINES: tuple[str, ...] = get_args(EngineName)
#: Containers on disk; "none" is a model that is not quantized.
FORMATS: tuple[str, ...] = get_args(Format)

_RULES = Path(__file__).with_name("compatibility.toml")

Version = Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]


class Rule(Record):
    """One line of the table; its fields are explained at the top of `compatibility.toml`."""

    engine: tuple[EngineName, ...] = Field(min_length=1)
    format: tuple[Format | Literal["*"], ...] = Field(min_length=1)
    scheme: tuple[str, ...] = ("*",)
    device: Literal["cuda", "cpu"] | None = None
    at_least: Version | None = None
    below: Version | None = None
    features: tuple[str, ...] = ()
    group_sizes: tuple[int, ...] = ()
    outcome: Outcome
    reason: str = ""
    mend: str = ""
    source: str = Field(min_length=1)

    def fits(self, format_: str, scheme: Scheme | None, engine: str, device: Device) -> bool:
        """Whether the rule speaks of this case."""
        named = engine in self.engine and (format_ in self.format or "*" in self.format)
        name = scheme.name if scheme is not None else ""
        if not named or not any(fnmatchcase(name, pattern) for pattern in self.scheme):
            return False
        if self.device not in (None, device.kind):
            return False
        size = scheme.group_size if scheme is not None else None
        if self.group_sizes and size is not None and size not in self.group_sizes:
            return False
        if device.features and not device.features.issuperset(self.features):
            return False
        return self._within(device.capability)

    def _within(self, capability: tuple[int, int] | None) -> bool:
        if capability is None:
            return True
        enough = self.at_least is None or capability >= _version(self.at_least)
        return enough and (self.below is None or capability < _version(self.below))


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Whether an engine serves an artifact on a device; why, what would do instead, and who says so.

    "slow" runs, but with the weights expanded: no memory is saved while serving.
    """

    outcome: Outcome
    reason: str
    mend: str
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line for people: the schemes of a format, and what each engine says of them."""

    format: str
    schemes: tuple[str, ...]
    outcomes: dict[str, Outcome]


@cache
def rules() -> tuple[Rule, ...]:
    """The rules, in the order in which they are read."""
    data = tomllib.loads(_RULES.read_text(encoding="utf-8"))
    return tuple(Rule.model_validate(rule) for rule in data["rule"])


def verdict(format_: str, scheme: Scheme | None, engine: str, device: Device) -> Compatibility:
    """What the first rule that fits says. `engine` is a name of ENGINES, `scheme` None for an unquantized model.

    Of a scheme with groups, what is said of the worst served.
    """
    if scheme is not None and scheme.groups:
        told = [verdict(format_, part, engine, device) for part in scheme.parts]
        return min(told, key=lambda one: ("no", "slow", "yes").index(one.outcome))
    for rule in rules():
        if rule.fits(format_, scheme, engine, device):
            return Compatibility(rule.outcome, rule.reason, rule.mend, rule.source)
    what = f"{format_} {scheme.name}" if scheme is not None else format_
    return Compatibility(
        "no", f"no rule says that {engine} serves {what}", "choose another engine", "compatibility.toml"
    )


def table(device: Device) -> list[Row]:
    """Every format and scheme beside every engine, on one device; schemes that nothing tells apart share a row."""
    found: list[Row] = []
    for format_, schemes in _cases().items():
        rows: dict[tuple[Outcome, ...], list[str]] = {}
        for scheme in schemes:
            told = tuple(verdict(format_, scheme, engine, device).outcome for engine in ENGINES)
            rows.setdefault(told, []).append(scheme.name if scheme is not None else "")
        found += [
            Row(format_, tuple(filter(None, names)), dict(zip(ENGINES, told, strict=True)))
            for told, names in rows.items()
        ]
    return found


def _cases() -> dict[str, list[Scheme | None]]:
    """The schemes that each format may hold."""
    families: dict[str, list[Scheme | None]] = {}
    for scheme in PRESETS.values():
        families.setdefault(scheme.family, []).append(scheme)
    weights_only = [s for s in families["compressed-tensors"] if s is not None and s.weight_only]
    whole_numbers = [s for s in weights_only if s.weight_type == "int"]
    four_bits = [s for s in whole_numbers if s.weight_bits == 4]
    rotated = {"compressed-tensors+rotations": families["compressed-tensors"]}
    return {"none": [None], **families, **rotated, "gptq": [*whole_numbers], "awq": [*four_bits]}


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
