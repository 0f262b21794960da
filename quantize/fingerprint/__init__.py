"""A fingerprint of every quantized weight: are the numbers on disk the ones that the method found.

Answers alone cannot tell: where activations are rounded to 8 bits, another correct kernel moves a distribution as far
as a 5 % error in one layer's scale does (see `proof.limits`). A weight, however, is the same number on every machine.
So each dequantized weight matrix W (out, in) is projected on one fixed random vector, W·r, in memory before it is saved
and again from the checkpoint's bytes: a wrong scale, a swapped layer or a damaged packing changes the projection by
what it changes the weight, and no kernel has a say in it.

One module a format. In memory a weight is what its library says; on disk it is read by decoders of our own, which share
nothing with the engine that will serve it (compressed-tensors and GGUF: by the decoders of the format's own package,
which no engine of ours calls). A library that cannot compute on its packed weights gives the witness a plain model
instead, whose Linears hold the dequantized weights: kind `plain`, compared with whatever the checkpoint holds there.
GGUF files are written from GGUF files and no packed weight is ever in memory: what is recorded is the file, just made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.fingerprint import _awq, _bitsandbytes, _compressed_tensors, _gguf, _gptq, _plain
from quantize.fingerprint._tensors import Tensors
from quantize.loading import stored_names

if TYPE_CHECKING:
    import torch

__all__ = ["LIMITS", "Tensors", "in_memory", "of_gguf", "on_disk", "settings", "weight"]

#: Module name -> how its weight is stored: `kind` and what that kind's reader needs, plain data.
Layouts = dict[str, dict[str, Any]]
Projections = dict[str, "torch.Tensor"]

#: Limit for ‖W·r on disk - W·r in memory‖ / ‖W·r in memory‖ of a module, by kind. An honest save gives 0 where the
#: product of integer and scale is rounded alike in both places. 5 % on all of a module's scales gives 0.05, on one
#: group of a 4096 x 4096 Linear with groups of 64 about 1e-4. Libraries that dequantize in half precision (gptq, awq)
#: round their products to 11 bits: 1.2e-4 to 2.7e-4 were seen.
LIMITS = {
    "compressed-tensors": 1e-5,
    "bitsandbytes": 1e-5,
    "gguf": 1e-6,
    "gptq": 1e-3,
    "awq": 1e-3,
    "plain": 1e-3,
}


def in_memory(model: Any) -> tuple[Projections, Layouts]:
    """Module name -> float32 W·r (out), and how each is stored; of the quantized Linears of a transformers model."""
    import torch

    from quantize.fingerprint._tensors import project

    projections: Projections = {}
    layouts: Layouts = {}
    with torch.no_grad():
        for source in (_compressed_tensors, _bitsandbytes, _gptq, _awq, _plain):
            if layouts and source is _plain:  # only for models without a quantized module
                break
            for name, layout, weight in source.in_memory(model):
                projections[name] = project(weight)
                layouts[name] = layout
    for name, stored in stored_names(model, list(layouts)).items():
        layouts[name]["stored"] = stored
    return projections, layouts


def of_gguf(path: Path) -> tuple[Projections, Layouts]:
    """Tensor name -> float32 W·r (rows), and its type, of every matrix in a GGUF file."""
    found = _gguf.on_disk(path)
    return {name: projection for name, (_, projection) in found.items()}, {
        name: {"kind": "gguf", "type": kind} for name, (kind, _) in found.items()
    }


def on_disk(checkpoint: Path, layouts: Layouts, dtype: str) -> Projections:
    """Module name -> float32 W·r (out) from the files of `checkpoint`, one module at a time.

    `dtype` is that of the arithmetic in memory: where products are rounded to it, they are here. Modules without
    tensors of their name are left out.
    """
    from quantize.fingerprint._tensors import project

    gguf = checkpoint / "model.gguf"
    if gguf.is_file():
        return {name: projection for name, (_, projection) in _gguf.on_disk(gguf).items() if name in layouts}
    tensors = Tensors(checkpoint)
    own = settings(checkpoint)
    found = {}
    for name, layout in layouts.items():
        read = weight(tensors, layout.get("stored", name), {**own, **layout}, dtype)
        if read is not None:
            found[name] = project(read)
    return found


def weight(tensors: Tensors, name: str, layout: dict[str, Any], dtype: str) -> torch.Tensor | None:
    """The weight (out, in) of a module; None where the checkpoint has none.

    One that was plain in memory is packed as the checkpoint's `quant_method` says, or not packed at all.
    """
    kind = layout["kind"] if layout["kind"] != "plain" else layout.get("quant_method")
    match kind:
        case "compressed-tensors":
            found = _compressed_tensors.read(tensors, name, layout, dtype)
        case "bitsandbytes":
            found = _bitsandbytes.read(tensors, name)
        case "gptq":
            found = _gptq.read(tensors, name, layout)
        case "awq":
            found = _awq.read(tensors, name)
        case _:
            found = None
    return _plain.read(tensors, name) if found is None and layout["kind"] == "plain" else found


def settings(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's own quantization settings, from config.json."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] = config.get("quantization_config") or {}
    return found
