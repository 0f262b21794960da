"""Linears that hold their weight as it is: the reference model of a library that computes on packed weights only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantize.fingerprint._tensors import Tensors

if TYPE_CHECKING:
    import torch

__all__ = ["in_memory", "read"]


def in_memory(model: Any) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Name, layout and weight (out, in) of every Linear but the output head, which may be stored as the embedding."""
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and module.weight.is_floating_point():
            yield name, {"kind": "plain"}, module.weight.data


def read(tensors: Tensors, name: str) -> torch.Tensor | None:
    """The weight (out, in) as it is stored; None where there is none."""
    key = f"{name}.weight"
    return tensors.get(key)
