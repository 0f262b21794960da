"""What a release logs to MLflow's runs: parameters, measurements and files, under the same names for every arm.

One parent run a recipe run, one child for the baseline and one for each variant that is decided, so that MLflow's
compare page puts them side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.artifact import Manifest
from quantize.benchmark import FILES
from quantize.errors import QuantizeError
from quantize.evidence import Evidence, Measurement
from quantize.promotion import BASELINE
from quantize.proved import WITNESS, loggable_witness
from quantize.run import Runner
from quantize.run_record import RunRecord, VariantRecord
from quantize.store import read_manifest

__all__ = [
    "arm_tags",
    "baseline_files",
    "baseline_metrics",
    "parent_params",
    "stage_metrics",
    "variant_files",
    "variant_metrics",
    "variant_params",
]

#: The recipe's parts that every arm shares.
_SHARED = ("model", "calibration", "engine", "seed")
#: How the kinds of models call what they are taken from.
_MODEL = ("repo", "id", "path", "distribution")


def parent_params(runner: Runner, record: RunRecord) -> dict[str, str]:
    """The recipe, flattened, but whom it tells; and what it ran on."""
    recipe = runner.plan.recipe.model_dump(mode="json", by_alias=True, exclude={"release"})
    facts = {name: str(getattr(record, name)) for name in ("recipe_digest", "device", "program")}
    return {**_flat(recipe), **facts}


def variant_params(runner: Runner, name: str | None) -> dict[str, str]:
    """A variant's own part of the recipe and the shared ones; None is the baseline."""
    recipe = runner.plan.recipe.model_dump(mode="json", by_alias=True)
    found = _flat({part: recipe[part] for part in _SHARED if recipe.get(part) is not None})
    if name is not None:
        way = next(way for way in runner.plan.variants if way.variant.name == name)
        found |= _flat(way.variant.model_dump(mode="json"))
    return found


def arm_tags(runner: Runner, record: RunRecord, name: str | None) -> dict[str, str]:
    """What MLflow's runs are filtered by; None is the baseline, which has no scheme and no method."""
    plan = runner.plan
    source = plan.recipe.model.model_dump(mode="json")
    source = source.get("base", source)  # a model with an adapter is found by what it was
    model = next((str(source[key]) for key in _MODEL if source.get(key)), plan.recipe.model.kind)
    found = {"recipe": record.recipe, "model": model, "device": record.device, "program": record.program}
    if name is None:
        return {**found, "variant": BASELINE, "engine": plan.baselines[0].engine.kind}
    way = next(way for way in plan.variants if way.variant.name == name)
    schemes = (group.scheme for group in way.variant.config_groups.values())
    scheme = way.variant.scheme or " + ".join(dict.fromkeys(schemes))  # of an existing one, as far as it is named
    own = {"scheme": scheme, "method": way.variant.method.kind, "engine": way.baseline.engine.kind}
    return {**found, "variant": name, **own}


def stage_metrics(runner: Runner, stages: Mapping[str, str]) -> dict[str, float]:
    """What each stage of an arm took, in seconds and in bytes at its peak; of one that is gone nothing is said."""
    found: dict[str, float] = {}
    for label, key in stages.items():
        kind = label.partition("@")[0].partition(".")[0]
        manifest = None if kind == "judge" else _manifest(runner, key)
        if manifest is not None:
            name = f"stage.{label.replace('@', '.')}"
            found[f"{name}.seconds"] = manifest.provenance.seconds
            found[f"{name}.peak_memory_bytes"] = float(manifest.provenance.peak_memory_bytes)
    return found


def _manifest(runner: Runner, key: str) -> Manifest | None:
    path = runner.store.locate(key)
    try:
        return read_manifest(path) if path is not None else None
    except QuantizeError:
        return None


def baseline_metrics(variants: list[VariantRecord]) -> dict[str, float]:
    """The baseline's measurements, from the evidence of the variants that were measured beside it."""
    found: dict[str, float] = {}
    for variant in variants:
        if variant.evidence is not None:
            # Under load it is measured anew beside each variant; the first of those numbers stand for it here.
            found = {**_numbers(variant.evidence.baseline_measurements), **found}
    return found


def variant_metrics(evidence: Evidence | None) -> dict[str, float]:
    """A variant's measurements, and its differences from the baseline with their limits."""
    if evidence is None:
        return {}
    found = _numbers(evidence.measurements)
    for comparison in evidence.comparisons:
        name = f"{comparison.metric}.difference"
        found[name] = comparison.difference
        if comparison.low is not None and comparison.high is not None:
            found |= {f"{name}.low": comparison.low, f"{name}.high": comparison.high}
    for name, progressed in evidence.progressed.items():
        found |= {f"{name}.items": progressed.items, f"{name}.answered": progressed.answered}
    return {**found, "attempt": evidence.spending.attempt}


def baseline_files(runner: Runner, record: RunRecord) -> dict[str, list[Path]]:
    """The rows that the variants' were paired with, by the folder that they go to."""
    stages = {label: key for label, key in record.baseline_stages.items() if label.startswith("evaluate.")}
    return {
        f"rows/{label.removeprefix('evaluate.')}": [runner.store.path("evaluate", key) / "rows.parquet"]
        for label, key in stages.items()
    }


def variant_files(runner: Runner, variant: VariantRecord) -> dict[str, list[Path]]:
    """The verdict, the evidence and the rows behind them, by the folder that they go to."""
    files: dict[str, list[Path]] = {}
    for label, key in variant.stages.items():
        kind, _, name = label.partition(".")
        directory = runner.store.path(kind, key)
        if kind == "evaluate":
            files[f"rows/{name}"] = [directory / "rows.parquet"]
        elif kind == "benchmark":
            files[f"load/{name}" if name else "load"] = [directory / file for file in FILES]
        elif label == "quantize":
            made = read_manifest(directory)
            if made is not None and loggable_witness(made):
                files["witness"] = [directory / WITNESS]  # by which a version that is served again is asked again
        elif label == "judge":
            files[""] = [directory / "verdict.json", directory / "evidence.json"]
    return files


def _numbers(measurements: list[Measurement]) -> dict[str, float]:
    found = {}
    for m in measurements:
        found[m.name] = m.value
        if m.low is not None and m.high is not None:
            found |= {f"{m.name}.low": m.low, f"{m.name}.high": m.high}
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c`; items of lists are called by their `name`, else by their index."""
    found: dict[str, str] = {}
    for key, item in value.items():
        place = f"{prefix}{key}"
        if isinstance(item, dict):
            found |= _flat(item, f"{place}.")
        elif isinstance(item, list) and any(isinstance(part, dict) for part in item):
            for i, part in enumerate(item):
                label = part.get("name", i) if isinstance(part, dict) else i
                found |= _flat({str(label): part}, f"{place}.")
        elif item is not None:
            found[place] = item if isinstance(item, str) else json.dumps(item)
    return found
