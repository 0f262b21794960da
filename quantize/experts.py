"""Mixtures of experts, each expert's Linears modules of their own.

transformers packs a layer's experts into one tensor. What is packed cannot be quantized, and a quantized checkpoint
that is loaded into it is another model: experts are multiplied out in bfloat16, their activations are not rounded, and
4-bit floats do not load at all. Methods and the engine load such models with llm-compressor's experts instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from quantize.errors import QuantizeError

__all__ = ["Routed", "keep_names", "linear_experts", "quantized_by_llmcompressor"]


def quantized_by_llmcompressor(checkpoint: Path) -> bool:
    """Whether the checkpoint says that it holds compressed tensors."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors"


class Routed:
    """Counts, while it is open, which experts a model with such experts sends its tokens to."""

    def __init__(self, model: Any) -> None:
        from llmcompressor.modeling.moe.linearize import get_linearized_moes

        self._modules = get_linearized_moes(model)
        self._counts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._hooks = [
            module.register_forward_pre_hook(partial(self._count, name, module.num_experts))
            for name, module in self._modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, name: str, experts: int, _: Any, arguments: tuple[Any, ...]) -> None:
        chosen = arguments[1].flatten().cpu()
        self._counts[name] = self._counts.get(name, 0) + chosen.bincount(minlength=experts)

    def tokens(self) -> dict[str, dict[str, int]]:
        """By layer and expert, how often it was chosen; empty for models without experts."""
        return {
            name: {f"{name}.{number}": int(count) for number, count in enumerate(counts)}
            for name, counts in self._counts.items()
        }


@contextmanager
def linear_experts(checkpoint: Path) -> Iterator[None]:
    """While it lasts, transformers builds and loads the checkpoint's architecture with Linears for experts.

    As llm-compressor's `load_quantizable_moe` does. That one, with transformers 5.17, stops where torchvision is not
    installed: `monkey_patching.apply_patches` asks every lazy module for its name. Here one class in one module is
    replaced, and everything is put back.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    model_type = config.model_type
    # llm-compressor is imported for seconds, and most models have no experts
    found = _mappings(model_type) if any("expert" in key for key in config.to_dict()) else None
    if found is None:
        yield
        return
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    packed, load, _ = found
    module, before = sys.modules[packed.__module__], get_checkpoint_conversion_mapping(model_type)
    setattr(module, packed.__name__, _builder(packed, LinearExperts2D.get_linear_experts_cls(packed)))
    register_checkpoint_conversion_mapping(model_type, load, overwrite=True)
    try:
        yield
    finally:
        setattr(module, packed.__name__, packed)
        register_checkpoint_conversion_mapping(model_type, before, overwrite=True)


def _builder(packed: type, linear: Any) -> type:
    """What builds `linear` where `packed` was called, while `isinstance` still means `packed`, which is initialised."""

    class Builder(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return linear(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, packed)

    return Builder(packed.__name__, (), {})


def keep_names(model: Any) -> None:
    """Let a model with such experts be saved under the names that checkpoints of its kind have.

    Raises QuantizeError where its experts are packed all the same: quantizing the rest alone is not what was asked for.
    """
    from llmcompressor.modeling.moe.conversion_mappings import (
        ARCH_TO_IMPORT_PATHS,
        has_linearize_load_mappings,
        set_save_conversion_mapping,
    )
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

    packed = get_non_linearized_moes(model)
    if packed:
        raise QuantizeError(
            f"llm-compressor has no names for the experts of a {model.config.model_type}, which {packed[0][0]} holds "
            "in one tensor: they would stay as they are.",
            fix=f"It has them for {', '.join(filter(has_linearize_load_mappings, ARCH_TO_IMPORT_PATHS))}.",
        )
    found = _mappings(model.config.model_type)
    if found is not None:
        set_save_conversion_mapping(model, found[2])


def _mappings(model_type: str) -> tuple[type, list[Any], list[Any]] | None:
    """The packed class of an architecture, and how its tensors are named on loading and saving; None for others."""
    from llmcompressor.modeling.moe.conversion_mappings import (
        get_linearize_load_mappings,
        has_linearize_load_mappings,
    )

    if not has_linearize_load_mappings(model_type):
        return None
    packed, load, save = get_linearize_load_mappings(model_type)
    return packed, load, save
