"""What serving needs to know of an artifact: its shape from `config.json`, its bytes, its name in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.scheme import Scheme
from quantize.sources import read_config

__all__ = ["Limits", "Served", "Shape", "describe", "read_shape"]

#: Where a config says how long a context may be, the usual name first.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length")


@dataclass(frozen=True, slots=True)
class Shape:
    """What the KV cache and the split over GPUs follow from. `context` in tokens; None where the config has none."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Served:
    """An artifact to be served: `name`@`alias` in the registry, `weights` in bytes, `shape` None where it is not known.

    `format` is the container on disk ("none": not quantized), `scheme` its numbers.
    """

    name: str
    alias: str
    format: str
    scheme: Scheme | None
    weights: int
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, in tokens: `context` is prompt and answer together, `output` the answer."""

    context: int
    output: int

    @property
    def input(self) -> int:
        """The longest prompt that still leaves room for the longest answer."""
        return self.context - self.output

    @classmethod
    def of(cls, shape: Shape | None) -> Limits:
        """8192 tokens, or the model's own context where that is shorter; an eighth of them for the answer.

        Long contexts are what fills a KV cache: a deployment that needs them sets CONTEXT and reads the table again.
        """
        known = shape.context if shape is not None and shape.context else 8192
        context = min(known, 8192)
        return cls(context, max(context // 8, 1))


def read_shape(checkpoint: Path) -> Shape | None:
    """The shape of the checkpoint's (text) model, None for architectures whose cache does not follow from heads.

    Raises SourceError where there is no readable `config.json`.
    """
    config = read_config(checkpoint / "config.json")
    nested = config.get("text_config")
    config = nested if isinstance(nested, dict) else config
    layers, heads = _number(config, "num_hidden_layers", "n_layer"), _number(config, "num_attention_heads", "n_head")
    hidden = _number(config, "hidden_size", "n_embd")
    # Multi-head latent attention keeps one compressed vector a token and layer, not keys and values by head.
    if layers is None or heads is None or hidden is None or config.get("kv_lora_rank"):
        return None
    return Shape(
        layers=layers,
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads") or heads,
        head_size=_number(config, "head_dim") or hidden // heads,
        intermediate_size=_number(config, "intermediate_size", "n_inner"),
        context=_number(config, *_CONTEXT_KEYS),
    )


def describe(checkpoint: Path, name: str, alias: str, format_: str, scheme: Scheme | None, weights: int) -> Served:
    """An artifact as serving sees it. Raises SourceError where its `config.json` cannot be read."""
    return Served(name, alias, format_, scheme, weights, read_shape(checkpoint))


def _number(config: dict[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None
