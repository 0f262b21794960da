"""What an already quantized checkpoint says of itself: its container and its numbers, from its own files.

compressed-tensors, GPTQ, AWQ and bitsandbytes say it in `config.json`, GGUF in its header. Numbers that no preset has
get a name of their own: nothing is called by the name of something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from quantize.errors import SourceError
from quantize.gguf_file import read_gguf
from quantize.scheme import PRESETS, Group, Scheme, mixed
from quantize.sources._numbers import Rounding, scheme_by

__all__ = ["scheme_of_config", "scheme_of_gguf"]

#: What a config says where one scheme is meant for every Linear.
_ALL = ("Linear",)
_KNOWN = ("compressed-tensors", "gptq", "awq", "bitsandbytes")


def scheme_of_config(config: dict[str, Any], where: str) -> tuple[str, Scheme, tuple[str, ...]]:
    """Container, scheme, and patterns of modules that were left alone, by a `config.json`.

    Raises SourceError where it is not quantized, or in no known way.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise SourceError(
            "the checkpoint is not quantized: its config.json has no quantization_config.",
            where=where,
            fix="Give a quantized checkpoint, or a method that quantizes the model.",
        )
    kind = str(settings.get("quant_method", ""))
    if kind not in _KNOWN:
        raise SourceError(
            f"it is quantized by {kind or 'something that it does not name'}, which no engine here loads.",
            where=where,
            fix=f"What is loaded is {', '.join(_KNOWN)}, and GGUF files.",
        )
    try:
        if kind == "compressed-tensors":
            turned = "+rotations" if _rotates(settings.get("transform_config")) else ""
            return kind + turned, _compressed_tensors(settings), _patterns(settings.get("ignore") or ())
        if kind == "bitsandbytes":
            return kind, _bitsandbytes(settings), ()
        return kind, _packed(settings, kind), ()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"its quantization_config cannot be read ({type(error).__name__}: {error}).", where=where
        ) from error


def scheme_of_gguf(path: Path) -> Scheme:
    """The scheme that a GGUF file's header names; else the type that most of its matrices have.

    Raises SourceError for a file that is damaged or of a type that no preset has.
    """
    from collections import Counter

    from gguf import GGUFReader, LlamaFileType

    header = read_gguf(path)
    named = header.metadata.get("general.file_type")
    try:
        name = LlamaFileType(int(named)).name.removeprefix("MOSTLY_").removeprefix("ALL_") if named is not None else ""
    except ValueError:
        name = ""
    if name not in PRESETS:
        counts = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)
        name = counts.most_common(1)[0][0] if counts else "nothing"
    if name not in PRESETS:
        raise SourceError(f"its matrices are of type {name}, which no preset stands for.", where=str(path))
    return PRESETS[name]


def _compressed_tensors(settings: dict[str, Any]) -> Scheme:
    """One scheme, or several groups' as one, and what keys and values are. Raises ValueError for no known numbers."""
    groups = [
        Group(name, _patterns(group["targets"]), _of_group(group, str(group.get("format") or settings.get("format"))))
        for name, group in settings["config_groups"].items()
        if group.get("weights")
    ]
    if not groups:
        raise ValueError("none of its groups has weights")
    alone = groups[0].scheme if len(groups) == 1 and groups[0].targets == _ALL else mixed(groups)
    return replace(alone, kv_cache=_kv_cache(settings.get("kv_cache_scheme")))


def _rotates(transforms: dict[str, Any] | None) -> bool:
    """Whether a reader has to rotate activations: rotations of weights alone are done already."""
    groups = ((transforms or {}).get("config_groups") or {}).values()
    places = [str(applied["location"]) for group in groups for applied in group["apply"]]
    return any(not place.startswith("weight_") for place in places)


def _patterns(found: Iterable[Any]) -> tuple[str, ...]:
    """Patterns of module names. Raises ValueError for what is no regular expression."""
    for pattern in found:
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no pattern: {error}") from error
    return tuple(found)


def _of_group(group: dict[str, Any], format_: str) -> Scheme:
    inputs = group.get("input_activations")
    found = scheme_by(Rounding.of(group["weights"], format_), Rounding.of(inputs, format_) if inputs else None)
    return replace(found, name=f"{found.name}_OUTPUTS") if group.get("output_activations") else found


def _kv_cache(args: dict[str, Any] | None) -> Literal["fp8"] | None:
    if not args:
        return None
    if (args["num_bits"], args["type"]) != (8, "float"):
        raise ValueError(f"keys and values in {args['num_bits']} bits of type {args['type']!r}")
    return "fp8"


def _packed(settings: dict[str, Any], kind: str) -> Scheme:
    """GPTQ's and AWQ's settings, by today's names and by AutoAWQ's first ones."""
    size = int(settings.get("group_size", settings.get("q_group_size", -1)))
    symmetric = bool(settings.get("sym", True)) if kind == "gptq" else not settings.get("zero_point", True)
    bits = int(settings["bits"] if "bits" in settings else settings["w_bit"])
    grouped = size > 0
    return scheme_by(
        Rounding(bits, "int", symmetric, "group" if grouped else "channel", size if grouped else None), None
    )


def _bitsandbytes(settings: dict[str, Any]) -> Scheme:
    if settings.get("load_in_8bit"):
        return PRESETS["INT8"]
    return PRESETS[str(settings["bnb_4bit_quant_type"]).upper()]
