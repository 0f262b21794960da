"""Models that come quantized: what their weights are stored in, and whether that can be the model of a recipe.

Two kinds of checkpoints hold no plain floats. Some models were trained for such numbers and published in nothing else
(DeepSeek's FP8 in blocks, gpt-oss's MXFP4, Kimi's INT4): with `dequantize: true` each weight becomes the float that it
stands for, and that model is the baseline. Others are somebody's quantization of a model that there is (GPTQ, AWQ,
bitsandbytes): as a baseline they would hide what was lost when they were made, so they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantize.artifact import ModelFacts

__all__ = ["DEQUANTIZE", "LIBRARIES", "Stored", "stored_as", "stored_notes", "stored_problems"]

#: Distributions that dequantizing is done by.
LIBRARIES = ("compressed-tensors", "torch", "transformers")
#: What the field of this name says in every source.
DEQUANTIZE = "Of a model that is published in FP8, MXFP4 or packed integers: take the floats that they stand for."

_MADE_AFTERWARDS = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "auto-round": "AutoRound"}
_WITH_ORIGINAL = (
    "Give the unquantized model as `model`, and this checkpoint as a variant with `method: {kind: existing, …}`"
)
_FLOATS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Stored:
    """What the weights of a checkpoint are: `name` for people; `refusal` says why they cannot be made floats here."""

    kind: str
    name: str
    refusal: str | None = None


def stored_as(config: dict[str, Any]) -> Stored | None:
    """What a `config.json` says that the weights are stored in; None where they are plain floats."""
    settings = config.get("quantization_config") or config.get("compression_config")
    within = (config.get("text_config") or {}).get("quantization_config")
    if isinstance(settings, dict):
        return _by_method(str(settings.get("quant_method") or ""), settings)
    if isinstance(within, dict):
        kind = str(within.get("quant_method", "an unnamed method"))
        return Stored(kind, kind, "only its text_config says so, which no library here follows")
    return None


def _by_method(kind: str, settings: dict[str, Any]) -> Stored:
    if kind == "fp8":
        return _fp8(settings)
    if kind == "mxfp4":
        return Stored(kind, "MXFP4")
    if kind == "compressed-tensors":
        return _compressed_tensors(settings)
    if kind in _MADE_AFTERWARDS:
        name = _MADE_AFTERWARDS[kind]
        lost = f"{name} rounded them after the model was trained: as a baseline they would hide what that lost"
        return Stored(kind, name, lost)
    return Stored(kind, kind or "an unnamed format", "no library here turns them into floats")


def _fp8(settings: dict[str, Any]) -> Stored:
    sides = settings.get("weight_block_size")
    if not (isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)):
        return Stored("fp8", "FP8", "their scales are not those of blocks (weight_block_size), which are what is read")
    return Stored("fp8", f"FP8 in blocks of {sides[0]} x {sides[1]}")


def _compressed_tensors(settings: dict[str, Any]) -> Stored:
    from quantize.sources._held import scheme_of_config

    kind = "compressed-tensors"
    try:
        _, scheme, _ = scheme_of_config({"quantization_config": settings}, "config.json")
    except Exception as error:  # whatever a config of others may be made of: said, not raised, as others' are  # noqa: BLE001
        return Stored(kind, kind, f"what it says of them cannot be read ({error})")
    name = f"{scheme.name} (compressed-tensors)"
    if settings.get("transform_config"):
        return Stored(kind, name, "they are rotated, and were made of a model that there is")
    if scheme.static_activations or any(group.scheme.static_activations for group in scheme.groups):
        return Stored(
            kind, name, "ranges of activations are stored beside them: it was calibrated, and has an original"
        )
    if scheme.kv_cache is not None:
        return Stored(kind, name, "ranges of keys and values are stored beside them: it has an original")
    return Stored(kind, name)


def stored_problems(facts: ModelFacts, *, dequantize: bool) -> list[str]:
    """Why a model that is stored so cannot be the recipe's, each with what would do."""
    if facts.stored is None:
        return ["model.dequantize: the weights are plain floats already. Leave it out"] if dequantize else []
    what = f"model: its weights are stored as {facts.stored}"
    if facts.refused is not None:
        return [f"{what}, and {facts.refused}. {_WITH_ORIGINAL}"]
    if not dequantize:
        mend = (
            f"Set `model.dequantize: true`: the baseline is then the model with the {_float(facts)} numbers they mean"
        )
        return [f"{what}. {mend}. {_WITH_ORIGINAL}, if there is one"]
    if facts.dtype not in _FLOATS:
        return [f"{what}, and its config names no float as dtype ({facts.dtype}). Name one there"]
    return []


def stored_notes(facts: ModelFacts, *, dequantize: bool) -> list[str]:
    """What the baseline means where it was dequantized."""
    if facts.stored is None or not dequantize:
        return []
    what = f"the baseline is the model dequantized from {facts.stored} to {_float(facts)}, each weight rounded once"
    return [f"{what}; activations are not rounded in it, which a server of the original may do"]


def _float(facts: ModelFacts) -> str:
    return facts.dtype if facts.dtype in _FLOATS else "bfloat16"
