"""`quantize init MODEL`: a starter recipe for this model and this machine.

The variants follow from the hardware that will serve them: FP8 needs compute capability 8.9 (Ada, Hopper), INT8 and
INT4 run on anything since 8.0 and on CPUs. Group sizes follow from the model's own shapes.
"""

from __future__ import annotations

from pathlib import Path

from quantize.artifact import ModelFacts
from quantize.device import capability
from quantize.errors import UsageError
from quantize.sources import Directory, Gguf, Hub

__all__ = ["starter_recipe"]

_FP8_CAPABILITY = (8, 9)
_GROUPS = (128, 64, 32)


def starter_recipe(model: str, evals: Path, name: str | None) -> str:
    """The text of a recipe that runs. Raises SourceError or UsageError where model or eval set cannot be read."""
    source = _source(model)
    facts = source.facts()
    if not evals.exists():
        raise UsageError(
            "there is no such eval set.",
            where=str(evals),
            fix='Write one: a JSON object a line, {"id": "1", "prompt": "...", "choices": [" a", " b"], "answer": 0}.',
        )
    slug = name or "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(model).name.lower()).strip("-.")
    lines = [
        "# yaml-language-server: $schema=recipe.schema.json",
        f"# {model}: {_described(facts)}.",
        "# `quantize plan` shows what a run would do and cost; `quantize run` does it.",
        "version: 1",
        f"name: {slug}",
        "",
        "model:",
        *(f"  {key}: {value}" for key, value in source.model_dump(mode="json").items()),
        "",
        "# Calibration text that the model writes itself: no data needed. Use `kind: text` and a `path` for your own.",
        "calibration: {kind: self, samples: 128, tokens: 512}",
        "",
        *_variants(facts),
        "",
        "evals:",
        "  - kind: items",
        "    name: mine",
        f"    path: {evals.absolute()}",
        "",
        "# The largest loss that you would accept, in shares of the items: 0.02 is two points.",
        "gates:",
        "  - kind: noninferiority",
        "    metric: mine.accuracy",
        "    margin: 0.02",
        "",
        "# Where decisions go. Without `uri`: MLFLOW_TRACKING_URI, or a database inside the store.",
        "registry:",
        "  kind: mlflow",
        f"  name: {slug}",
        "  targets:",
        "    production: {from: [" + ", ".join(_names()) + "], prefer: bytes}",
        "",
    ]
    return "\n".join(lines)


def _source(model: str) -> Hub | Directory | Gguf:
    path = Path(model)
    if path.is_dir():
        return Directory(path=str(path.absolute()))
    if path.suffix == ".gguf":
        return Gguf(path=str(path.absolute()))
    if path.exists() or model.count("/") != 1:
        raise UsageError(f"{model!r} is neither a model directory, nor a .gguf file, nor a hub id such as org/name.")
    return Hub(repo=model)


def _described(facts: ModelFacts) -> str:
    size = f"{facts.parameters / 1e6:,.0f} million parameters" if facts.parameters else "size unknown"
    return f"{facts.architecture}, {size}, {facts.dtype}"


def _names() -> list[str]:
    return (["fp8"] if _fp8() else []) + ["int8", "int4-gptq"]


def _fp8() -> bool:
    found = capability()
    return found is not None and found >= _FP8_CAPABILITY


def _variants(facts: ModelFacts) -> list[str]:
    lines = ["variants:"]
    if _fp8():
        lines += ["  - {name: fp8, scheme: FP8_DYNAMIC, method: {kind: rtn}}"]
    lines += ["  - {name: int8, scheme: W8A8, method: {kind: rtn}}"]
    inputs = [int(shape.split("x")[1]) for shape in facts.linears or {}]
    group = next((size for size in _GROUPS if all(width % size == 0 for width in inputs)), _GROUPS[-1])
    chosen = "" if group == _GROUPS[0] else f", group_size: {group}"
    return [*lines, f"  - {{name: int4-gptq, scheme: W4A16{chosen}, method: {{kind: gptq}}}}"]
