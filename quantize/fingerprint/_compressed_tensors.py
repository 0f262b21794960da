"""compressed-tensors: integers or FP8 with scales, and the packing that each module's scheme names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantize.fingerprint._tensors import Tensors
from quantize.unpacking import unpacked_in

if TYPE_CHECKING:
    import torch

__all__ = ["in_memory", "read"]


def in_memory(model: Any) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Name, layout and rounded weight (out, in) of every Linear that compressed-tensors quantizes.

    The package is imported only where there are such modules: not every environment has it.
    """
    for name, module in model.named_modules():
        scheme: Any = getattr(module, "quantization_scheme", None)
        if getattr(scheme, "weights", None) is None:
            continue
        from compressed_tensors.compressors.format import infer_module_format
        from compressed_tensors.quantization import forward_quantize

        # Of a checkpoint that was loaded it is named; of one that is made it is not yet.
        named = getattr(scheme, "format", None) or infer_module_format(type(module), scheme)
        layout = {
            "kind": "compressed-tensors",
            "scheme": scheme.model_dump(mode="json"),
            "packing": str(getattr(named, "value", named)),
        }
        yield name, layout, forward_quantize(module, module.weight.data, "weight", scheme.weights)


def read(tensors: Tensors, name: str, layout: dict[str, Any], dtype: str) -> torch.Tensor | None:
    """The weight (out, in), unpacked and multiplied out in `dtype`; None where there is none."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    state = {leaf: tensors[key] for leaf, key in tensors.of(name).items()}
    if "weight_scale" not in state:
        return None
    if state["weight_scale"].dtype != torch.uint8:  # the exponents of powers of two stay what they are
        state["weight_scale"] = state["weight_scale"].to(getattr(torch, dtype))
    compressor = BaseCompressor.get_value_from_registry(layout["packing"])
    with unpacked_in(dtype):
        found = compressor.decompress(state, QuantizationScheme.model_validate(layout["scheme"]))
    weight: torch.Tensor = found["weight"]
    return weight
