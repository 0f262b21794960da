"""gguf: every matrix of the file, dequantized by the Python package `gguf`, which shares no code with llama.cpp."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.gguf_file import gguf_reader

if TYPE_CHECKING:
    import torch

__all__ = ["on_disk"]

#: Rows are taken apart so many values at a time, so that no matrix lies in memory as float32 whole.
_VALUES = 1 << 22


def on_disk(path: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Tensor name -> its type and float32 W·r (rows), of every tensor with two dimensions or more.

    The last file is remembered until it changes: a proof asks twice, and taking a large one apart takes minutes.
    """
    state = path.stat()
    return _projections(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _projections(path: Path, _changed: int, _size: int) -> dict[str, tuple[str, torch.Tensor]]:
    import torch
    from gguf.quants import dequantize

    from quantize.fingerprint._tensors import project

    found = {}
    for tensor in gguf_reader(path).tensors:
        if len(tensor.shape) < 2:
            continue
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, _VALUES // int(tensor.shape[0]))  # GGUF names the shortest stride first
        parts = [
            # a copy: the file is mapped, and torch warns of arrays that it could not write to
            project(torch.tensor(dequantize(rows[start : start + step], tensor.tensor_type)))
            for start in range(0, len(rows), step)
        ]
        found[tensor.name] = (tensor.tensor_type.name, torch.cat(parts))
    return found
