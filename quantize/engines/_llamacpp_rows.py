"""Logits of many windows, made as they are looked at.

The whole vocabulary's logits of a few windows fit in memory; those of a text do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from quantize.engines._llamacpp_client import Client

__all__ = ["LazyLogits"]


class LazyLogits:
    """Every position of `windows` (ids) has a number, in their order. Looking in order reads each window once."""

    def __init__(self, client: Client, windows: Sequence[list[int]]) -> None:
        self._client, self._windows = client, windows
        self._starts = torch.tensor([0, *accumulate(map(len, windows))])
        self._held: dict[int, torch.Tensor] = {}

    def numbers(self) -> list[torch.Tensor]:
        """Int64 (tokens, 1) for each window."""
        return [torch.arange(start, stop).unsqueeze(1) for start, stop in pairwise(self._starts.tolist())]

    def logits(self, numbers: torch.Tensor, start: int, stop: int | None) -> torch.Tensor:
        """Float32 (positions, columns) at positions whose `numbers` (positions, 1) ascend."""
        flat = numbers[:, 0].contiguous()
        owners = torch.searchsorted(self._starts, flat, right=True) - 1
        wanted = sorted(set(owners.tolist()))
        self._hold(wanted)
        own = [(number, flat[owners == number] - self._starts[number]) for number in wanted]
        return torch.cat([self._held[number][places, start:stop] for number, places in own])

    def _hold(self, wanted: list[int]) -> None:
        """Keep the logits of these windows, and no others."""
        self._held = {number: block for number, block in self._held.items() if number in wanted}
        missing = [number for number in wanted if number not in self._held]
        if missing:
            blocks = self._client.read([self._windows[number] for number in missing])
            self._held.update(zip(missing, blocks, strict=True))
