"""`quantize init MODEL`: a starter recipe for this model and this machine.

The variants follow from this machine's hardware: FP8 arithmetic needs compute capability 8.9 (Ada, Hopper), INT8 and
INT4 load everywhere in transformers, which measures them here. What another engine has no kernels for, `plan` says once
a variant names that engine. Group sizes follow from the model's own shapes.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from quantize.artifact import ModelFacts
from quantize.device import capability
from quantize.errors import UsageError
from quantize.metrics import Items
from quantize.recipe import Recipe
from quantize.sources import Directory, Gguf, Hub

__all__ = ["starter_recipe"]

_FP8_CAPABILITY = (8, 9)
_GROUPS = (128, 64, 32)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


def starter_recipe(model: str, evals: Path, name: str | None) -> str:
    """The text of a recipe that runs. Raises SourceError or UsageError where model or eval set cannot be read."""
    source = _source(model)
    if not evals.exists():
        raise UsageError(
            "there is no such eval set.",
            where=str(evals),
            fix='Write one: a JSON object a line, {"id": "1", "prompt": "...", "choices": [" a", " b"], "answer": 0}.',
        )
    items = Items(name="mine", path=str(evals.absolute()))
    items.identity()
    facts = source.facts()
    slug = name or _slug(model)
    names, variants = _variants(facts)
    lines = [
        "# yaml-language-server: $schema=recipe.schema.json",
        f"# {model}: {_described(facts)}.",
        "# `quantize plan` shows what a run would do and cost; `quantize run` does it.",
        "version: 1",
        f"name: {slug}",
        "",
        "model:",
        *(f"  {key}: {_yaml(value)}" for key, value in source.model_dump(mode="json").items()),
        "",
        "# Calibration text that the model writes itself: no data needed. Use `kind: text` and a `path` for your own.",
        "calibration: {kind: self, samples: 128, tokens: 512}",
        "",
        "variants:",
        *variants,
        "",
        "evals:",
        "  - kind: items",
        "    name: mine",
        f"    path: {_yaml(str(evals.absolute()))}",
        "",
        *_gates(items),
        "",
        "# Variants answer in looks and stop when their gates are certain; the baseline is measured twice, so that",
        "# noise is known. These are the defaults.",
        "early_stopping: {enabled: true, look: 48, share: 0.2}",
        "noise_floor: true",
        "",
        "# Where decisions go. Without `uri`: MLFLOW_TRACKING_URI, or a database inside the store.",
        "registry:",
        "  kind: mlflow",
        f"  name: {slug}",
        "  targets:",
        "    production: {from: [" + ", ".join(names) + "], prefer: bytes}",
        "",
    ]
    text = "\n".join(lines)
    try:
        Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise UsageError(f"--name {slug}: {error.errors()[0]['msg']}.", fix="Give another with --name.") from None
    return text


def _gates(items: Items) -> list[str]:
    """Lines of YAML: every default that decides, to be read before measuring."""
    lines = [
        "# The largest loss that you would accept, in shares: 0.02 is two points. Fix it before measuring.",
        "gates:",
        "  - {kind: noninferiority, metric: mine.accuracy, margin: 0.02, alpha: 0.05}",
        "  - {kind: limit, metric: mine.harmful_flips, at_most: 0.05, advisory: true}",
    ]
    for name in items.slices():
        metric = _yaml(f"mine.accuracy/{name}")
        lines.append(f"  # - {{kind: noninferiority, metric: {metric}, margin: 0.05}}  # if this slice is critical")
    if items.generates():
        lines += [
            "  - {kind: noninferiority, metric: mine.parsed, margin: 0.01, alpha: 0.05}",
            "  - {kind: limit, metric: mine.output_tokens, at_most: 1.10, advisory: false}",
        ]
    return lines


def _source(model: str) -> Hub | Directory | Gguf:
    path = Path(model)
    if path.is_dir():
        return Directory(path=str(path.absolute()))
    if path.suffix == ".gguf":
        return Gguf(path=str(path.absolute()))
    if path.exists() or not _HUB_ID.match(model):
        raise UsageError(f"{model!r} is neither a model directory, nor a .gguf file, nor a hub id such as org/name.")
    return Hub(repo=model)


def _described(facts: ModelFacts) -> str:
    size = f"{facts.parameters / 1e6:,.0f} million parameters" if facts.parameters else "size unknown"
    return f"{facts.architecture}, {size}, {facts.dtype}"


def _slug(model: str) -> str:
    """A name for the recipe out of the model's: lower-case ASCII letters, digits, dots and dashes."""
    found = "".join(
        c if c.isascii() and c.isalnum() else "-" for c in Path(model).absolute().name.lower().removesuffix(".gguf")
    )
    return "-".join(part for part in found.split("-") if part)[:63] or "model"


def _yaml(value: str) -> str:
    """A text as one YAML value on one line, quoted where it must be."""
    return yaml.safe_dump(value, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()


def _fp8() -> bool:
    found = capability()
    return found is not None and found >= _FP8_CAPABILITY


def _variants(facts: ModelFacts) -> tuple[list[str], list[str]]:
    """Names, and lines of YAML. INT4 in groups only where a group size divides every Linear's input channels."""
    variants = {"fp8": "scheme: FP8_DYNAMIC, method: {kind: rtn}"} if _fp8() else {}
    variants["int8"] = "scheme: W8A8, method: {kind: rtn}"
    inputs = [int(shape.split("x")[1]) for shape in facts.linears or {}]
    group = next((size for size in _GROUPS if all(width % size == 0 for width in inputs)), None)
    if group is not None:
        chosen = "" if group == _GROUPS[0] else f", group_size: {group}"
        variants["int4-gptq"] = f"scheme: W4A16{chosen}, method: {{kind: gptq}}"
    return list(variants), [f"  - {{name: {name}, {rest}}}" for name, rest in variants.items()]
