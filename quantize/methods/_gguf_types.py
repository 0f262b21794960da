"""llama.cpp's types: which need an importance matrix, which fit a row of a given length, which a tensor is to have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.gguf_file import gguf_reader, read_gguf
from quantize.scheme import Scheme

__all__ = ["NEED_IMPORTANCE", "UNUSED_IMPORTANCE", "TensorType", "check_types", "misfits", "tensor_types"]

#: Types of a single tensor.
TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K",
    "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip

#: File and tensor types that llama.cpp refuses to make without one.
NEED_IMPORTANCE = frozenset({"IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "IQ3_XXS"})
#: Types whose rounding does not look at it.
UNUSED_IMPORTANCE = frozenset({"F32", "F16", "BF16", "Q8_0"})

_LEGACY = {"Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"}
_SMALL, _LARGE = 32, 256
#: What takes the place of a type with blocks of 256, by the beginning of the scheme's name.
_INSTEAD = {
    "Q6": "Q8_0",
    "Q5": "Q5_1 or Q8_0",
    "Q4": "Q5_0 or Q8_0",
    "Q3": "Q4_0, Q5_0, Q5_1 or Q8_0",
    "Q2": "Q4_0 or Q8_0",
    "IQ": "IQ4_NL, Q4_0, Q5_0 or Q8_0",
}


def misfits(scheme: Scheme, facts: ModelFacts) -> list[str]:
    """One sentence where the scheme's blocks do not divide rows of the model; none where its shapes are unknown."""
    if scheme.name in ("F32", "F16", "BF16") or not facts.linears:
        return []
    block = _SMALL if scheme.name in _LEGACY else _LARGE
    columns = {shape: int(shape.partition("x")[2]) for shape in facts.linears}
    found = sorted(shape for shape, width in columns.items() if width % block)
    if not found:
        return []
    instead = "F16" if block == _SMALL else _INSTEAD[scheme.name[:2]]
    if any(columns[shape] % _SMALL for shape in found):
        instead = "F16 where 32 does not divide them either, else " + instead if block == _LARGE else "F16"
    share = sum(facts.linears[shape] for shape in found) / sum(facts.linears.values())
    return [
        (
            f"{scheme.name} stores blocks of {block} weights, which do not fit the rows of Linear {', '.join(found)} "
            f"(out x in; {share:.0%} of all Linears): llama.cpp stores those as {instead}, so that the file has more "
            "bits per weight than the name says."
        )
    ]


def tensor_types(patterns: Mapping[str, str], full: Path) -> dict[str, str]:
    """The type of every matrix of `full` whose name a pattern is found in; no order among patterns is meant.

    Raises QuantizeError for a pattern that fits nothing, and where two ask for different types of one tensor.
    """
    matrices = [name for name, shape in read_gguf(full).shapes.items() if len(shape) > 1]
    types: dict[str, str] = {}
    for pattern, kind in patterns.items():
        fitting = [name for name in matrices if re.search(pattern, name)]
        if not fitting:
            raise QuantizeError(
                f"tensor_types: {pattern!r} fits no matrix of this model, whose names are like {matrices[-1]}.",
                fix="Correct the pattern.",
            )
        for name in fitting:
            if types.setdefault(name, kind) != kind:
                raise QuantizeError(
                    f"tensor_types: {name} is to be {types[name]} by one pattern and {kind} by {pattern!r}.",
                    fix="Make the patterns exclude each other.",
                )
    return types


def check_types(types: Mapping[str, str], written: Path) -> None:
    """Raises QuantizeError where llama.cpp stored another type than was asked for: its blocks do not fit the rows."""
    for tensor in gguf_reader(written).tensors:
        asked = types.get(tensor.name, tensor.tensor_type.name)
        if tensor.tensor_type.name != asked:
            raise QuantizeError(
                f"{tensor.name} is to be {asked} and llama.cpp stored {tensor.tensor_type.name}: rows of "
                f"{int(tensor.shape[0])} weights do not fit, or the scheme leaves no choice.",
                fix="Name a type that fits in tensor_types, or none.",
            )
