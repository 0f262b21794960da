"""Columns of tensors on disk, a row for each scored position, in files of so many rows as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ShardWriter", "Shards", "blocks"]


def blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, after the last) of pieces of `size`, and of what is left."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


class ShardWriter:
    """Writes files of `size` rows into `out` as rows come, so that memory does not grow with their number."""

    def __init__(self, out: Path, size: int) -> None:
        self._out, self._size = out, size
        self._held: list[dict[str, torch.Tensor]] = []
        self._rows = 0
        self._counts: list[int] = []

    @property
    def started(self) -> bool:
        """True once there are rows."""
        return bool(self._held or self._counts)

    def add(self, columns: dict[str, torch.Tensor]) -> None:
        """Keep rows: tensors of one length on any device, in the dtypes that they have."""
        length = len(next(iter(columns.values())))
        for start in range(0, length, self._size):
            piece = {name: column[start : start + self._size].cpu() for name, column in columns.items()}
            self._held.append(piece)
            self._rows += len(next(iter(piece.values())))
            if self._rows >= self._size:
                self._write(self._size)

    def close(self) -> list[int]:
        """Write what is left; returns the rows of every file."""
        if self._rows:
            self._write(self._rows)
        return self._counts

    def _write(self, rows: int) -> None:
        import torch
        from safetensors.torch import save_file

        whole = {name: torch.cat([piece[name] for piece in self._held]) for name in self._held[0]}
        save_file(
            {name: column[:rows].contiguous() for name, column in whole.items()}, _path(self._out, len(self._counts))
        )
        self._counts.append(rows)
        # A copy: a view would keep the whole shard in memory.
        self._held = [{name: column[rows:].clone() for name, column in whole.items()}]
        self._rows -= rows


class Shards:
    """Reads them again: `counts` are the rows of every file."""

    def __init__(self, artifact: Path, counts: list[int]) -> None:
        self._artifact, self._counts = artifact, counts

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a column, of all files taken together."""
        import torch
        from safetensors import safe_open

        parts, offset = [], 0
        for number, rows in enumerate(self._counts):
            first, last = max(start - offset, 0), min(stop - offset, rows)
            if first < last:
                with safe_open(_path(self._artifact, number), framework="pt") as shard:
                    parts.append(shard.get_slice(name)[first:last])
            offset += rows
        return torch.cat(parts)

    def same_tokens(self, tokens: torch.Tensor, size: int) -> bool:
        """True where the column `tokens` holds just these; `size` of them are compared at a time."""
        import torch

        if len(tokens) != sum(self._counts):
            return False
        return all(
            torch.equal(self.read("tokens", start, stop).long(), tokens[start:stop])
            for start, stop in blocks(len(tokens), size)
        )


def _path(artifact: Path, number: int) -> Path:
    return artifact / f"reference-{number:05}.safetensors"
