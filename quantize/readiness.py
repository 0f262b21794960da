"""Whether this machine has what the variants need: methods that run here, engines that serve them, environments."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from quantize.compatibility import verdict
from quantize.device import Device
from quantize.engines import EngineConfig
from quantize.environments import locate, read
from quantize.metrics import Items
from quantize.planner import needed_environments
from quantize.recipe import Recipe, Variant
from quantize.scorers import JsonSchema

__all__ = ["engine_name", "readiness"]

#: What an interpreter must be able to do for `json_schema`.
_NEEDED = "import jsonschema, referencing"


def readiness(
    recipe: Recipe, device: Device, variants: Sequence[Variant], *, environments: bool = True
) -> tuple[list[str], list[str]]:
    """Problems, each with its mend, and notes. With `force: true` a variant is tried in an engine that refuses it.

    Missing `environments` are problems unless they are going to be made.
    """
    problems: list[str] = []
    notes: list[str] = []
    expanded: dict[str, list[str]] = {}
    for variant in variants:
        refusal = variant.method.refusal(device.kind)
        problems += [f"variants.{variant.name}: {refusal}"] if refusal else []
        engine = engine_name(recipe.engine_of(variant), device)
        format_, scheme = variant.method.format, variant.resolved_scheme()
        found = verdict(format_, scheme, engine, device)
        what = f"variants.{variant.name}: {engine} does not serve {format_} {scheme.name} here"
        if found.outcome == "no" and variant.force:
            notes.append(f"{what}: {found.reason}. It is tried all the same (force: true)")
        elif found.outcome == "no":
            problems.append(
                f"{what}: {found.reason}. {_sentence(found.mend)}, or try it all the same with `force: true`"
            )
        problems += _unrounded_cache(variant, recipe.engine_of(variant))
        if found.outcome == "slow":
            expanded.setdefault(f"{found.reason} ({found.mend})", []).append(variant.name)
    notes += [f"variants {', '.join(names)}: {why}" for why, names in expanded.items()]
    notes += _mixed_targets(recipe, device, variants)
    problems += _not_scored_there(recipe, device, variants)
    return problems + (_missing(recipe, device, variants) if environments else []), notes


def _unrounded_cache(variant: Variant, engine: EngineConfig) -> list[str]:
    """One sentence where keys and values have scales in the checkpoint and the engine is told not to use them."""
    told, kept = getattr(engine, "kv_cache_dtype", "auto"), variant.resolved_scheme().kv_cache
    if kept is None or told in {"auto", "fp8", "fp8_e4m3"}:
        return []
    what = f"its kv_cache is {kept} and its engine keeps keys and values in {told}"
    mend = "What is measured would not be what is named: leave the engine's kv_cache_dtype out"
    return [f"variants.{variant.name}: {what}. {mend}"]


def _mixed_targets(recipe: Recipe, device: Device, variants: Sequence[Variant]) -> list[str]:
    """One sentence a deployment target whose variants are measured in several engines."""
    engines = {variant.name: engine_name(recipe.engine_of(variant), device) for variant in variants}
    found = []
    for target, rule in recipe.registry.targets.items():
        mixed = sorted({engines[name] for name in rule.from_ if name in engines})
        if len(mixed) > 1:
            found.append(
                f"registry.targets.{target}: its variants are measured in {', '.join(mixed)}, and arms of different "
                "engines are never compared: what it serves once is replaced from another engine by hand only"
            )
    return found


def engine_name(engine: EngineConfig, device: Device) -> str:
    """The engine as the table of compatibility names it: with its environment where the stage itself runs in one."""
    environment = engine.environment(device.kind) if engine.hosted else None
    return f"{engine.kind}@{environment}" if environment is not None else engine.kind


def _missing(recipe: Recipe, device: Device, variants: Sequence[Variant]) -> list[str]:
    """One sentence an environment that has to be made first."""
    found = []
    for name in needed_environments(recipe, variants, device.kind):
        environment = locate(name, recipe.environments)
        if environment.python is None:
            pins = read(name)
            cost = f"about {pins.minutes:g} minutes and {pins.gigabytes:g} GB"
            found.append(f"the environment {name} is not made: run `{environment.command}` ({cost})")
    return found


def _not_scored_there(recipe: Recipe, device: Device, variants: Sequence[Variant]) -> list[str]:
    """One sentence an environment that a whole evaluation runs in, and that lacks what an eval's scorer needs."""
    evals = [m.name for m in recipe.evals if isinstance(m, Items) and isinstance(m.scorer, JsonSchema)]
    engines = [recipe.engine_of(variant) for variant in variants]
    hosting = dict.fromkeys(engine.environment(device.kind) for engine in engines if engine.hosted)
    found = []
    for name in (name for name in hosting if name is not None and evals):
        python = locate(name, recipe.environments).python
        if python is not None and subprocess.run([python, "-c", _NEEDED], capture_output=True).returncode != 0:  # noqa: PLW1510 (asked)
            found.append(
                f"evals.{evals[0]}.scorer: answers are checked by jsonschema, which the environment {name} lacks: run "
                f"`{python} -m pip install jsonschema`, or serve these variants in an engine outside it"
            )
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
