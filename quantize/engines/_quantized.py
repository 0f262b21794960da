"""What the kernels of other libraries are told, so that a loaded model computes in the dtype that it says.

On a CPU their fast kernels compute in bfloat16 whatever the model's dtype, or are compiled while the first tokens wait.
There packed weights are dequantized once, as the library dequantizes them, and multiplied by torch: the numbers are the
checkpoint's, the memory and the speed are those of an unquantized model.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.unpacking import expand

if TYPE_CHECKING:
    import torch

__all__ = ["loading_config", "settle"]


def loading_config(checkpoint: Path, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a `gptq` or `awq` checkpoint on a CPU: the plain torch kernel.

    Left to itself GPTQModel takes a kernel that it compiles first, for a minute and a half. GPUs get its own choice.
    """
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored = config.get("quantization_config") or {}
    method = stored.get("quant_method")
    if device != "cpu" or method not in {"gptq", "awq"}:
        return {}
    from transformers import AwqConfig, GPTQConfig

    # transformers reads everything but the kernel from the checkpoint; `bits` is only checked.
    kind, kernel = (GPTQConfig, "torch") if method == "gptq" else (AwqConfig, "torch_awq")
    return {"quantization_config": kind(bits=stored["bits"], backend=kernel)}


def settle(model: Any, dtype: torch.dtype | None = None) -> None:
    """Make the quantized Linears of a loaded model compute in its dtype, or in the one it was asked for; in place."""
    expand(model, dtype)
    if _library(model) == "bitsandbytes":
        _settle_bitsandbytes(model)
    elif model.device.type == "cpu":
        _expand_packed(model)


def _library(model: Any) -> str | None:
    config = getattr(model.config, "quantization_config", None)
    method = getattr(config, "quant_method", None)
    return str(getattr(method, "value", method)) if method is not None else None


def _settle_bitsandbytes(model: Any) -> None:
    """4-bit Linears compute in the dtype that the checkpoint names, or in bfloat16 where a CPU has it."""
    import bitsandbytes

    # 8-bit Linears say once a call that they round their input from float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = model.dtype
            module.support_avx512bf16_for_cpu = False


def _expand_packed(model: Any) -> None:
    """Replace GPTQModel's packed Linears by Linears that hold their dequantized weights in the model's dtype."""
    import torch

    for name, module in list(model.named_modules()):
        if not hasattr(module, "qweight"):
            continue
        weight = _dequantized(module)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
        linear.weight = torch.nn.Parameter(weight.to(model.dtype).contiguous(), requires_grad=False)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(module.bias.to(model.dtype), requires_grad=False)
        model.set_submodule(name, linear)


def _dequantized(module: Any) -> Any:
    """The weight (out, in) of GPTQModel's torch Linears, in the dtype of its scales."""
    if hasattr(module, "g_idx") and hasattr(type(module), "dequantize_weight"):
        return type(module).dequantize_weight(module).T  # the instance's own is compiled on its first call
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).T
