"""Which scheme a Linear's numbers are: a preset where all of them agree, else one with a name of its own.

What presets do to activations is told here, as compressed-tensors' presets have it; a `Scheme` holds the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quantize.scheme import PRESETS, Scheme

__all__ = ["Rounding", "scheme_by"]

_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_POWERS_OF_TWO = "uint8"
_FLOAT8 = "float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights, or activations, are rounded; two that are equal are the same numbers.

    `bits` of each; `kind` is int or float; `strategy` the granularity of the scales; `size` the channels of a group or
    the side of a square block; `scale` the type of scales that have one of their own. `dynamic` is said of activations:
    their ranges are found while serving, all of them (True), none (False), or those of groups (`local`).
    """

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    size: int | None = None
    scale: str | None = None
    dynamic: bool | str = False

    @classmethod
    def of(cls, args: dict[str, Any], format_: str) -> Rounding:
        """From compressed-tensors' arguments in a config, and the packing that it names.

        Early NVFP4 and MXFP4 did not say the type of scales, which their packing has. Raises KeyError, ValueError.
        """
        strategy = str(args["strategy"])
        scale: str | None = str(args.get("scale_dtype") or "").removeprefix("torch.")
        if not scale:
            scale = _FLOAT8 if strategy == "tensor_group" else _POWERS_OF_TWO if "mxfp" in format_ else None
        dynamic = args.get("dynamic", False)
        return cls(
            bits=int(args["num_bits"]),
            kind=str(args["type"]),
            symmetric=bool(args["symmetric"]),
            strategy=strategy,
            size=_size(args, strategy),
            scale=scale if scale in (_FLOAT8, _POWERS_OF_TWO) else None,
            dynamic=dynamic if dynamic == "local" else bool(dynamic),
        )


_INT8 = Rounding(8, "int", True, "token", dynamic=True)
_FP8 = Rounding(8, "float", True, "token", dynamic=True)
#: What the presets do to activations; those that are not here leave them as they are.
_INPUTS = {
    "FP8": replace(_FP8, strategy="tensor", dynamic=False),
    "FP8_DYNAMIC": _FP8,
    "FP8_BLOCK": replace(_FP8, strategy="group", size=128),
    "W8A8": _INT8,
    "W4A8": _INT8,
    "W4AFP8": _FP8,
    "NVFP4": Rounding(4, "float", True, "tensor_group", 16, _FLOAT8, dynamic="local"),
    "MXFP4": Rounding(4, "float", True, "group", 32, _POWERS_OF_TWO, dynamic=True),
}


def scheme_by(weights: Rounding, inputs: Rounding | None) -> Scheme:
    """The preset with these numbers, else a scheme that is called by its numbers. Raises ValueError for no numbers.

    Where a preset takes any group size, a whole row is one too.
    """
    if weights.kind not in ("int", "float") or weights.strategy not in _STRATEGIES:
        raise ValueError(f"weights of type {weights.kind!r} in strategy {weights.strategy!r}")
    for preset in PRESETS.values():
        if preset.family != "compressed-tensors" or _INPUTS.get(preset.name) != inputs:
            continue
        if _weights(preset) == weights:
            return preset
        if not preset.fixed_groups and weights.strategy in ("group", "channel"):
            other = replace(preset, strategy=weights.strategy, group_size=weights.size)  # type: ignore[arg-type]
            if _weights(other) == weights:
                return other
    return _own(weights, inputs)


def _weights(scheme: Scheme) -> Rounding:
    """A scheme's weights."""
    scale = None
    if scheme.scale_bits is not None:
        scale = _FLOAT8 if scheme.strategy == "tensor_group" else _POWERS_OF_TWO
    size = scheme.block_size or scheme.group_size
    return Rounding(scheme.weight_bits, scheme.weight_type, scheme.symmetric, scheme.strategy, size, scale)


def _own(weights: Rounding, inputs: Rounding | None) -> Scheme:
    """A scheme that no preset is."""
    blocks = weights.strategy == "block"
    return Scheme(
        name=_name(weights, inputs),
        weight_bits=weights.bits,
        weight_type=weights.kind,  # type: ignore[arg-type]
        symmetric=weights.symmetric,
        strategy=weights.strategy,  # type: ignore[arg-type]
        group_size=None if blocks else weights.size,
        activation_bits=inputs.bits if inputs is not None else None,
        static_activations=inputs is not None and inputs.dynamic is not True,
        scale_bits=8 if weights.scale is not None else None,
        block_size=weights.size if blocks else None,
    )


def _name(weights: Rounding, inputs: Rounding | None) -> str:
    """Widths first, as in W3A16; then what is not usual: FP8A8_CHANNEL_STATIC. Never a preset's name."""
    said = [_prefix(weights) + str(weights.bits)]
    if inputs is None:
        said[0] += "A16"
    else:
        said[0] += f"A{'' if inputs.kind == weights.kind else 'FP' if inputs.kind == 'float' else 'INT'}{inputs.bits}"
    said += [] if weights.symmetric else ["ASYM"]
    plain = ("group", "channel") if weights.kind == "int" else ("group", "tensor_group") if weights.scale else ()
    said += [] if weights.strategy in plain else [weights.strategy.upper()]
    if inputs is not None:
        said += [] if inputs.dynamic else ["STATIC"]
        said += [] if inputs.symmetric else ["ASYM_INPUTS"]
        usual = ("token", "group", "tensor_group") if inputs.dynamic else ("tensor",)
        said += [] if inputs.strategy in usual else [f"{inputs.strategy.upper()}_INPUTS"]
    name = "_".join(said)
    return name if name not in PRESETS else f"{name}_{weights.strategy.upper()}{weights.size or ''}"


def _prefix(weights: Rounding) -> str:
    if weights.kind == "int":
        return "W"
    return {_POWERS_OF_TWO: "MXFP", _FLOAT8: "NVFP"}.get(weights.scale or "", "FP")


def _size(args: dict[str, Any], strategy: str) -> int | None:
    """Channels of a group, or the side of a block. Raises ValueError for blocks that are not square."""
    if strategy in ("group", "tensor_group"):
        return int(args["group_size"])
    if strategy != "block":
        return None
    rows, columns = (int(side) for side in args["block_structure"])
    if rows != columns:
        raise ValueError(f"blocks of {rows} x {columns}, which are not square")
    return rows
