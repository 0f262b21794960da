"""A GGUF file's weights as a transformers model in memory: the reference that shares no code with llama.cpp.

Dequantizing is exact (each stored block stands for certain float32 values) and is done by the Python package `gguf`.
Nothing is guessed: a weight that the loader could not place, or a rope scaling that it dropped, is an error, because
each would give a model that runs and is subtly another one.
"""

from __future__ import annotations

from typing import Any

from quantize.errors import SourceError
from quantize.gguf_file import GgufFile

__all__ = ["ROPE_FACTORS", "dequantized"]

#: Tensors that are not weights but the factors of a rope scaling.
ROPE_FACTORS = ("rope_freqs", "rope_factors")


def dequantized(source: GgufFile, *, fix: str, config: Any = None) -> Any:
    """A `PreTrainedModel` on CPU in float32, still marked as read from GGUF, so that `save_pretrained` refuses it.

    `config` is the model's own configuration where its checkpoint is at hand; without one it is derived from the file.
    Raises SourceError, with `fix` as the mend, where the file cannot be carried over exactly.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = {"pretrained_model_name_or_path": str(source.path.parent), "gguf_file": source.path.name}
    try:
        if config is None:
            config = AutoConfig.from_pretrained(**place)
            _refuse_lost_rope_scaling(config, source, fix)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise SourceError(
            f"transformers cannot read this GGUF of architecture {source.architecture!r}: {error}",
            where=str(source.path),
            fix=fix,
        ) from error
    # transformers fills a weight that it did not find with random numbers and only warns.
    lost = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lost:
        raise SourceError(
            f"{len(lost)} weights are not in the file as transformers needs them, {lost[0]} first.",
            where=str(source.path),
            fix=fix,
        )
    return loaded


def _refuse_lost_rope_scaling(config: Any, source: GgufFile, fix: str) -> None:
    """The loader reads neither `rope.scaling.*` nor the factor tensors for most architectures, and says nothing."""
    scaled = (source.hyperparameter("rope.scaling.type") or "none") != "none" or any(
        name.startswith(ROPE_FACTORS) for name in source.shapes
    )
    kept = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    if scaled and not kept:
        raise SourceError(
            "the rope scaling in this GGUF would be lost, and with it the model at long contexts.",
            where=str(source.path),
            fix=fix,
        )
