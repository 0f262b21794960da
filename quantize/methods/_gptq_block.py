"""GPTQ's column loop on a CPU, told to llm-compressor through its own table of backends.

llm-compressor 0.14 rounds a block of columns one after the other: its GPUs have a Triton kernel for that, everything
else an eager loop which spends its time on some forty small calls a column, over columns that lie apart in memory. Here
the block is turned once, so that a column is one stretch of memory, and a column costs nine calls. They are the same
operations on the same float32 numbers in the same order, so every bit is the eager loop's (a test compares them), and
nothing in a key changes. `tests/bench/gptq.py` measures both.

Registered where integers are rounded in float32 on a CPU; llm-compressor's own loop stays for everything else.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["register"]

_PRIORITY = 10


@cache
def register() -> None:
    """Offer the loop to llm-compressor, once a process."""
    from compressed_tensors.utils.impl_backend import ImplBackend
    from llmcompressor.modifiers.gptq import gptq_quantize  # noqa: F401 (its entry stands in the table first)

    ImplBackend.register("gptq_block_update", _usable, _PRIORITY)(quantize_gptq_block_on_cpu)


def _usable(work: torch.Tensor, *_: Any, scale: torch.Tensor, quant_args: Any, **__: Any) -> bool:
    """Integers in float32 on a CPU."""
    import torch

    numbers = work.dtype == scale.dtype == torch.float32
    return work.device.type == "cpu" and work.dim() == 3 and numbers and quant_args.type == "int"


def quantize_gptq_block_on_cpu(  # a backend's name stands in the library's table
    work: torch.Tensor,
    factor: torch.Tensor,
    quantized: torch.Tensor,
    errors: torch.Tensor,
    losses: torch.Tensor,
    *,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    global_scale: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    quant_args: Any,
    i1: int,
) -> None:
    """Round a block of columns; see `llmcompressor.modifiers.gptq.gptq_quantize.gptq_block_update`.

    `work` (batch, rows, columns) holds the weights and `factor` (batch, columns, columns) the block of the Hessian's
    inverse factor. `quantized`, `errors` and `losses`, of the shape of `work`, are written.
    """
    import torch
    from compressed_tensors.quantization.utils import calculate_range
    from llmcompressor.modifiers.gptq.helpers import column_scale_window

    rows, columns = work.shape[-2:]
    scales, zeros = column_scale_window(
        scale, zero_point, global_scale, g_idx, quant_args, num_rows=rows, i1=i1, i2=i1 + columns
    )
    low, high = (float(end) for end in calculate_range(quant_args, work.device))
    turned, scales = _turned(work), _turned(scales)
    zeros = None if zeros is None else _turned(zeros)
    result, error = torch.empty_like(turned), torch.empty_like(turned)
    update = torch.empty_like(turned)
    for column in range(columns):
        weight, step, rounded = turned[:, column], scales[:, column], result[:, column]
        torch.div(weight, step, out=rounded)
        if zeros is not None:
            rounded += zeros[:, column]
        rounded.clamp_(low, high).round_()
        if zeros is not None:
            rounded -= zeros[:, column]
        rounded *= step
        torch.sub(weight, rounded, out=error[:, column])
        error[:, column] /= factor[:, column, column, None]
        rest = slice(column + 1, columns)
        torch.mul(factor[:, column, rest, None], error[:, column, None], out=update[:, rest])
        turned[:, rest] -= update[:, rest]
    quantized.copy_(result.transpose(1, 2))
    errors.copy_(error.transpose(1, 2))
    torch.square(errors, out=losses)


def _turned(block: torch.Tensor) -> torch.Tensor:
    """(batch, columns, rows), each column one stretch of memory."""
    return block.transpose(1, 2).contiguous()
