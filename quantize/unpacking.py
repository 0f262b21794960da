"""Packed weights of compressed-tensors, expanded in the dtype of the arithmetic.

compressed-tensors unpacks NVFP4 and MXFP4 weights in bfloat16 whatever the model's dtype. A model in float32 or float16
then stops at its first Linear ("expected m1 and m2 to have the same dtype"), and the products of weight and scale are
rounded to 8 bits, so that the same bytes would be other numbers than in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["expand", "unpacked_in"]


def expand(model: Any, dtype: torch.dtype | None = None) -> None:
    """Expand now what transformers would let compressed-tensors expand with the first forward pass; in place.

    And bring into the model's dtype, or the one that it was asked to be in, what transformers left in the file's: all
    whose names it changes (GPT-NeoX's head; nearly everything of a model that sees).
    """
    if not hasattr(model, "ct_decompress_hook"):
        return
    wanted = dtype or model.dtype
    _bring(model, wanted)  # scales too: a product of theirs is rounded to their own dtype
    with unpacked_in(str(wanted).removeprefix("torch.")):
        model.hf_quantizer.compressor.decompress_model(model)
    _bring(model, wanted)


def _bring(model: Any, dtype: torch.dtype) -> None:
    """Bring parameters of half precision into `dtype`, in place."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype in {torch.bfloat16, torch.float16} and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def unpacked_in(dtype: str) -> Iterator[None]:
    """Let compressed-tensors unpack 4-bit floats into `dtype`."""
    import torch
    from compressed_tensors.compressors.nvfp4 import base

    original = base.unpack_fp4_from_uint8

    def unpack(packed: Any, rows: int, columns: int, *_: Any) -> Any:
        return original(packed, rows, columns, getattr(torch, dtype))

    base.unpack_fp4_from_uint8 = unpack
    try:
        yield
    finally:
        base.unpack_fp4_from_uint8 = original
