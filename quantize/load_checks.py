"""What `plan` finds out about a benchmark: requests that do not fit, gates that it cannot satisfy, what it costs."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.artifact import ModelFacts
from quantize.benchmark import effort
from quantize.benchmark.config import Benchmark
from quantize.errors import QuantizeError
from quantize.gates import Latency
from quantize.recipe import Recipe, Variant
from quantize.stats import requests_needed

__all__ = ["check"]

_FAILURES = "load.failures/"


def check(recipe: Recipe, facts: ModelFacts, variants: tuple[Variant, ...]) -> tuple[list[str], list[str]]:
    """Problems and notes; none where the recipe has no benchmark."""
    benchmark = recipe.benchmark
    if benchmark is None:
        return [], []
    problems = list(dict.fromkeys(_too_long(recipe, benchmark, facts, variants)))
    problems += _without_drafts(recipe, benchmark, variants)
    return problems, [*_few_requests(recipe, benchmark), _cost(recipe, benchmark, variants)]


def _too_long(recipe: Recipe, benchmark: Benchmark, facts: ModelFacts, variants: tuple[Variant, ...]) -> Iterator[str]:
    """Requests that are longer than the model takes, or than one of the engines is set to."""
    for variant in variants:
        context = recipe.engine_of(variant).room(facts.context)
        try:
            benchmark.requests.check(context)
        except QuantizeError as error:
            yield str(error)


def _without_drafts(recipe: Recipe, benchmark: Benchmark, variants: tuple[Variant, ...]) -> Iterator[str]:
    """A draft in an engine whose server cannot let one model guess ahead for another."""
    for variant in variants:
        engine = recipe.engine_of(variant)
        if variant.name == benchmark.draft and engine.kind == "transformers":
            yield f"benchmark.draft: {variant.name} is served by transformers, which takes no draft: use vllm"


def _few_requests(recipe: Recipe, benchmark: Benchmark) -> Iterator[str]:
    """Gates on failures that as few requests cannot satisfy, even where none fails."""
    loads = {load.name: load.requests for load in benchmark.sent}
    for gate in recipe.gates:
        if isinstance(gate, Latency) and gate.metric.startswith(_FAILURES):
            sent = loads.get(gate.metric.removeprefix(_FAILURES), 0) * benchmark.blocks
            needed = requests_needed(gate.allowed, gate.alpha)
            if sent < needed:
                yield (
                    f"{gate.metric}: to show that at most {100 * gate.allowed:g} % more requests fail takes {needed:,} "
                    f"of which none does, and {benchmark.blocks} blocks have {sent:,}: the gate cannot pass. Raise the "
                    "load's requests, or the gate's at_most"
                )


def _cost(recipe: Recipe, benchmark: Benchmark, variants: tuple[Variant, ...]) -> str:
    """How often servers start, and how many requests they get."""
    engines = {recipe.engine_of(variant).digest() for variant in variants}
    pairs = len(variants) + (0 if benchmark.alone else len(engines))
    cost = effort.effort(benchmark, 1 if benchmark.alone else 2)
    served = f"{pairs * cost.starts} starts of a server and " if benchmark.traffic.served else ""
    return (
        f"benchmark: {served}{pairs * cost.requests} requests, if every variant passes its evals: "
        f"{benchmark.blocks} blocks a pair, and the baseline paired with itself in each engine"
    )
