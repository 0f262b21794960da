"""bitsandbytes: 4-bit blocks with a table of values, 8-bit rows with their absolute maxima.

4 bits: two values a byte, the first in the high half; each is an index into `quant_map` (16 values in [-1, 1]) and is
multiplied by its block's `absmax`. With nested scales (`double_quant`) `absmax` is itself a byte, an index into
`nested_quant_map`, times `nested_absmax` of its block, plus `nested_offset`. Sizes stand as JSON in the tensor
`quant_state.bitsandbytes__nf4` or `__fp4`. 8 bits: int8 times `SCB` / 127, by row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantize.fingerprint._tensors import Tensors

if TYPE_CHECKING:
    import torch

__all__ = ["in_memory", "read"]


def in_memory(model: Any) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Name, layout and dequantized weight (out, in) of every Linear4bit and Linear8bitLt."""
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None and type(weight).__name__ == "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            yield name, {"kind": "bitsandbytes", "bits": 4}, dequantize_4bit(weight.data, state).reshape(state.shape)
        elif type(weight).__name__ == "Int8Params":
            integers, scales = _rows(module)
            yield name, {"kind": "bitsandbytes", "bits": 8}, integers.float() * (scales.float() / 127)[:, None]


def _rows(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (out, in) and row maxima (out) of a Linear8bitLt, which moves them when it is first used."""
    state = module.state
    if state.CB is not None:
        return state.CB, state.SCB
    return module.weight.data, module.weight.SCB


def read(tensors: Tensors, name: str) -> torch.Tensor | None:
    """The weight (out, in); None where there is no such module."""
    parts = tensors.of(name)
    if "SCB" in parts:
        return tensors[parts["weight"]].float() * (tensors[parts["SCB"]].float() / 127)[:, None]
    sizes = next((key for leaf, key in parts.items() if leaf.startswith("weight.quant_state.")), None)
    return None if sizes is None else _blocks(tensors, name, json.loads(bytes(tensors[sizes].tolist())))


def _blocks(tensors: Tensors, name: str, sizes: dict[str, Any]) -> torch.Tensor:
    import torch

    absmax = tensors[f"{name}.weight.absmax"]
    if "nested_blocksize" in sizes:
        nested = tensors[f"{name}.weight.nested_quant_map"].float()[absmax.long()]
        absmax = _scaled(nested, tensors[f"{name}.weight.nested_absmax"].float(), sizes["nested_blocksize"])
        absmax = absmax + sizes["nested_offset"]
    packed = tensors[f"{name}.weight"].flatten()
    indices = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    count = torch.Size(sizes["shape"]).numel()
    values = tensors[f"{name}.weight.quant_map"].float()[indices[:count]]
    weight = _scaled(values, absmax.float(), sizes["blocksize"])
    return weight.to(getattr(torch, sizes["dtype"])).reshape(sizes["shape"])


def _scaled(values: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    """Values (n) times the scale of their block (n / block); the last block may be short."""
    return values * scales.repeat_interleave(block)[: len(values)]
