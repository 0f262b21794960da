"""What a GGUF file really holds: llama.cpp mixes types within one file, and falls back where shapes do not fit."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

__all__ = ["gguf_contents"]

_LAYER = re.compile(r"^blk\.\d+\.")


def gguf_contents(path: Path) -> dict[str, Any]:
    """Actual types, as counts and by tensor (a layer's number is `*`), parameters, and bits per weight.

    Bits per weight are all tensors' stored bits over all their elements, metadata not counted: what llama.cpp prints as
    BPW. `matrix_bits_per_weight` are those of the matrices alone.
    """
    from gguf import GGUFReader

    counts: Counter[str] = Counter()
    by_tensor: dict[str, Counter[str]] = defaultdict(Counter)
    elements, size, matrix_elements, matrix_size = 0, 0, 0, 0
    for tensor in GGUFReader(path).tensors:
        kind = tensor.tensor_type.name
        by_tensor[_LAYER.sub("blk.*.", tensor.name)][kind] += 1
        elements += int(tensor.n_elements)
        size += int(tensor.n_bytes)
        if len(tensor.shape) > 1:
            counts[kind] += 1
            matrix_elements += int(tensor.n_elements)
            matrix_size += int(tensor.n_bytes)
    return {
        "types": dict(sorted(counts.items())),
        "tensors": {name: dict(sorted(kinds.items())) for name, kinds in sorted(by_tensor.items())},
        "parameters": elements,
        "bits_per_weight": round(8 * size / elements, 4),
        "matrix_bits_per_weight": round(8 * matrix_size / matrix_elements, 4),
    }
