"""Which Linears a recipe's `ignore` leaves alone, by their full names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["linears", "matching", "skeleton"]


def skeleton(checkpoint: Path) -> Any:
    """The checkpoint's model without weights (on the meta device): what modules it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def linears(model: Any) -> list[str]:
    """Full names of all Linear modules, in the model's order."""
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The `names` that a pattern means: a full name, or `re:` and what a name must begin with."""

    def meant(name: str) -> bool:
        return any(
            re.match(pattern.removeprefix("re:"), name) if pattern.startswith("re:") else pattern == name
            for pattern in patterns
        )

    return [name for name in names if meant(name)]
