"""`quantize init MODEL`: a starter recipe for this model and this machine.

Which numbers a GPU computes with decides: Blackwell (compute capability 10.0 and above) FP4 and FP8, Hopper and Ada
(8.9) FP8, what came before them INT8; 4-bit weights load everywhere. Without a GPU variants are measured in
transformers on the CPU, and what llama.cpp would serve is written as comments. Group sizes follow from the model's own
shapes; of a mixture of experts the layers that choose experts are left alone. Every variant says why it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from quantize.artifact import ModelFacts
from quantize.device import Device, choose
from quantize.errors import UsageError
from quantize.metrics import Items
from quantize.recipe import Recipe
from quantize.sources import Directory, Gguf, Hub

__all__ = ["Start", "Starter", "starter_recipe"]

_FP4_CAPABILITY, _FP8_CAPABILITY = (10, 0), (8, 9)
_GROUPS = (128, 64, 32)
_FP4_GROUP, _GGUF_BLOCK = 16, 256
#: A model of more parameters than this is not what people run on a laptop.
_EDGE = 4_000_000_000
#: Architectures with experts by their names, where no shapes are known; and what chooses experts, by module names.
_EXPERTS = re.compile(r"moe|mixtral|gpt_oss|deepseek_v[23]|dbrx|llama4")
_ROUTERS = r"ignore: [lm_head, 're:.*\.(gate|router|shared_expert_gate)$']"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


@dataclass(frozen=True, slots=True)
class Start:
    """A variant of the recipe: its settings as YAML, and why it is there."""

    name: str
    settings: str
    why: str


@dataclass(frozen=True, slots=True)
class Starter:
    """A recipe as text, its name, its variants, and the device that they were chosen for."""

    text: str
    name: str
    device: str
    variants: tuple[Start, ...]


def starter_recipe(model: str, evals: Path, name: str | None) -> Starter:
    """A recipe that runs. Raises SourceError or UsageError where model or eval set cannot be read."""
    source = _source(model)
    items = _items(evals)
    facts = source.facts()
    if facts.stored is not None and facts.refused is None:
        source = source.model_copy(update={"dequantize": True})
    slug = name or _slug(model)
    device = choose("auto")
    variants = _variants(facts, device)
    lines = [
        "# yaml-language-server: $schema=recipe.schema.json",
        f"# {model}: {_described(facts)}.",
        f"# For {_machine(device)}. `quantize plan` shows what a run would do and cost; `quantize run` does it.",
        "version: 1",
        f"name: {slug}",
        "",
        "model:",
        f"  kind: {source.kind}",
        *(f"  {key}: {_yaml(value)}" for key, value in source.model_dump(exclude_defaults=True).items()),
        "",
        "# Calibration text that the model writes itself: no data needed. Use `kind: text` and a `path` for your own.",
        "calibration: {kind: self, samples: 128, tokens: 512}",
        "",
        "variants:",
        *(line for one in variants for line in (f"  # {one.why}", f"  - {{name: {one.name}, {one.settings}}}")),
        *_more(facts, source, device),
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
        "    production: {from: [" + ", ".join(one.name for one in variants) + "], prefer: bytes}",
        "",
    ]
    text = "\n".join(lines)
    try:
        Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise UsageError(f"--name {slug}: {error.errors()[0]['msg']}.", fix="Give another with --name.") from None
    return Starter(text, slug, device.name, tuple(variants))


def _items(evals: Path) -> Items:
    """The eval set, read once. Raises UsageError or DataError."""
    if not evals.exists():
        raise UsageError(
            "there is no such eval set.",
            where=str(evals),
            fix='Write one: a JSON object a line, {"id": "1", "prompt": "...", "choices": [" a", " b"], "answer": 0}.',
        )
    items = Items(name="mine", path=str(evals.absolute()))
    items.identity()
    return items


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


def _machine(device: Device) -> str:
    if device.capability is None:
        return "a machine without a GPU"
    return f"{device.name} (compute capability {device.capability[0]}.{device.capability[1]})"


def _variants(facts: ModelFacts, device: Device) -> list[Start]:
    """What fits the machine's arithmetic, the surest first; groups only where one size divides all input channels."""
    found: list[Start] = []
    capability = device.capability
    inputs = [int(shape.split("x")[1]) for shape in facts.linears or {}]
    fp4 = capability is not None and capability >= _FP4_CAPABILITY and not any(width % _FP4_GROUP for width in inputs)
    if capability is not None and capability >= _FP8_CAPABILITY:
        why = "FP8 weights and activations, which this GPU multiplies; half the bytes, close to lossless."
        found.append(Start("fp8", "scheme: FP8_DYNAMIC, method: {kind: rtn}", why))
    else:
        where = "which every GPU since Turing multiplies" if capability is None else "which this GPU multiplies"
        why = f"INT8 weights and activations, {where}; half the bytes, seldom a loss that shows."
        found.append(Start("int8", "scheme: W8A8, method: {kind: rtn}", why))
    if fp4:
        why = "4-bit floats in groups of 16, which Blackwell multiplies; a quarter of the bytes, at a loss to measure."
        found.append(Start("nvfp4", "scheme: NVFP4, method: {kind: rtn}", why))
    group = next((size for size in _GROUPS if all(width % size == 0 for width in inputs)), None)
    if group is not None and not fp4:
        chosen = "" if group == _GROUPS[0] else f", group_size: {group}"
        why = f"4-bit weights in groups of {group}{_certain(facts)}; fast where few requests wait for weights."
        found.append(Start("int4-gptq", f"scheme: W4A16{chosen}, method: {{kind: gptq}}", why))
    if _has_experts(facts):
        found = [Start(one.name, f"{one.settings}, {_ROUTERS}", f"{one.why} Routers stay.") for one in found]
    return found


def _certain(facts: ModelFacts) -> str:
    return "" if facts.linears else " (not checked: its shapes are known when it is fetched)"


def _has_experts(facts: ModelFacts) -> bool:
    return any(".experts." in name for name in facts.modules) or _EXPERTS.search(facts.architecture) is not None


def _more(facts: ModelFacts, source: Directory | Gguf | Hub, device: Device) -> list[str]:
    """Variants that may be worth a try, as comments: those that need something first, or cost more."""
    lines: list[str] = []
    if device.capability is not None and device.capability >= _FP8_CAPABILITY:
        lines += [
            "  # Keys and values in FP8 too: twice the context, or twice the requests, in the same memory.",
            "  # - {name: fp8-kv, scheme: FP8_DYNAMIC, kv_cache: fp8, method: {kind: rtn}}",
        ]
    if device.kind == "cuda":
        lines += [
            "  # Quality is measured in transformers. To prove and measure in the engine that serves, add to a variant",
            "  # `engine: {kind: vllm}` (once: `quantize env create vllm`).",
        ]
    edge = isinstance(source, Gguf) or (facts.parameters is not None and facts.parameters <= _EDGE)
    if device.kind != "cuda" or edge:
        rows = [int(shape.split("x")[1]) for shape in facts.linears or {}]
        small = "Q4_K_M" if not any(width % _GGUF_BLOCK for width in rows) else "Q4_0"
        lines += [
            "  # For laptops and phones: GGUF, served by llama.cpp (once: `quantize env create llamacpp`). Add a",
            "  # target for them beside `production`: `edge: {from: [q8-0, q4], prefer: bytes}`.",
            "  # - {name: q8-0, scheme: Q8_0, method: {kind: gguf}}",
            f"  # - {{name: q4, scheme: {small}, method: {{kind: gguf}}}}",
        ]
    return lines
