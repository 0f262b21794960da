"""awq: the checkpoint format of AutoAWQ, version GEMM.

`qweight` int32 (in, out / 8) and `qzeros` int32 (groups, out / 8) hold eight outputs a word, in the order that its GPU
kernel unpacks fastest; `scales` (groups, out). Zero points are stored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantize.fingerprint._tensors import Tensors

if TYPE_CHECKING:
    import torch

__all__ = ["in_memory", "read"]

#: Which of eight neighbouring outputs lies in the n-th four bits of a word.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def in_memory(model: Any) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Name, layout and dequantized weight (out, in) of every module that packs along its outputs."""
    for name, module in model.named_modules():
        if hasattr(module, "qweight") and not hasattr(module, "g_idx") and getattr(module, "w_bit", None) == 4:
            parts = {leaf: getattr(module, leaf) for leaf in ("qweight", "qzeros", "scales")}
            yield name, {"kind": "awq"}, _decode(parts)


def read(tensors: Tensors, name: str) -> torch.Tensor | None:
    """The weight (out, in) in float32; None where there is no such module."""
    parts = {leaf: tensors[key] for leaf, key in tensors.of(name).items()}
    return _decode(parts) if "qweight" in parts else None


def _decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    integers = _unpack(parts["qweight"])
    scales = parts["scales"].float()
    group = len(integers) // len(scales)
    spread = scales.repeat_interleave(group, 0)
    if parts.get("qzeros") is None:
        return ((integers - 8).float() * spread).T
    zeros = _unpack(parts["qzeros"]).repeat_interleave(group, 0)
    return ((integers - zeros).float() * spread).T


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """Int32 words (rows, out / 8) -> integers (rows, out) of 4 bits."""
    import torch

    values = torch.empty((*words.shape, 8), dtype=torch.int32, device=words.device)
    for place, output in enumerate(_ORDER):
        values[..., output] = (words >> (4 * place)) & 15
    return values.reshape(len(words), -1)
