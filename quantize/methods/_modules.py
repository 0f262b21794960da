"""The Linears of a checkpoint's model, by their full names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantize.loading import auto_class

__all__ = ["linears", "skeleton"]


def skeleton(checkpoint: Path) -> Any:
    """The checkpoint's model without weights (on the meta device): what modules it has."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        return auto_class(checkpoint).from_config(config)


def linears(model: Any) -> list[str]:
    """Full names of all Linear modules, in the model's order."""
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
