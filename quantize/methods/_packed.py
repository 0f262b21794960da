"""What the methods share whose libraries keep packed integers in memory (GPTQModel, AutoAWQ, AutoGPTQ).

Their Linears compute in half precision, by kernels that not every device has, so that their own forward pass is no
witness. The witness is given a plain model instead: the baseline's architecture, whose Linears hold the weights that
the library's own modules dequantize to, and whose other tensors are the library's.

Their formats store scales in float16. Everything unquantized is rounded to the checkpoint's dtype before anybody looks
at it, and saved in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.handed import QuantizeJob
from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["dtypes", "examples", "finish", "packing_problems", "settle_and_witness", "weight_only_problems"]

#: What belongs to a packed Linear, by the last part of its name.
_LEAVES = ("qweight", "qzeros", "scales", "g_idx")


def weight_only_problems(method: str, scheme: Scheme, bits: tuple[int, ...]) -> list[str]:
    """One sentence where `method` is given rounded activations, or a width that its format has no packing for."""
    if scheme.activation_bits is not None:
        return [f"{method} rounds weights only and {scheme.name} rounds activations too. Take W4A16."]
    if scheme.weight_bits not in bits:
        known = " or ".join(map(str, bits))
        return [f"{method} packs weights of {known} bits and {scheme.name} has {scheme.weight_bits}. Take W4A16."]
    return []


def packing_problems(method: str, facts: ModelFacts, *, inputs: int, outputs: int) -> list[str]:
    """One sentence where a Linear's channels do not fill the words that they are packed into."""
    misfits = sorted(
        shape
        for shape in facts.linears or {}
        if int(shape.partition("x")[0]) % outputs or int(shape.partition("x")[2]) % inputs
    )
    if not misfits:
        return []
    needed = f"output channels are a multiple of {outputs} and input channels of {inputs}"
    return [
        f"{method} needs Linears whose {needed}: not {', '.join(misfits)} (out x in). Take method gptq, awq or rtn."
    ]


def dtypes(job: QuantizeJob) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the arithmetic (float32 on CPUs, the checkpoint's on GPUs) and that of the checkpoint."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.checkpoint)
    named: Any = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    saved: torch.dtype = getattr(torch, named) if isinstance(named, str) else named  # older releases leave the name
    return (torch.float32 if job.device == "cpu" else saved), saved


def examples(job: QuantizeJob) -> list[list[int]]:
    """The job's token rows as lists of ids."""
    if job.tokens is None:
        raise ValueError("a calibrated method was given no tokens")
    return [row.tolist() for row in job.tokens]


def settle_and_witness(
    job: QuantizeJob, model: Any, dequantize: Callable[[Any], torch.Tensor], saved_dtype: torch.dtype
) -> None:
    """Round what is not packed to `saved_dtype`, let the witness see the reference, and cast for saving.

    `dequantize` turns a packed Linear of `model` into its weight (out, in).
    """
    packed = {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}
    if not packed:
        raise QuantizeError("the library left every Linear as it was.", where=str(job.checkpoint))
    others = [
        tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and not _of_packed(name, packed)
    ]
    for tensor in others:
        tensor.data = tensor.data.to(saved_dtype).to(tensor.dtype)
    job.witness(_reference(job, model, packed, dequantize))
    for tensor in others:
        tensor.data = tensor.data.to(saved_dtype)


def _of_packed(name: str, packed: dict[str, Any]) -> bool:
    owner, _, leaf = name.rpartition(".")
    return owner in packed and leaf in _LEAVES


def _reference(job: QuantizeJob, model: Any, packed: dict[str, Any], dequantize: Callable[[Any], torch.Tensor]) -> Any:
    """The baseline's model with `model`'s tensors in it, in the dtype of the arithmetic on the job's device."""
    import torch
    from transformers import AutoModelForCausalLM

    arithmetic, _ = dtypes(job)
    plain = AutoModelForCausalLM.from_pretrained(job.checkpoint, torch_dtype=arithmetic).eval()
    ours = plain.state_dict()
    theirs = {name: tensor for name, tensor in model.state_dict().items() if not _of_packed(name, packed)}
    with torch.inference_mode():  # the libraries pack in it, and what was made in it stays there
        theirs |= {f"{name}.weight": dequantize(module) for name, module in packed.items()}
        # AutoGPTQ gives every Linear a bias, of zeros where there was none.
        unknown = sorted(n for n in set(theirs) - set(ours) if not (n.endswith(".bias") and not theirs[n].any()))
        missing = sorted(name for name in set(ours) - set(theirs) if not _is_tied(name, plain, theirs))
        if unknown or missing:
            raise QuantizeError(
                f"the library changed the architecture of {type(plain).__name__}: {(unknown + missing)[0]} has no "
                "counterpart, so that nothing can be compared with the quantized model.",
                fix="Take method gptq or awq.",
            )
        for name, tensor in ours.items():
            if name in theirs:
                tensor.copy_(theirs[name])
    return plain.to(job.device)


def _is_tied(name: str, plain: Any, theirs: dict[str, torch.Tensor]) -> bool:
    """True where `name` is the same tensor as one that `theirs` names."""
    tensors = dict(plain.named_parameters(remove_duplicate=False))
    return name in tensors and any(tensors.get(other) is tensors[name] for other in theirs)


def finish(job: QuantizeJob, keep: Callable[[Path], bool], changes: Callable[[dict[str, Any]], None]) -> None:
    """Remove what the library left beside the checkpoint, and put the baseline's config and text files there.

    `keep` says which other files stay; `changes` is given the quantization settings for config.json, to amend them.
    """
    from quantize.methods._text_files import copy_text_files

    for path in sorted(job.out.iterdir()):
        weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
        if path.is_file() and not weights and path.name != "config.json" and not keep(path):
            path.unlink()
    place = job.out / "config.json"
    settings = json.loads(place.read_text(encoding="utf-8"))["quantization_config"]
    changes(settings)
    # Not the library's config: releases of other times write other names, and only the weights were changed.
    config = json.loads((job.checkpoint / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = settings
    place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_text_files(job.checkpoint, job.out)


def words(bits: int) -> int:
    """How many channels of `bits` bits fill whole 32-bit words."""
    return 32 // math.gcd(32, bits)
