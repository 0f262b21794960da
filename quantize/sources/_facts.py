"""What can be known of a model from `config.json`, and what more from the headers of its safetensors files.

Headers are exact and cost a few kilobytes of reading; a config alone is enough for architectures whose Linear layers
follow from it. What remains unknown is said by name, so that `plan` can say so too.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.sources._architectures import known_to_transformers
from quantize.sources._stored import stored_as

__all__ = [
    "checkpoint_facts",
    "config_facts",
    "linear_names",
    "read_config",
    "read_header",
    "read_index",
    "weight_files",
]

#: Architectures whose decoder layer is q, k, v, o and a gated MLP, with the names of Llama's config.
_LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2"})
#: The same with a mixture of experts instead of the MLP in (by default) every layer.
_QWEN_MOE = frozenset({"qwen3_moe"})
_HEADER_LIMIT = 100_000_000
_INDEX = "model.safetensors.index.json"
#: Where a config says how long a context may be, the usual name first.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
#: What transformers 5 calls `num_experts` when it saves a config.
_SAVED_AS = "num_local_experts"
_NEEDED_OF_EXPERTS = ("num_experts", "moe_intermediate_size")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
#: What a model may take beside text, as its config calls it, and how the tensors of its language part are called.
_SENSES = ("vision", "audio", "video")
_LANGUAGE = re.compile(r"(model\.)?((language_model|text_model)\.(model\.)?)?layers\.\d")
_EXPERTS = ("gate_up_proj", "down_proj")
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
    alone = text is config
    kind = str(text.get("model_type", config.get("model_type", "unknown")))
    if kind in _QWEN_MOE and text.get("num_experts") is None:
        text = {**text, "num_experts": text.get(_SAVED_AS)}
    if kind in _LLAMA_LIKE | _QWEN_MOE:
        needed = _NEEDED if kind in _LLAMA_LIKE else (*_NEEDED, *_NEEDED_OF_EXPERTS)
        wrong = [name for name in needed if type(text.get(name)) is not int or text[name] < 1]
        if wrong:
            raise SourceError(f"{wrong[0]} of this {kind} is {text.get(wrong[0])!r}.", where="config.json", fix=_FETCH)
    modules = _llama_modules(text) if kind in _LLAMA_LIKE | _QWEN_MOE else {}
    linears = _counted(modules) if modules else None
    unknown = ["the bytes of its weight files"]
    parameters = None
    if linears is None:
        unknown.append(f"the shapes of its Linear layers (the planner has no table for {kind!r})")
    else:
        parameters = _llama_parameters(text, linears)
    stored = stored_as(config)
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
        # A model with more than text around it has them under other names.
        modules=modules if alone else {},
        stored=stored.name if stored is not None else None,
        refused=stored.refusal if stored is not None else None,
        known=known_to_transformers(str(config.get("model_type"))),
        senses=tuple(sense for sense in _SENSES if isinstance(config.get(f"{sense}_config"), dict)),
    )


def checkpoint_facts(checkpoint: Path) -> ModelFacts:
    """Facts of a checkpoint directory: shapes and parameters counted from the headers of its weight files."""
    facts = config_facts(read_config(checkpoint / "config.json"))
    if facts.stored is not None:
        return _facts_of_stored(facts, checkpoint)
    files = weight_files(checkpoint)
    modules: dict[str, str] = {}
    parameters = 0
    for file in files:
        for name, tensor in read_header(file).items():
            parameters += math.prod(tensor["shape"])
            if _is_linear(name, tensor["shape"]) and (not facts.senses or _LANGUAGE.match(name)):
                modules[name.removesuffix(".weight")] = "x".join(map(str, tensor["shape"]))
    return facts.model_copy(
        update={
            "linears": _counted(modules),
            # Modules of a model that sees or hears are not called what their tensors are.
            "modules": {} if facts.senses else modules,
            "parameters": parameters,
            "bytes": sum(file.stat().st_size for file in files),
            "unknown": [],
            "chat": _has_chat_template(checkpoint),
        }
    )


def _facts_of_stored(facts: ModelFacts, checkpoint: Path) -> ModelFacts:
    """Of packed weights the headers tell no shapes: what the config tells, and the bytes of the floats to come."""
    for file in weight_files(checkpoint):
        read_header(file)  # raises for one that is cut short
    width = 4 if facts.dtype == "float32" else 2
    size = facts.parameters * width if facts.parameters is not None else None
    unknown = [what for what in facts.unknown if size is None or "bytes" not in what]
    return facts.model_copy(update={"bytes": size, "unknown": unknown, "chat": _has_chat_template(checkpoint)})


def linear_names(checkpoint: Path) -> tuple[list[str], list[str]]:
    """Modules with a `weight`: those that are Linears by name and shape alone, and all others.

    Raises SourceError for experts in one tensor: which side of it is which is not said in the file.
    """
    senses = config_facts(read_config(checkpoint / "config.json")).senses
    shapes = {name: tensor["shape"] for file in weight_files(checkpoint) for name, tensor in read_header(file).items()}
    packed = [name for name, shape in shapes.items() if len(shape) == 3 and name.rpartition(".")[2] in _EXPERTS]
    if packed:
        raise SourceError(
            f"{packed[0]} holds several experts in one tensor, which are not taken apart by name.",
            where=str(checkpoint),
            fix="Take a method that loads the model, as rtn.",
        )
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    linears = [
        name
        for name, shape in weights.items()
        if _is_linear(f"{name}.weight", shape) and (not senses or _LANGUAGE.match(name))
    ]
    return linears, sorted(set(weights) - set(linears))


_FETCH = "Fetch it again, or save the model once more with save_pretrained."


def _has_chat_template(checkpoint: Path) -> bool:
    """Whether a template lies in one of the places that transformers looks in."""
    if any((checkpoint / name).exists() for name in _TEMPLATES):
        return True
    try:
        config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _is_linear(name: str, shape: list[int]) -> bool:
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
        and not name.endswith((".mlp.gate.weight", ".router.weight"))  # these choose experts
    )


def _counted(modules: dict[str, str]) -> dict[str, int]:
    return dict(sorted(Counter(modules.values()).items()))


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _llama_modules(config: dict[str, Any]) -> dict[str, str]:
    """Names and shapes of the Linears of every layer; each expert's apart, as checkpoints have them."""
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    found: dict[str, str] = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes = {f"{prefix}.self_attn.{name}": shape for name, shape in attention.items()}
        for place, inner in _mlps(config, layer):
            shapes |= {f"{prefix}.mlp.{place}{name}": (inner, hidden) for name in ("gate_proj", "up_proj")}
            shapes[f"{prefix}.mlp.{place}down_proj"] = (hidden, inner)
        found |= {name: f"{out}x{into}" for name, (out, into) in shapes.items()}
    return found


def _mlps(config: dict[str, Any], layer: int) -> list[tuple[str, int]]:
    """Where a layer's gated MLPs are below `mlp`, and their widths: one, or one an expert."""
    experts = config.get("num_experts")
    sparse = (layer + 1) % config.get("decoder_sparse_step", 1) == 0 and layer not in config.get("mlp_only_layers", [])
    if experts is None or not sparse:
        return [("", config["intermediate_size"])]
    return [(f"experts.{expert}.", config["moe_intermediate_size"]) for expert in range(experts)]


def _llama_parameters(config: dict[str, Any], linears: dict[str, int]) -> int:
    weights = sum(math.prod(map(int, shape.split("x"))) * count for shape, count in linears.items())
    embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    routers = config["num_hidden_layers"] * config["hidden_size"] * (config.get("num_experts") or 0)
    norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
    return int(weights + embeddings + norms + routers)
