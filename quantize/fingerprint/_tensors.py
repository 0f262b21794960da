"""The tensors of a checkpoint by name, packed integers taken apart, and the projection of a weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Tensors", "project", "unpack"]


class Tensors:
    """The tensors of a directory's safetensors files; one is read when it is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        from safetensors import safe_open

        self._places: dict[str, Path] = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._places |= dict.fromkeys(file.keys(), path)

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor, or None where there is none of that name."""
        return self[name] if name in self._places else None

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._places[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def of(self, module: str) -> dict[str, str]:
        """The last part of the name -> the name, of the tensors that belong to `module`."""
        return {name[len(module) + 1 :]: name for name in self._places if name.startswith(f"{module}.")}


def project(weight: torch.Tensor) -> torch.Tensor:
    """Float32 W·r (out) of a weight (out, in); r is standard normal and the same for all weights of that width."""
    import torch

    columns = weight.shape[-1]
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    return (weight.double().cpu() @ vector).float()


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Int32 words (n, columns) -> unsigned integers (n · 32 / bits, columns), the lowest bits first.

    Widths that do not divide 32 run on from one word into the next.
    """
    import torch

    rows, columns = words.shape
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        values: torch.Tensor = (words[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)
        return values.reshape(-1, columns)
    single = (words[:, None, :] >> torch.arange(32, dtype=torch.int32)[None, :, None]) & 1
    parts = single.reshape(rows * 32 // bits, bits, columns) << torch.arange(bits, dtype=torch.int32)[None, :, None]
    return parts.sum(1, dtype=torch.int32)
