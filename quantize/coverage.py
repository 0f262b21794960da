"""What `plan` says of which Linears get which numbers, from the names and shapes that are known before fetching."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence

from quantize.artifact import ModelFacts
from quantize.engines import EngineConfig
from quantize.methods import Existing
from quantize.patterns import Hits, hits, matching
from quantize.recipe import Variant
from quantize.scheme import Scheme

__all__ = ["asked", "check", "of_model", "parts", "weight_bytes"]

#: Modules that are never among the known Linears, by the last part of their names: heads, embeddings and what chooses
#: experts. Whether a model has them is seen when it is loaded.
_OTHERS = ("lm_head", "embed_out", "output", "score", "embed_tokens", "wte", "wpe", "gate", "router")
#: Methods by what they do to a model that takes more than text.
_BESIDE_REST = ("rtn", "gptq", "existing")
_WITHOUT_REST = ("gguf",)
#: Methods that work on files.
_WITHOUT_LOADING = ("model_free", "existing")


def parts(variant: Variant, facts: ModelFacts) -> list[tuple[str, Scheme, ModelFacts]]:
    """A name (empty without groups), the scheme and the facts of the Linears that get it, for each group.

    Where names are not known, every scheme is held against nothing, or, without groups, against all shapes.
    """
    scheme = variant.resolved_scheme()
    if not facts.modules:
        return [("", scheme, facts)] if not scheme.groups else []
    found = _hits(variant, facts)
    if not scheme.groups:
        return [("", scheme, _narrowed(facts, [name for name in facts.modules if name not in found.ignored]))]
    return [
        (
            group.name,
            group.scheme,
            _narrowed(facts, [name for name, told in found.groups.items() if told == (group.name,)]),
        )
        for group in scheme.groups
    ]


def asked(variant: Variant, facts: ModelFacts) -> list[tuple[Scheme, ModelFacts]]:
    """What its method is asked for problems with: each part by itself; an existing checkpoint as a whole."""
    if isinstance(variant.method, Existing):
        return [(variant.resolved_scheme(), facts)]
    return [(part, narrowed) for _, part, narrowed in parts(variant, facts)]


def check(variant: Variant, facts: ModelFacts) -> tuple[list[str], list[str]]:
    """Problems of the patterns, and what they come to: Linears by group, and those left alone."""
    scheme = variant.resolved_scheme()
    problems = _of_ignore(variant, facts)
    if not scheme.groups:
        return problems, []
    if not facts.modules and isinstance(variant.method, Existing):
        return [], []
    if not facts.modules:
        return [], ["which Linears its groups hit is seen when they are quantized: their names are not known yet"]
    found = _hits(variant, facts)
    counts = {name: sum((part.linears or {}).values()) for name, _, part in parts(variant, facts)}
    said = ", ".join(f"{counts[group.name]} {group.name} ({group.scheme.name})" for group in scheme.groups)
    notes = [f"{said}, {len(found.ignored)} ignored, of {len(facts.modules)} Linears"]
    if isinstance(variant.method, Existing):  # what it left open is no mistake of the recipe
        return [], notes
    for group in scheme.groups:
        for pattern in group.targets:
            if not matching(list(facts.modules), (pattern,)):
                problems.append(f"config_groups.{group.name}: {_hits_nothing(pattern, facts)}")
    bare = [name for name, told in found.groups.items() if not told]
    both = [name for name, told in found.groups.items() if len(told) > 1]
    if bare:
        problems.append(
            f"config_groups: {len(bare)} Linears are in no group, {bare[0]} first: add them, or `ignore` them"
        )
    if both:
        problems.append(f"config_groups: {len(both)} Linears are in several groups, {both[0]} first")
    return problems, notes


def of_model(
    facts: ModelFacts, variants: Sequence[Variant], engines: Sequence[EngineConfig]
) -> tuple[list[str], list[str]]:
    """Problems and notes of a model that is more than language, or that transformers does not know."""
    found = [look(facts, variants, engines) for look in (_beyond_text, _of_unknown)]
    return [problem for problems, _ in found for problem in problems], [note for _, notes in found for note in notes]


def _beyond_text(
    facts: ModelFacts, variants: Sequence[Variant], engines: Sequence[EngineConfig]
) -> tuple[list[str], list[str]]:
    """Problems of a model that takes more than text, and what becomes of the rest of it; its variants' engines beside.

    What has been tried on such models is taken; everything else would lose the rest, or has never been loaded again.
    """
    if not facts.senses:
        return [], []
    rest = " and ".join(facts.senses)
    problems = []
    for variant, engine in zip(variants, engines, strict=True):
        kind = variant.method.kind
        if kind in _WITHOUT_REST or engine.form == "gguf":
            why = f"a GGUF file holds the language part alone, and the {rest} part would be lost"
        elif kind not in _BESIDE_REST:
            why = f"{kind} has not been tried on models with a {rest} part"
        else:
            continue
        problems.append(f"variants.{variant.name}: {why}. Take {' or '.join(_BESIDE_REST[:2])}")
    told = f"the language part alone is quantized and asked, in text; the {rest} part is left as it is"
    return problems, [f"{told}, each module by name"]


def _of_unknown(
    facts: ModelFacts, variants: Sequence[Variant], engines: Sequence[EngineConfig]
) -> tuple[list[str], list[str]]:
    """Problems of a model that transformers does not know, and what its proof is worth; variants' engines beside."""
    if facts.known is not False:
        return [], []
    problems = []
    for variant, engine in zip(variants, engines, strict=True):
        what = f"variants.{variant.name}: transformers does not know the architecture {facts.architecture!r}"
        if variant.method.kind not in _WITHOUT_LOADING:
            mend = "`method: {kind: model_free}` quantizes its files without it, for `engine: {kind: vllm}` to serve"
            problems.append(f"{what}, and {variant.method.kind} has to load it. {mend}")
        elif engine.kind != "vllm":
            mend = "Name an engine that may: `engine: {kind: vllm}`"
            problems.append(f"{what}, so {engine.kind} cannot load it to measure it or its baseline. {mend}")
    what = f"transformers does not know the architecture {facts.architecture!r}, so no witness can be made of it"
    return problems, [f"{what}: proofs look at files, tokens, and whether answers are finite"]


def weight_bytes(variant: Variant, facts: ModelFacts, width: int) -> float | None:
    """Bytes of the checkpoint: quantized Linears at their scheme's bits, the rest at `width` bytes a parameter."""
    if facts.linears is None or facts.parameters is None:
        return None
    quantized = plain = 0.0
    for _, scheme, part in parts(variant, facts):
        for shape, count in (part.linears or {}).items():
            weights = math.prod(map(int, shape.split("x"))) * count
            plain += weights
            quantized += weights * scheme.bits_per_weight(int(shape.split("x")[1]), 8 * width) / 8
    return quantized + (facts.parameters - plain) * width


def _of_ignore(variant: Variant, facts: ModelFacts) -> list[str]:
    """A problem for each pattern of `ignore` that leaves nothing alone, where names are known."""
    if not facts.modules or isinstance(variant.method, Existing):
        return []
    places = {"", "transformer"} | {place for name in facts.modules for place in _around(name)}
    others = [f"{place}.{name}".removeprefix(".") for place in sorted(places) for name in _OTHERS]
    lost = [pattern for pattern in variant.ignore if not matching([*facts.modules, *others], (pattern,))]
    return [f"ignore: {_hits_nothing(pattern, facts)}" for pattern in lost]


def _around(name: str) -> list[str]:
    """The modules that hold the one of this name, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _hits_nothing(pattern: str, facts: ModelFacts) -> str:
    near = difflib.get_close_matches(pattern.removeprefix("re:"), facts.modules, n=3, cutoff=0.0)
    return f"{pattern!r} matches no Linear. The nearest: {', '.join(near)}"


def _hits(variant: Variant, facts: ModelFacts) -> Hits:
    """Of an existing checkpoint, what it left alone is ignored too."""
    method = variant.method
    ignored = method.held().ignored if isinstance(method, Existing) else ()
    return hits(list(facts.modules), variant.resolved_scheme().groups, (*variant.ignore, *ignored))


def _narrowed(facts: ModelFacts, names: list[str]) -> ModelFacts:
    linears = Counter(facts.modules[name] for name in names)
    return facts.model_copy(update={"linears": dict(sorted(linears.items()))})
