"""Calibration rows as a stage keeps them, and what it tells of them.

`tokens.safetensors` holds `input_ids`, int64: (samples, tokens) where all rows are of one length, else all rows end to
end, with `lengths` (samples) beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.handed import Drawn

if TYPE_CHECKING:
    import torch

__all__ = ["TOKENS", "read_rows", "save_rows", "told"]

TOKENS = "tokens.safetensors"


def save_rows(rows: Sequence[torch.Tensor], folder: Path) -> None:
    """Write rows of int64 ids into `folder`."""
    import torch
    from safetensors.torch import save_file

    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:
        save_file({"input_ids": torch.stack(list(rows)).contiguous()}, folder / TOKENS)
    else:
        save_file({"input_ids": torch.cat(list(rows)), "lengths": torch.tensor(lengths)}, folder / TOKENS)


def read_rows(folder: Path) -> tuple[torch.Tensor, ...]:
    """The rows of int64 ids that were written into `folder`."""
    from safetensors.torch import load_file

    kept = load_file(folder / TOKENS)
    ids = kept["input_ids"]
    return tuple(ids.split(kept["lengths"].tolist()) if "lengths" in kept else ids)


def told(drawn: Drawn) -> dict[str, Any]:
    """Counts, each row's sha256, and the calibrator's own facts. `tokens` are the longest row's."""
    lengths = [len(row) for row in drawn.rows]
    rows = [sha256(row.numpy().tobytes()).hexdigest() for row in drawn.rows]
    return {
        "samples": len(rows),
        "tokens": max(lengths),
        "shortest": min(lengths),
        "total_tokens": sum(lengths),
        "distinct": len(set(rows)),
        "rows": rows,
        **drawn.facts,
    }
