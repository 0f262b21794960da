"""`quantize verify`: every digest of a run from bytes, every evidence and verdict from stored rows.

    run folder   each file is the one that was sealed, none is missing, none was added
    artifacts    each `manifest.json` is the one that was sealed, and each file is the manifest's
    verdicts     evidence and findings, computed again from the rows, are those of the artifact and of the record

Only the run's folder and the store are read, so a copied store says the same on another machine. Numbers are compared
to nine digits, because another processor may sum in another order; everything else exactly. What a decision found
against a champion rests on rows in the registry: it is sealed with the record and not computed again.

A run without a seal, of an older program or one that was killed before its end, is checked as far as that goes, and the
missing seal is a problem: nobody can know then whether the folder's files are those that the run wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.artifact import Manifest
from quantize.errors import QuantizeError, StoreError
from quantize.evidence import Evidence, without_memory
from quantize.judgement import Rules, collect, decide
from quantize.recipe import Recipe
from quantize.record import Record, file_sha256
from quantize.run import RESOLVED, RunRecord, VariantRecord, read_record
from quantize.seal import SEAL, Seal, folder_problems, read_seal, with_inputs
from quantize.store import MANIFEST, Store, read_manifest, verify_directory
from quantize.verdict import Verdict

__all__ = ["Check", "verify_run"]

_DIGITS = 1e-9
_UNSEALED = (
    "there is no seal: the run was interrupted before it was sealed, or an older program made it. "
    "Run the same recipe again: it reuses the artifacts and seals a folder of its own."
)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what was wrong with it (nothing, if `problems` is empty)."""

    what: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Artifact:
    """An artifact that was checked. `sound` if what is here is unchanged; files that it only refers to may be away."""

    path: Path
    manifest: Manifest
    sound: bool


def verify_run(directory: Path, store: Store) -> list[Check]:
    """Recompute a run: its files, its artifacts and its variants' verdicts. Raises StoreError where there is no run."""
    if not (directory / "run.json").is_file() and not (directory / SEAL).is_file():
        read_record(directory)  # says what is missing, and how to mend it
    found, folder = _folder(directory)
    checks = [folder]
    record, recipe, unreadable = _read(directory)
    if unreadable:
        checks.append(Check("record and recipe", tuple(unreadable)))
    keys = record.keys() if record is not None else set()
    expected = found.artifacts if found is not None else dict.fromkeys((*keys, *with_inputs(store, keys)), "")
    artifacts: dict[str, _Artifact] = {}
    checks += [_artifact(key, sha256, store, artifacts) for key, sha256 in sorted(expected.items())]
    if found is not None:
        here = {key: sha256 for key, sha256 in found.parts.items() if store.locate(key) is not None}
        parts = [_artifact(key, sha256, store, {}) for key, sha256 in here.items()]
        told = (problem for part in parts for problem in part.problems)
        checks.append(Check(f"parts of long stages: {len(here)} of {len(found.parts)} kept", tuple(told)))
        unsealed = (f"{directory / 'run.json'}: artifact {key[:12]} is not in the seal" for key in keys - set(expected))
        checks.append(Check(f"seal: {len(expected)} artifacts", tuple(sorted(unsealed))))
    if record is not None:
        judged = [variant for variant in record.variants if "judge" in variant.stages]
        checks += [_verdict(variant, recipe, artifacts) for variant in judged]
    return checks


def _folder(directory: Path) -> tuple[Seal | None, Check]:
    """The run's seal, if it can be believed, and what it says of the folder."""
    try:
        found = read_seal(directory)
    except StoreError as error:
        return None, Check("run folder", (str(error),))
    if found is None:
        return None, Check("run folder", (f"{directory / SEAL}: {_UNSEALED}",))
    return found, Check(f"run folder: {len(found.files)} files", tuple(folder_problems(directory, found)))


def _read(directory: Path) -> tuple[RunRecord | None, Recipe | None, list[str]]:
    """The record and the recipe of a run, and why one of them cannot be read."""
    record, recipe, problems = None, None, []
    try:
        record = read_record(directory)
    except StoreError as error:
        problems.append(str(error))
    path = directory / RESOLVED
    try:
        recipe = Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path}: not a recipe of this program ({type(error).__name__})")
    return record, recipe, problems


def _artifact(key: str, sha256: str, store: Store, artifacts: dict[str, _Artifact]) -> Check:
    """Check an artifact's manifest against the seal (`sha256`, "" if unknown) and its files against the manifest.

    One whose manifest can be read is added to `artifacts`.
    """
    path = store.locate(key)
    if path is None:
        return Check(f"artifact {key[:12]}", (f"it is not in the store {store.root}",))
    problems = []
    if sha256 and file_sha256(path / MANIFEST) != sha256:
        problems.append(f"{path / MANIFEST}: its sha256 is not the seal's")
    try:
        manifest = read_manifest(path)
        if manifest is None:
            raise StoreError("missing.", where=str(path / MANIFEST))
        if manifest.key != key:
            problems.append(f"{path / MANIFEST}: it says key {manifest.key[:12]}, not {key[:12]}")
        files = verify_directory(path, manifest)
    except StoreError as error:
        return Check(f"{path.parent.name} {key[:12]}", (*problems, str(error)))
    away = [entry for entry in manifest.files if entry.target is not None and not (path / entry.path).exists()]
    artifacts[key] = _Artifact(path, manifest, sound=len(problems) + len(files) == len(away))
    label = f"{manifest.kind} {manifest.name}".strip()
    return Check(f"{label}: {len(manifest.files)} files", (*problems, *files))


def _verdict(variant: VariantRecord, recipe: Recipe | None, artifacts: Mapping[str, _Artifact]) -> Check:
    """Compute a variant's evidence and verdict again and compare them with what the artifact and the record say."""
    what = f"verdict of {variant.name}: {variant.verdict.outcome}"
    judge = artifacts.get(variant.stages["judge"])
    if recipe is None or judge is None:
        missing = "the recipe" if recipe is None else "the verdict's artifact"
        return Check(what, (f"not recomputed: {missing} cannot be read",))
    read = {label: artifacts.get(key) for label, key in judge.manifest.inputs.items()}
    damaged = [label for label, artifact in read.items() if artifact is None or not artifact.sound]
    if damaged:
        return Check(what, (f"not recomputed: {', '.join(damaged)} is damaged or missing",))
    inputs = {label: artifact.path for label, artifact in read.items() if artifact is not None}
    try:
        evidence, verdict = _again(variant, recipe, judge.path, inputs)
        stored = (
            Evidence.model_validate_json((judge.path / "evidence.json").read_text(encoding="utf-8")),
            Verdict.model_validate_json((judge.path / "verdict.json").read_text(encoding="utf-8")),
        )
    except (KeyError, QuantizeError, OSError, ValueError) as error:
        return Check(what, (f"cannot be recomputed ({error})",))
    return Check(what, tuple(_differences(variant, judge.path, (evidence, verdict), stored)))


def _again(variant: VariantRecord, recipe: Recipe, judge: Path, inputs: dict[str, Path]) -> tuple[Evidence, Verdict]:
    """Evidence and verdict from the rows, by the rules that the artifact at `judge` was reached by."""
    rules = Rules.model_validate_json((judge / "rules.json").read_text(encoding="utf-8"))
    collected = collect(rules, recipe.ordered_evals(), inputs)
    verdict = decide(collected, recipe.gates_of(variant.name), rules)
    return collected.evidence, verdict.model_copy(update={"program": variant.verdict.program})


def _differences(
    variant: VariantRecord, judge: Path, again: tuple[Evidence, Verdict], stored: tuple[Evidence, Verdict]
) -> Iterable[str]:
    """A sentence for each place that says something else than the rows."""
    evidence, verdict = again
    if not _alike(evidence, stored[0]):
        yield f"{judge / 'evidence.json'}: recomputed from the rows it has other numbers"
    if not _alike(verdict, stored[1]):
        yield f"{judge / 'verdict.json'}: recomputed from the rows it is {verdict.outcome}, with other findings"
    if variant.evidence is None or not _alike(evidence, without_memory(variant.evidence)):
        yield "run.json: its evidence is not what the rows give"
    if not _alike(verdict, variant.verdict):
        yield f"run.json: recomputed from the rows the verdict is {verdict.outcome}, with other findings"
    if variant.decision is not None and variant.decision.verdict_digest != stored[1].digest():
        yield "run.json: the decision is about another verdict"


def _alike(one: Record, other: Record) -> bool:
    return _same(one.model_dump(mode="json"), other.model_dump(mode="json"))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_DIGITS, abs_tol=_DIGITS)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)
