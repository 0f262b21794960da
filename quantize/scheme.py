"""Schemes: which numbers a variant's weights and activations are stored in, and the presets as the field names them.

The names are compressed-tensors' preset names, so that a recipe reads like the library's own documentation. Weight bits
and group size are kept here as data because `plan` needs them (bits per weight, shape constraints) without importing
torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

__all__ = ["PRESETS", "Scheme", "preset"]

Strategy = Literal["tensor", "channel", "group", "block"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """Numbers and granularity of one quantized Linear.

    `weight_bits` and `activation_bits` in bits (activation None: left as they are); `strategy` is the granularity of
    the weight scales; `group_size` in input channels, only for the strategy `group`.
    """

    name: str
    weight_bits: int
    weight_type: Literal["int", "float"]
    symmetric: bool
    strategy: Strategy
    group_size: int | None
    activation_bits: int | None

    @property
    def weight_only(self) -> bool:
        """True where activations keep their type, so that calibration is only needed by the method."""
        return self.activation_bits is None

    def bits_per_weight(self, in_features: int, scale_bits: int) -> float:
        """Stored bits per weight of a Linear with `in_features` input channels, scales and zero points included.

        The zero point of an asymmetric scheme is packed at the weight's width, as compressed-tensors stores it.
        """
        if self.strategy == "tensor":
            return float(self.weight_bits)
        share = self.group_size or in_features
        zero_point = 0 if self.symmetric else self.weight_bits
        return self.weight_bits + (scale_bits + zero_point) / share


PRESETS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("FP8_DYNAMIC", 8, "float", True, "channel", None, 8),
        Scheme("W8A8", 8, "int", True, "channel", None, 8),
        Scheme("W8A16", 8, "int", True, "group", 128, None),
        Scheme("W4A16", 4, "int", True, "group", 128, None),
        Scheme("W4A16_ASYM", 4, "int", False, "group", 128, None),
    )
}


def preset(name: str) -> Scheme:
    """The preset called `name`. Raises ValueError with the nearest name, or all of them."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.upper(), PRESETS, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"The presets are {', '.join(PRESETS)}."
    raise ValueError(f"{name!r} is not a preset. {hint}")
