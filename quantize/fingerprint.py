"""A fingerprint of every quantized Linear: are the numbers on disk the ones that the method found.

Answers alone cannot tell: where activations are rounded to 8 bits, another correct kernel moves a distribution as far
as a 5 % error in one layer's scale does (see `proof.LIMITS`). A weight, however, is the same number on every machine.
So each dequantized weight matrix W (out, in) is projected on one fixed random vector, W·r, in memory before it is saved
and again from the checkpoint's tensors: a wrong scale, a swapped layer or a damaged packing changes the projection by
what it changes the weight, and no kernel has a say in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["FINGERPRINT_LIMIT", "in_memory", "on_disk", "schemes"]

#: Limit for ‖W·r on disk - W·r in memory‖ / ‖W·r in memory‖ of a module. An honest save gives 0: the integers times a
#: scale are the same float in both places. 5 % on all of a module's scales gives 0.05, on one group of a 4096 x 4096
#: Linear with groups of 64 about 1e-4.
FINGERPRINT_LIMIT = 1e-5


def in_memory(model: Any) -> dict[str, torch.Tensor]:
    """Module name -> float32 W·r (out) for every Linear that compressed-tensors quantizes; empty for other models."""
    import torch
    from compressed_tensors.quantization import forward_quantize

    found = {}
    with torch.no_grad():
        for name, module in _quantized(model):
            weight = forward_quantize(module, module.weight.data, "weight", module.quantization_scheme.weights)
            found[name] = _project(weight)
    return found


def schemes(model: Any) -> dict[str, Any]:
    """Module name -> {scheme, format}, plain data: what `on_disk` needs to read the tensors."""
    from compressed_tensors.compressors.format import infer_module_format

    return {
        name: {
            "scheme": module.quantization_scheme.model_dump(mode="json"),
            "format": infer_module_format(type(module), module.quantization_scheme).value,
        }
        for name, module in _quantized(model)
    }


def on_disk(checkpoint: Path, recorded_schemes: dict[str, Any], dtype: str) -> dict[str, torch.Tensor]:
    """Module name -> float32 W·r (out), dequantized from the safetensors of `checkpoint`, one module at a time.

    `dtype` is that of the arithmetic in memory: integers times scales are rounded to it. Modules without tensors of
    their name are left out.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors import safe_open

    found = {}
    wanted = {
        name: (
            QuantizationScheme.model_validate(entry["scheme"]),
            BaseCompressor.get_value_from_registry(entry["format"]),
        )
        for name, entry in recorded_schemes.items()
    }
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                module, _, tensor = key.rpartition(".")
                if module in wanted:
                    tensors.setdefault(module, {})[tensor] = path
    for name, places in tensors.items():
        if "weight_scale" not in places:
            continue
        scheme, compressor = wanted[name]
        state = {}
        for tensor, path in places.items():
            with safe_open(path, "pt") as file:
                state[tensor] = file.get_tensor(f"{name}.{tensor}")
        state["weight_scale"] = state["weight_scale"].to(getattr(torch, dtype))
        found[name] = _project(compressor.decompress(state, scheme)["weight"])
    return found


def _quantized(model: Any) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(getattr(module, "quantization_scheme", None), "weights", None) is not None
    ]


def _project(weight: torch.Tensor) -> torch.Tensor:
    import torch

    columns = weight.shape[-1]
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    return (weight.double().cpu() @ vector).float()
