"""Which class of transformers a checkpoint's model is loaded as, and which part of it is language.

A model that sees or hears too is loaded whole and asked in text alone. Its language part is what methods work on; what
is around that (towers, projectors) is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantize.errors import QuantizeError

__all__ = ["auto_class", "outside_language", "stored_names"]


def auto_class(checkpoint: Path) -> Any:
    """`AutoModelForCausalLM`, or the class for images and text where the architecture has no other.

    Raises QuantizeError for an architecture that transformers does not know, or that does not write text.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    try:
        kind = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False).model_type
    except (ValueError, KeyError) as error:  # it names no architecture, or one that transformers has not
        raise QuantizeError(
            f"transformers does not know this architecture ({str(error).partition('.')[0]}).", where=str(checkpoint)
        ) from error
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise QuantizeError(f"transformers has no {kind} that writes text.", where=str(checkpoint))


def outside_language(model: Any) -> tuple[list[str], list[str]]:
    """The parts of a loaded model that are not language (`model.visual`), and the Linears in them, by full names.

    Both empty for a model that is nothing but language.
    """
    import torch

    if model.config.get_text_config() is model.config:
        return [], []
    names = {id(module): name for name, module in model.named_modules()}
    language = [names[id(part)] for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None]
    parts: list[str] = []
    for name, module in model.named_modules():
        around = any(other == name or other.startswith(f"{name}.") or not name for other in language)
        within = any(name.startswith(f"{other}.") for other in (*language, *parts))
        if not around and not within and any(True for _ in module.parameters()):
            parts.append(name)
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(name == part or name.startswith(f"{part}.") for part in parts)
    ]
    return parts, linears


def stored_names(model: Any, modules: Sequence[str]) -> dict[str, str]:
    """Names of modules -> those their tensors are saved under, where they are others (`visual` for `model.visual`).

    Empty for a model that is nothing but language.
    """
    if model.config.get_text_config() is model.config:
        return {}
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    asked = {f"{name}.weight_scale": torch.tensor(number) for number, name in enumerate(modules)}
    found = {modules[int(number)]: name for name, number in revert_weight_conversion(model, asked).items()}
    named = {module: name.removesuffix(".weight_scale") for module, name in found.items()}
    return {module: name for module, name in named.items() if name != module}
