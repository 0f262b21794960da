"""Schemes: which numbers a variant's weights and activations are stored in, and the presets as the field names them.

The names are those of the libraries that make them (compressed-tensors' presets, bitsandbytes' data types, llama.cpp's
file types), so that a recipe reads like their own documentation. Weight bits and group size are kept here as data
because `plan` needs them (bits per weight, shape constraints) without importing torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["PRESETS", "Family", "Group", "Scheme", "mixed", "preset", "scheme_of"]

Strategy = Literal["tensor", "channel", "group", "tensor_group", "block"]

#: Whose numbers they are: what can make them, and what can read them, follows from it.
Family = Literal["compressed-tensors", "bitsandbytes", "gguf"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """Numbers and granularity of one quantized Linear.

    `weight_bits` and `activation_bits` in bits (activation None: left as they are); `strategy` is the granularity of
    the weight scales; `group_size` in input channels, for the strategies `group` and `tensor_group` (groups, and one
    scale more for the whole tensor); `block_size` the side of a square `block`. `scale_bits` where scales have
    a type of their own, else they have the checkpoint's. `static_activations`: ranges of activations are found on
    calibration text and stored. `kv_cache` is the type of keys and values, where they are rounded. A scheme with
    `groups` is several: its own numbers are those of the first. `nominal_bits` are stored bits per weight, scales
    included, where a scheme mixes types or nests scales; a model's own mix may differ by a few percent.
    """

    name: str
    weight_bits: int
    weight_type: Literal["int", "float"]
    symmetric: bool
    strategy: Strategy
    group_size: int | None
    activation_bits: int | None
    family: Family = "compressed-tensors"
    nominal_bits: float | None = None
    static_activations: bool = False
    scale_bits: int | None = None
    block_size: int | None = None
    kv_cache: Literal["fp8"] | None = None
    groups: tuple[Group, ...] = ()

    @property
    def calibrated(self) -> bool:
        """True where the numbers themselves need tokens, whatever the method."""
        return self.kv_cache is not None or any(part.static_activations for part in self.parts)

    @property
    def parts(self) -> tuple[Scheme, ...]:
        """The schemes of the groups, or this one."""
        return tuple(group.scheme for group in self.groups) or (self,)

    @property
    def fixed_groups(self) -> bool:
        """True where the scheme's name stands for one group size, which kernels are built for."""
        return self.scale_bits is not None or self.strategy != "group"

    @property
    def weight_only(self) -> bool:
        """True where activations keep their type, so that calibration is only needed by the method."""
        return self.activation_bits is None

    def bits_per_weight(self, in_features: int, scale_bits: int) -> float:
        """Stored bits per weight of a Linear with `in_features` input channels, scales and zero points included.

        The zero point of an asymmetric scheme is packed at the weight's width, as compressed-tensors stores it.
        """
        if self.nominal_bits is not None:
            return self.nominal_bits
        scale_bits = self.scale_bits or scale_bits
        if self.strategy == "tensor":
            return float(self.weight_bits)
        if self.block_size is not None:
            return self.weight_bits + scale_bits / self.block_size**2
        share = self.group_size or in_features
        zero_point = 0 if self.symmetric else self.weight_bits
        return self.weight_bits + (scale_bits + zero_point) / share


@dataclass(frozen=True, slots=True)
class Group:
    """Modules and their numbers: `targets` are full names, `re:` patterns of names, or a class (`Linear`)."""

    name: str
    targets: tuple[str, ...]
    scheme: Scheme


def mixed(groups: Sequence[Group]) -> Scheme:
    """Several schemes as one, named after all of them."""
    names = dict.fromkeys(group.scheme.name for group in groups)
    return replace(groups[0].scheme, name=" + ".join(names), groups=tuple(groups))


def scheme_of(data: Mapping[str, Any]) -> Scheme:
    """A scheme again, from `dataclasses.asdict` or its JSON."""
    groups = tuple(Group(g["name"], tuple(g["targets"]), scheme_of(g["scheme"])) for g in data["groups"])
    return Scheme(**{**data, "groups": groups})


#: llama.cpp's file types: bits per weight of the type, or of the usual mix where a name stands for one (`_M`, `_S`).
_GGUF = {
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.54,
    "Q4_K_M": 4.85,
    "Q4_K_S": 4.58,
    "Q3_K_L": 4.3,
    "Q3_K_M": 3.9,
    "Q3_K_S": 3.5,
    "Q2_K": 3.0,
    "Q5_1": 6.0,
    "Q5_0": 5.5,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "IQ3_M": 3.66,
    "IQ3_S": 3.44,
    "IQ3_XXS": 3.06,
    "IQ2_M": 2.7,
    "IQ2_S": 2.5,
    "IQ2_XS": 2.31,
    "IQ2_XXS": 2.06,
    "IQ1_M": 1.75,
    "IQ1_S": 1.56,
}


def _gguf(name: str, bits: float) -> Scheme:
    return Scheme(name, int(bits), "int", name.startswith("I") or name.endswith("_0"), "group", None, 8, "gguf", bits)


PRESETS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("FP8", 8, "float", True, "tensor", None, 8, static_activations=True),
        Scheme("FP8_DYNAMIC", 8, "float", True, "channel", None, 8),
        Scheme("FP8_BLOCK", 8, "float", True, "block", None, 8, block_size=128),
        Scheme("W8A8", 8, "int", True, "channel", None, 8),
        Scheme("W8A16", 8, "int", True, "group", 128, None),
        Scheme("W4A16", 4, "int", True, "group", 128, None),
        Scheme("W4A16_ASYM", 4, "int", False, "group", 128, None),
        Scheme("W4A8", 4, "int", True, "group", 128, 8),
        Scheme("W4AFP8", 4, "int", True, "group", 128, 8),
        Scheme("NVFP4", 4, "float", True, "tensor_group", 16, 4, static_activations=True, scale_bits=8),
        Scheme("NVFP4A16", 4, "float", True, "tensor_group", 16, None, scale_bits=8),
        Scheme("MXFP4", 4, "float", True, "group", 32, 4, scale_bits=8),
        Scheme("MXFP4A16", 4, "float", True, "group", 32, None, scale_bits=8),
        Scheme("NF4", 4, "float", True, "group", 64, None, "bitsandbytes", 4.13),
        Scheme("FP4", 4, "float", True, "group", 64, None, "bitsandbytes", 4.13),
        Scheme("INT8", 8, "int", True, "channel", None, 8, "bitsandbytes"),
        Scheme("F32", 32, "float", True, "tensor", None, None, "gguf", 32.0),
        Scheme("F16", 16, "float", True, "tensor", None, None, "gguf", 16.0),
        Scheme("BF16", 16, "float", True, "tensor", None, None, "gguf", 16.0),
        *(_gguf(name, bits) for name, bits in _GGUF.items()),
    )
}


def preset(name: str) -> Scheme:
    """The preset called `name`. Raises ValueError with the nearest name, or all of them."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.upper().replace("-", "_"), PRESETS, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"The presets are {', '.join(PRESETS)}."
    raise ValueError(f"{name!r} is not a preset. {hint}")
