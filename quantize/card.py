"""The model card of a variant: `README.md` beside its weights, as the hub reads one, and the licence of its model.

Licence, language, task, tags and the terms of a gated repository are carried over from the card of the model that was
quantized, or from the metadata of its GGUF file. What its author measured is not: that was another model. What *we*
measured is not here either. The card is one of the files that are judged, so it says only what was known before, no
times and no places: equal keys, equal cards. `quantize pull` lays `serving/EVALUATION.md` beside it.

A checkpoint that somebody else quantized is judged as it is, with its own card or none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from quantize.gguf_file import read_gguf
from quantize.protocols import Method
from quantize.record import digest
from quantize.scheme import Scheme, scheme_of
from quantize.sources import LICENCE_FILES, SOURCE_FILE, read_config
from quantize.store import read_manifest

__all__ = ["CARD", "Made", "Origin", "describe_variant", "write_card"]

#: What the hub shows as a repository's page.
CARD = "README.md"

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")
#: The terms under which a repository is opened to those who ask: they bind what is made of it.
_TERMS = "extra_gated_"
_HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)/?\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")

_SERVE_CHECKPOINT = """\
In [vLLM](https://docs.vllm.ai), on devices that have kernels for the scheme, from the directory with these files:

    vllm serve . --served-model-name {name}
"""
_SERVE_GGUF = """\
In [llama.cpp](https://github.com/ggml-org/llama.cpp), from the directory with these files:

    llama-server --model {file} --alias {name} --jinja
"""
_MEASURED = """\
Not here: this page is one of the files that were judged, and was written before. `quantize pull` lays
`serving/EVALUATION.md` beside these files, with the paired differences from the base model, their intervals, and the
digest of exactly these bytes.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the baseline came from: its source's `kind`, and `repo` and `commit` of one on the hub.

    `digest` are the checkpoint's files; `gguf` is the file that it came as; `notes` are what was done to it on the way
    (an adapter merged, numbers dequantized).
    """

    kind: str
    digest: str
    repo: str | None = None
    commit: str | None = None
    gguf: Path | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """How a variant was made: what is in the stage's key, and nothing else.

    `arguments` are the method's; `tokens` (samples, tokens) and their digest, where it was given some; `libraries` by
    name.
    """

    scheme: Scheme
    method: str
    format: str
    arguments: Mapping[str, Any]
    ignore: Sequence[str]
    seed: int
    libraries: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[int, int, str] | None = None


def describe_variant(config: Mapping[str, Any], method: Method, inputs: Mapping[str, Path], checkpoint: Path) -> None:
    """Lay card and licence into the `checkpoint` that a `quantize` stage has made by `config` of its `inputs`."""
    receipts = {name: read_manifest(inputs[name]) for name in ("model", "tokens") if name in inputs}
    model, drawn = receipts.get("model"), receipts.get("tokens")
    if model is None:
        raise ValueError("a variant is made of a committed model")
    said = model.summary["origin"]
    gguf = inputs["model"] / SOURCE_FILE
    origin = Origin(
        kind=said["kind"],
        digest=model.checkpoint_digest(),
        repo=said["repo"],
        commit=said["revision"],
        gguf=gguf if gguf.is_symlink() else None,
        notes=model.summary.get("notes", []),
    )
    rows = drawn.summary["rows"] if drawn is not None else []
    made = Made(
        scheme=scheme_of(config["scheme"]),
        method=method.kind,
        format=method.format,
        arguments={name: value for name, value in config["method"].items() if name != "kind"},
        ignore=config["ignore"],
        seed=config["seed"],
        libraries={name: metadata.version(name) for name in method.libraries},
        tokens=(len(rows), drawn.summary["tokens"], digest(rows)) if drawn is not None else None,
    )
    write_card(checkpoint, inputs["model"] / "checkpoint", origin, made)


def write_card(checkpoint: Path, baseline: Path, origin: Origin, made: Made) -> None:
    """Write `README.md` into `checkpoint`, and the licence files of `baseline` beside it; what is there already stays.

    Raises SourceError where `baseline` has no readable config.json.
    """
    for pattern in LICENCE_FILES:
        for path in sorted(baseline.glob(pattern)):
            if path.is_file() and not (checkpoint / path.name).exists():
                shutil.copyfile(path, checkpoint / path.name)
    if (checkpoint / CARD).exists():
        return
    theirs = _front(baseline / CARD)
    known = _of_gguf(origin.gguf) | theirs if origin.gguf is not None else theirs
    name = _name(baseline, origin, known)
    front = yaml.safe_dump(_metadata(known, origin, made), sort_keys=False, allow_unicode=True, width=10**6)
    licences = sorted({path.name for pattern in LICENCE_FILES for path in checkpoint.glob(pattern)})
    parts = [
        f"---\n{front}---\n",
        f"# {name} {made.scheme.name}\n\n{_opening(name, origin, made)}\n",
        f"## How it was made\n\n{_table(origin, made)}\n",
        f"## How to serve it\n\n{_serve(checkpoint, name, made)}",
        f"## Licence\n\n{_licence(known, licences)}\n",
        f"## What was measured\n\n{_MEASURED}",
    ]
    (checkpoint / CARD).write_text("\n".join(parts), encoding="utf-8")


def _front(card: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is no card, or none that can be read."""
    try:
        found = _FRONT.match(card.read_text(encoding="utf-8"))
        data = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError):
        return {}
    return {str(key): value for key, value in data.items()} if isinstance(data, dict) else {}


def _of_gguf(path: Path) -> dict[str, Any]:
    """What a GGUF file says of itself, in the words of a model card."""
    said = read_gguf(path).metadata
    names = {
        "license": "general.license",
        "license_name": "general.license.name",
        "license_link": "general.license.link",
        "language": "general.languages",
        "tags": "general.tags",
        "model_name": "general.name",
    }
    found = {name: said[key] for name, key in names.items() if said.get(key)}
    urls = [str(value) for key, value in said.items() if re.fullmatch(r"general\.base_model\.\d+\.repo_url", key)]
    urls += [str(said[key]) for key in ("general.source.url", "general.repo_url") if said.get(key)]
    repos = [match[1] for match in map(_HUB.match, urls) if match]
    return found | ({"base_model": repos[0]} if repos else {})


def _metadata(known: Mapping[str, Any], origin: Origin, made: Made) -> dict[str, Any]:
    """The front matter, in the hub's words."""
    carried = {key: known[key] for key in _CARRIED if known.get(key)}
    carried |= {key: value for key, value in known.items() if key.startswith(_TERMS)}
    base = _base_model(known, origin)
    own = [made.format, made.scheme.name.lower().replace(" + ", "-"), made.method, "quantize"]
    theirs = known.get("tags")
    tags = [*(str(tag) for tag in (theirs if isinstance(theirs, list) else [])), *own]
    return {
        **carried,
        **({"base_model": base} if base else {}),
        "base_model_relation": "quantized",
        "library_name": "gguf" if made.format == "gguf" else "transformers",
        "pipeline_tag": carried.get("pipeline_tag", "text-generation"),
        "tags": list(dict.fromkeys(tags)),
        "quantized_by": "quantize",
    }


def _base_model(known: Mapping[str, Any], origin: Origin) -> str | None:
    """The hub's name of the model that was quantized, where it is known and not guessed.

    Only of a GGUF source is it what the source names as *its* base: the file was made of that model.
    """
    if origin.repo is not None:
        return origin.repo
    named = known.get("base_model") if origin.gguf is not None else None
    return named if isinstance(named, str) and _HUB_ID.match(named) else None


def _name(baseline: Path, origin: Origin, known: Mapping[str, Any]) -> str:
    if origin.repo is not None:
        return origin.repo.rpartition("/")[2]
    named = known.get("model_name")
    return " ".join(str(named or read_config(baseline / "config.json").get("model_type", "model")).split())


def _opening(name: str, origin: Origin, made: Made) -> str:
    base = f"[{origin.repo}](https://huggingface.co/{origin.repo})" if origin.repo else name
    if made.method == "existing":
        return f"{base} in {made.scheme.name}, as somebody else quantized it; judged by quantize as it is."
    return f"{base}, quantized to {made.scheme.name} by {made.method} with quantize."


def _table(origin: Origin, made: Made) -> str:
    where = f"`{origin.repo}` at commit `{origin.commit}`" if origin.repo else f"{_KINDS[origin.kind]}"
    rows = {
        "base model": f"{where}; its files: sha256 `{origin.digest}`",
        "which is": " ".join(origin.notes),
        "scheme": "; ".join(_numbers(part) for part in made.scheme.parts),
        "keys and values": made.scheme.kv_cache,
        "method": ", ".join([made.method, *(f"{key} {_word(value)}" for key, value in made.arguments.items())]),
        "not quantized": ", ".join(f"`{pattern}`" for pattern in made.ignore),
        "calibration": _tokens(made.tokens),
        "seed": str(made.seed),
        "format": made.format,
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(made.libraries.items())),
    }
    if made.method == "existing":
        rows = {key: rows[key] for key in ("base model", "which is", "scheme", "keys and values", "format")}
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {_cell(value)} |" for key, value in rows.items() if value)])


_KINDS = {"directory": "a local checkpoint", "gguf": "a GGUF file", "package": "a GGUF file in a Python package"}


def _numbers(scheme: Scheme) -> str:
    """A scheme in words: `W4A16: 4-bit int weights in groups of 128, symmetric; activations as they are`."""
    if scheme.family == "gguf":
        bits = f", {scheme.nominal_bits:g} bits a weight" if scheme.nominal_bits else ""
        return f"{scheme.name}: llama.cpp's type{bits}"
    shared = {"tensor": "one scale a tensor", "channel": "one scale a channel"}
    sizes = f"blocks of {scheme.block_size}" if scheme.block_size else f"groups of {scheme.group_size}"
    scales = shared.get(scheme.strategy, sizes)
    weights = f"{scheme.weight_bits}-bit {scheme.weight_type} weights, {scales}"
    symmetry = "" if scheme.symmetric else ", asymmetric"
    activations = f"{scheme.activation_bits}-bit activations" if scheme.activation_bits else "activations as they are"
    return f"{scheme.name}: {weights}{symmetry}; {activations}"


def _tokens(tokens: tuple[int, int, str] | None) -> str | None:
    return None if tokens is None else f"{tokens[0]} rows of {tokens[1]} tokens, sha256 of the rows `{tokens[2]}`"


def _serve(checkpoint: Path, name: str, made: Made) -> str:
    alias = re.sub(r"[^\w.-]+", "-", f"{name}-{made.scheme.name}").strip("-")
    if made.format == "gguf":
        files = sorted(path.name for path in checkpoint.glob("*.gguf"))
        return _SERVE_GGUF.format(file=files[0] if files else "model.gguf", name=alias)
    return _SERVE_CHECKPOINT.format(name=alias)


def _licence(known: Mapping[str, Any], files: Sequence[str]) -> str:
    licence = known.get("license_name") or known.get("license")
    named = f"That of the base model: {licence}." if licence else "The base model's card names none: ask its author."
    return f"{named} Its text is in {', '.join(f'`{file}`' for file in files)}." if files else named


def _word(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str | int | float | bool) else f"`{yaml.safe_dump(value).strip()}`"


def _cell(value: str) -> str:
    """On one line, without what would end a cell of a table."""
    return " ".join(value.split()).replace("|", "\\|")
