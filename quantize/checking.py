"""`quantize verify`: every digest of a run from bytes, every verdict from stored rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantize.artifact import Manifest
from quantize.errors import StoreError
from quantize.judgement import collect, decide
from quantize.recipe import Recipe
from quantize.run import RESOLVED, RunRecord, VariantRecord, read_record
from quantize.store import Store, verify_directory

__all__ = ["Check", "verify_run"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what was wrong with it (nothing, if `problems` is empty)."""

    what: str
    problems: tuple[str, ...]


def verify_run(directory: Path, store: Store) -> list[Check]:
    """Recompute a run: its artifacts' digests and its variants' verdicts. Raises StoreError where there is no run."""
    record = read_record(directory)
    recipe = Recipe.model_validate_json((directory / RESOLVED).read_text(encoding="utf-8"))
    manifests = {manifest.key: (path, manifest) for path, manifest in store.manifests()}
    checks = []
    for key in sorted(record.keys()):
        if key not in manifests:
            checks.append(Check(f"artifact {key[:12]}", ("it is not in the store",)))
            continue
        path, manifest = manifests[key]
        label = f"{manifest.kind} {manifest.name}".strip()
        checks.append(Check(f"{label}: {len(manifest.files)} files", tuple(verify_directory(path, manifest))))
    damaged = any(check.problems for check in checks)
    verdicts = [v for v in record.variants if "judge" in v.stages]
    return checks + [_verdict(v, record, recipe, manifests, damaged=damaged) for v in verdicts]


def _verdict(
    variant: VariantRecord,
    record: RunRecord,
    recipe: Recipe,
    manifests: dict[str, tuple[Path, Manifest]],
    *,
    damaged: bool,
) -> Check:
    what = f"verdict of {variant.name}: {variant.verdict.outcome}"
    if damaged:
        return Check(what, ("not recomputed: an artifact is damaged",))
    try:
        judge = manifests[variant.stages["judge"]][1]
        inputs = {label: manifests[key][0] for label, key in judge.inputs.items()}
        collected = collect(variant.name, recipe.evals, inputs)
        again = decide(collected, recipe.gates, variant.verdict.recipe_digest)
    except (KeyError, StoreError, OSError, ValueError) as error:
        return Check(what, (f"cannot be recomputed ({error}) in run {record.run}",))
    same = again.model_copy(update={"program": variant.verdict.program}) == variant.verdict
    return Check(what, () if same else (f"recomputed from the rows it is {again.outcome}, with other findings",))
