"""What can be known of a model from `config.json`, and what more from the headers of its safetensors files.

Headers are exact and cost a few kilobytes of reading; a config alone is enough for architectures whose Linear layers
follow from it. What remains unknown is said by name, so that `plan` can say so too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from quantize.artifact import ModelFacts
from quantize.errors import SourceError

__all__ = ["checkpoint_facts", "config_facts", "read_config", "read_header", "read_index", "weight_files"]

#: Architectures whose decoder layer is q, k, v, o and a gated MLP, with the names of Llama's config.
_LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2"})
_HEADER_LIMIT = 100_000_000
_INDEX = "model.safetensors.index.json"
#: Where a config says how long a context may be, the usual name first.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` as a mapping. Raises SourceError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            "there is no config.json.", where=str(path.parent), fix="A checkpoint is a Hugging Face model directory."
        ) from None
    except ValueError as error:
        raise SourceError(f"this is not JSON ({error}).", where=str(path), fix=_FETCH) from None
    if not isinstance(config, dict):
        raise SourceError("a config is a JSON object.", where=str(path), fix=_FETCH)
    return config


def read_index(checkpoint: Path) -> dict[str, str]:
    """Tensor name -> shard, from `model.safetensors.index.json`; empty where there is none. Raises SourceError."""
    path = checkpoint / _INDEX
    if not path.is_file():
        return {}
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise SourceError("this is not an index of weight files.", where=str(path), fix=_FETCH) from None
    if not isinstance(mapping, dict) or not all(isinstance(s, str) and Path(s).name == s for s in mapping.values()):
        raise SourceError("the index names something other than files beside it.", where=str(path), fix=_FETCH)
    return dict(mapping)


def weight_files(checkpoint: Path) -> list[Path]:
    """The safetensors files that transformers loads: the index's shards, else `model.safetensors`, else all.

    A second form of the same weights beside them (`consolidated.safetensors`) is not counted twice.
    """
    shards = {checkpoint / shard for shard in read_index(checkpoint).values()}
    single = checkpoint / "model.safetensors"
    return sorted(shards or ({single} if single.is_file() else checkpoint.glob("*.safetensors")))


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors header: tensor name -> {dtype, shape, data_offsets}. Raises SourceError if truncated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise SourceError("the file is truncated: its header does not fit in it.", where=str(path), fix=_FETCH)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise SourceError("this is not a safetensors file.", where=str(path), fix=_FETCH) from None
    if 8 + length + end != size:
        raise SourceError(
            f"the file is truncated: {size} bytes, its header promises {8 + length + end}.", where=str(path), fix=_FETCH
        )
    return dict(header)


def config_facts(config: dict[str, Any]) -> ModelFacts:
    """Facts from a config alone; `unknown` says what only the weights could tell. Raises SourceError."""
    text = config.get("text_config") or config
    kind = str(text.get("model_type", config.get("model_type", "unknown")))
    if kind in _LLAMA_LIKE:
        wrong = [name for name in _NEEDED if type(text.get(name)) is not int or text[name] < 1]
        if wrong:
            raise SourceError(f"{wrong[0]} of this {kind} is {text.get(wrong[0])!r}.", where="config.json", fix=_FETCH)
    linears = _llama_linears(text) if kind in _LLAMA_LIKE else None
    unknown = ["the bytes of its weight files"]
    parameters = None
    if linears is None:
        unknown.append(f"the shapes of its Linear layers (the planner has no table for {kind!r})")
    else:
        parameters = _llama_parameters(text, linears)
    return ModelFacts(
        architecture=kind,
        layers=text.get("num_hidden_layers"),
        hidden_size=text.get("hidden_size"),
        vocab_size=text.get("vocab_size"),
        dtype=_dtype(config),
        linears=linears,
        parameters=parameters,
        bytes=None,
        unknown=unknown,
        context=next((text[key] for key in _CONTEXT_KEYS if isinstance(text.get(key), int)), None),
    )


def checkpoint_facts(checkpoint: Path) -> ModelFacts:
    """Facts of a checkpoint directory: shapes and parameters counted from the headers of its weight files."""
    facts = config_facts(read_config(checkpoint / "config.json"))
    files = weight_files(checkpoint)
    linears: Counter[str] = Counter()
    parameters = 0
    for file in files:
        for name, tensor in read_header(file).items():
            parameters += math.prod(tensor["shape"])
            if _is_linear(name, tensor["shape"]):
                linears["x".join(map(str, tensor["shape"]))] += 1
    return facts.model_copy(
        update={
            "linears": dict(sorted(linears.items())),
            "parameters": parameters,
            "bytes": sum(file.stat().st_size for file in files),
            "unknown": [],
        }
    )


_FETCH = "Fetch it again, or save the model once more with save_pretrained."


def _is_linear(name: str, shape: list[int]) -> bool:
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    )


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _llama_linears(config: dict[str, Any]) -> dict[str, int]:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
    shapes: Counter[str] = Counter()
    for out, into, count in (
        (query, hidden, 1),
        (key, hidden, 2),
        (hidden, query, 1),
        (inner, hidden, 2),
        (hidden, inner, 1),
    ):
        shapes[f"{out}x{into}"] += count * layers
    return dict(sorted(shapes.items()))


def _llama_parameters(config: dict[str, Any], linears: dict[str, int]) -> int:
    weights = sum(math.prod(map(int, shape.split("x"))) * count for shape, count in linears.items())
    embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
    return int(weights + embeddings + norms)
