"""gptq: the checkpoint format of AutoGPTQ and GPTQModel.

`qweight` int32 (in · bits / 32, out) packs along the inputs, `qzeros` int32 (groups, out · bits / 32) along the
outputs, `scales` (groups, out); `g_idx` (in) is the group of each input, which activation order permutes. Format `gptq`
stores zero points less one (modulo 2^bits), `gptq_v2` stores them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantize.fingerprint._tensors import Tensors, unpack

if TYPE_CHECKING:
    import torch

__all__ = ["in_memory", "read"]


def in_memory(model: Any) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Name, layout and dequantized weight (out, in) of every module with packed weights that can dequantize itself."""
    for name, module in model.named_modules():
        if hasattr(module, "qweight") and hasattr(module, "g_idx") and hasattr(module, "dequantize_weight"):
            yield name, {"kind": "gptq"}, module.dequantize_weight().T.reshape(-1, len(module.g_idx))


def read(tensors: Tensors, name: str, layout: dict[str, Any]) -> torch.Tensor | None:
    """The weight (out, in) in float32; None where there is no such module."""
    import torch

    parts = {leaf: tensors[key] for leaf, key in tensors.of(name).items()}
    if "qweight" not in parts:
        return None
    bits = int(layout["bits"])
    integers = unpack(parts["qweight"], bits)
    zeros = unpack(parts["qzeros"].T.contiguous(), bits).T
    if layout.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)
    scales = parts["scales"].float()
    group = -(-len(integers) // len(scales))
    groups = parts["g_idx"].long() if "g_idx" in parts else torch.arange(len(integers)) // group
    return ((integers - zeros[groups]).float() * scales[groups]).T
