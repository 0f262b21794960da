"""`quantize recheck`: does what serves still hold, on today's eval set and in today's engine.

    verify    the champion's bytes, fetched and hashed as `pull` does; what was changed is refused before it is measured
    unchanged the judge's key, planned from today's files, is the one that it was judged by: nothing to do
    measure   today's recipe with the champion's bytes as an `existing` variant, in an ordinary run folder
    log       an MLflow run with the tag `quantize.recheck`
    demote    where a blocking gate shows it worse than its margin: each alias that serves it goes back, by transaction

Inconclusive is no reason to take away what serves, and neither is an error. Nothing is counted as an attempt: the
artifact was chosen before. Each recheck errs at the gates' alpha by itself, so that of many, some demote what is good.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from quantize.announcing import Notice, Told, announce
from quantize.attempts import Ledger
from quantize.claims import check_claims
from quantize.device import choose
from quantize.errors import (
    Interrupted,
    QuantizeError,
    RecipeError,
    RegistryError,
    SourceError,
    StoreError,
    UsageError,
)
from quantize.executors import Local
from quantize.history import known_versions
from quantize.journal import Event
from quantize.operate import Prove, rollback
from quantize.plan import Plan
from quantize.planner import make_plan
from quantize.promotion import BASELINE, alias_map, now, target_names
from quantize.pull import pull
from quantize.readiness import readiness
from quantize.recipe import LoadedRecipe, Recipe, load
from quantize.record import digest
from quantize.registries import Mlflow
from quantize.registry import Registry, VersionState
from quantize.release import Report, keep
from quantize.reopening import engine_of_version, run_folder
from quantize.run import RUN, Runner, RunRecord, VariantRecord
from quantize.run_record import RESOLVED, read_record
from quantize.runlog import variant_files, variant_metrics, variant_params
from quantize.store import Store
from quantize.transaction import settled, tell
from quantize.verdict import Finding, Verdict
from quantize.watcher import Watcher

__all__ = ["Rechecked", "Tools", "champions", "recheck"]

Outcome = Literal["unchanged", "holds", "rolled back", "inconclusive", "error", "would measure"]
_TAG, _MEMORY = "recheck", "rechecked"


@dataclass(frozen=True, slots=True)
class Rechecked:
    """What came of one champion: an outcome, why, the run that measured it, and the aliases that were moved."""

    variant: str
    version: str
    outcome: Outcome
    sentence: str
    run: str = ""
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a version says of the last recheck that did not move it: the key of its judge, and what it came to."""

    judge: str
    attempt: int
    when: str
    outcome: Outcome
    sentence: str
    run: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What a recheck works with. `recipe` replaces the one that a version's run was made with.

    `prove` opens the version that an alias would go back to; `report` makes what is kept beside the run's record.
    """

    registry: Registry
    store: Store
    watcher: Watcher
    actor: str
    prove: Prove
    report: Report
    recipe: Path | None = None


def champions(registry: Registry, alias: str | None) -> list[VersionState]:
    """What serves: the version behind an alias, else every variant's champion, and what targets point at.

    Raises RegistryError for an alias that is not there, and where nothing but the model as given serves.
    """
    versions = known_versions(registry)
    aliases = alias_map(versions)
    variants = sorted({version.variant for version in versions} - {BASELINE, ""})
    names = [name for name in (*variants, *target_names(versions)) if name in aliases]
    if alias is not None and alias not in names:
        raise RegistryError(f"it has no alias {alias!r} (there are {', '.join(names) or 'none'}).", where=registry.name)
    wanted = {aliases[name] for name in ([alias] if alias is not None else names)}
    found = [version for version in versions if version.version in wanted and version.variant != BASELINE]
    if not found:
        raise RegistryError("nothing but the model as given serves: there is nothing to recheck.", where=registry.name)
    return found


def recheck(tools: Tools, version: VersionState, *, dry: bool = False) -> Rechecked:
    """Verify, measure and, where it is shown worse, demote one champion. Raises QuantizeError for what stops it."""
    recipe, text = _todays(tools, version)
    loaded = LoadedRecipe(recipe, tools.recipe or Path("recipe.yaml"), text, digest(recipe), ())
    same = _unchanged(tools, version, loaded)
    if dry:
        sentence = "nothing changed since it was judged." if same else "what it was judged by has changed."
        return Rechecked(version.variant, version.version, "unchanged" if same else "would measure", sentence)
    check_claims(tools.registry, version)
    key = digest({"recheck": version.artifact_digest})
    with tools.store.lease(_TAG, key, lambda _owner: tools.watcher.note("another recheck is at it; waiting")):
        draft = tools.store.draft(_TAG, key)
        try:
            pull(tools.registry, version.version, draft / "champion")
            if same:
                sentence = "nothing changed since it was judged, and its bytes are those that were."
                return Rechecked(version.variant, version.version, "unchanged", sentence)
            brought = _with_bytes(tools, recipe, version, draft / "champion")
            plan = make_plan(brought, choose(recipe.resources.device))
            if (before := _remembered(version, plan)) is not None:
                return before
            runner, record = _measure(tools, version, brought, plan)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return _conclude(tools, version, runner, record)


def _todays(tools: Tools, version: VersionState) -> tuple[Recipe, str]:
    """The recipe by which a champion is measured today, and its text. Raises RecipeError, UsageError."""
    if tools.recipe is not None:
        loaded = load(tools.recipe)
        found, text = loaded.recipe, loaded.text
    else:
        place = run_folder(tools.store, version) / RESOLVED
        try:
            text = place.read_text(encoding="utf-8")
            found = Recipe.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise UsageError(
                f"the recipe of version {version.version}'s run cannot be read ({type(error).__name__}).",
                where=str(place),
                fix="Name one with --recipe.",
            ) from error
    if version.variant not in {variant.name for variant in found.variants}:
        names = ", ".join(variant.name for variant in found.variants)
        raise UsageError(f"the recipe has no variant {version.variant!r} (it has {names}).", fix="Name another recipe.")
    return found, text


def _unchanged(tools: Tools, version: VersionState, loaded: LoadedRecipe) -> bool:
    """Whether today's plan comes to the very verdict that the version has: the same key, of the same artifact."""
    try:
        record = read_record(run_folder(tools.store, version))
    except StoreError:  # without its record nothing is known to be unchanged
        return False
    known = next((v for v in record.variants if v.name == version.variant and v.evidence is not None), None)
    if known is None or known.verdict.artifact_digest != version.artifact_digest:
        return False
    try:
        plan = make_plan(loaded, choose(loaded.recipe.resources.device), (version.variant,))
    except SourceError:
        if any(v.name == version.variant and v.method.kind == "existing" for v in loaded.recipe.variants):
            return False  # where it was brought from it is no more; the registry has its bytes
        raise
    judges = plan.variants[0].measured(known.verdict.attempt).judges
    return known.stages.get("judge") in {judge.key for judge in judges}


def _with_bytes(tools: Tools, recipe: Recipe, version: VersionState, place: Path) -> LoadedRecipe:
    """The recipe with one variant, which is brought instead of made. Targets go with the others.

    It is tried whatever tables say: it was served. Raises RecipeError where nothing is left to judge it by.
    """
    name = version.variant
    own = next(variant for variant in recipe.variants if variant.name == name)
    try:
        engine = recipe.engine_of(own)
    except SourceError:  # an existing checkpoint that is no more where it was brought from
        engine = engine_of_version(version, tools.store, place)
    data = recipe.model_dump(mode="json", by_alias=True)
    data["variants"] = [
        {
            "name": name,
            "method": {"kind": "existing", "path": str(place)},
            "engine": engine.model_dump(mode="json", by_alias=True),
            "force": True,
        }
    ]
    data["calibration"] = None
    data["registry"]["targets"] = {
        target: {**rule, "from": [name]} for target, rule in data["registry"]["targets"].items() if name in rule["from"]
    }
    kept = data["registry"]["targets"]
    data["gates"] = [gate for gate in data["gates"] if gate.get("target") is None or gate["target"] in kept]
    if data.get("benchmark") is not None and data["benchmark"].get("draft") != name:
        data["benchmark"]["draft"] = None
    text = yaml.safe_dump(data, sort_keys=False)
    try:
        found = Recipe.model_validate(data)
    except ValidationError as error:
        problem = f"version {version.version}: its part of the recipe cannot be measured alone: "
        raise RecipeError([f"{problem}{error.errors()[0]['msg']}"]) from None
    # As it was written: a copy hides the addresses of webhooks.
    found = found.model_copy(update={"release": recipe.release})
    return LoadedRecipe(found, Path("recipe.yaml"), text, digest(data), ())


def _remembered(version: VersionState, plan: Plan) -> Rechecked | None:
    """What the recheck before this one came to, where it was of the same bytes by the same files."""
    try:
        memory = _Memory(**json.loads(version.tags[_MEMORY]))
    except (KeyError, ValueError, TypeError):
        return None
    judges = plan.variants[0].measured(memory.attempt).judges
    if memory.judge not in {judge.key for judge in judges}:
        return None
    sentence = f"nothing changed since it was rechecked at {memory.when}: {memory.sentence}"
    outcome: Outcome = "unchanged" if memory.outcome == "holds" else memory.outcome
    return Rechecked(version.variant, version.version, outcome, sentence, memory.run)


def _measure(tools: Tools, version: VersionState, loaded: LoadedRecipe, plan: Plan) -> tuple[Runner, RunRecord]:
    """An ordinary run that releases nothing. Raises RecipeError where this machine cannot serve the variant."""
    recipe = loaded.recipe
    problems, _ = readiness(recipe, plan.device, recipe.variants)  # not whether its items can decide: that is measured
    if problems:
        raise RecipeError([f"version {version.version}: {problem}" for problem in problems])
    ledger = Ledger.of(tools.store, tools.registry.versions())
    executor = Local()
    runner = Runner(loaded, plan, tools.store, executor, tools.watcher, ledger, counting=False)
    with tools.store.lease(RUN, digest(runner.name), lambda _owner: None):
        try:
            record = runner.measure()
        finally:
            tools.watcher.close()
        keep(runner, record, tools.report)
    return runner, record


def _conclude(tools: Tools, version: VersionState, runner: Runner, record: RunRecord) -> Rechecked:
    """Log what was measured and carry out what follows."""
    (variant,) = record.variants
    shown = _shown_worse(variant.verdict, {gate.kind for gate in runner.plan.recipe.gates})
    outcome, sentence = _outcome(variant.verdict, shown)
    run = _log(tools, version, runner, variant, outcome)
    if shown is None:
        _told(tools, version, variant.verdict, run, outcome, sentence)
        if outcome != "error":  # what stopped it may be gone tomorrow
            memory = _Memory(variant.stages["judge"], variant.verdict.attempt, now(), outcome, sentence, record.run)
            tools.registry.tag(version.version, {_MEMORY: json.dumps(asdict(memory))})
        return Rechecked(version.variant, version.version, outcome, sentence, record.run)
    moved, stay = _demote(tools, version, f"Rechecked: {sentence}", (variant.verdict.digest(), run))
    if not moved and not stay:
        sentence = f"shown worse, and no alias serves it any more: {sentence}"
        return Rechecked(version.variant, version.version, "holds", sentence, record.run)
    told = " ".join([f"Rolled back: {', '.join(moved)}." if moved else "Nothing was rolled back.", sentence, *stay])
    _announce(tools, version, runner, variant.verdict, told, run)
    if stay:
        raise RegistryError(f"version {version.version} is shown worse. {told}", where=tools.registry.name)
    return Rechecked(version.variant, version.version, outcome, sentence, record.run, tuple(moved))


def _announce(tools: Tools, version: VersionState, runner: Runner, verdict: Verdict, sentence: str, run: str) -> None:
    """Tell whom the recipe names that a version went back, or should have; who cannot be told is noted."""
    told = Told(
        what="rolled_back",
        variant=version.variant,
        version=version.version,
        outcome=verdict.outcome,
        sentence=sentence,
        previous_version=version.version,
        aliases=tools.registry.aliases(),
        verdict=verdict.digest(),
        mlflow_run=run,
    )
    recipe = runner.plan.recipe
    notice = Notice(
        model=tools.registry.name, recipe=recipe.name, run=runner.name, actor=tools.actor, when=now(), decisions=[told]
    )
    announce(recipe.release.notify, notice, tools.watcher.note)


def _demote(tools: Tools, version: VersionState, reason: str, evidence: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Roll back every alias that serves a version: those that moved, and a sentence for each that stays and why."""
    moved, stay = [], []
    for alias in _serving(tools.registry, version):
        note, prove = tools.watcher.note, tools.prove
        try:
            rollback(tools.registry, alias, None, reason, tools.actor, note, prove=prove, evidence=evidence)
            moved.append(alias)
        except Interrupted:
            raise
        except QuantizeError as error:
            stay.append(f"{alias} stays there: {error}")
    return moved, stay


def _shown_worse(verdict: Verdict, kinds: set[str]) -> Finding | None:
    """The first blocking gate (of one of `kinds`) that failed: a proof or a stage that did shows nothing of quality."""
    failed = (f for f in verdict.findings if f.outcome == "fail" and not f.advisory and f.kind in kinds)
    return next(failed, None)


def _outcome(verdict: Verdict, shown: Finding | None) -> tuple[Outcome, str]:
    if shown is not None:
        return "rolled back", shown.sentence
    sentence = " ".join(verdict.reasons()[:1])
    if verdict.outcome == "pass":
        return "holds", sentence
    return ("inconclusive" if verdict.outcome == "inconclusive" else "error"), sentence


def _serving(registry: Registry, version: VersionState) -> list[str]:
    """The aliases that serve a version now: its variant's, then the targets'."""
    versions = known_versions(registry)
    names = (version.variant, *target_names(versions))
    return [name for name in names if alias_map(versions).get(name) == version.version]


def _log(tools: Tools, version: VersionState, runner: Runner, variant: VariantRecord, outcome: Outcome) -> str:
    """An MLflow run of its own, with verdict, evidence, rows and report; returns its id."""
    registry, folder = _as_named(tools.registry, runner.plan.recipe), runner.directory
    tags = {_TAG: version.version, "variant": version.variant, "outcome": outcome, "run": runner.name}
    run = registry.start_run(f"recheck {version.variant} {version.version}", None, tags)
    status = "FAILED"
    try:
        files: Mapping[str, Any] = variant_files(runner, variant)
        papers = [folder / "run.json", folder / RESOLVED, *sorted(folder.glob("report.*"))]
        files = {**files, "": [*files.get("", []), *papers]}
        registry.log(run, variant_params(runner, version.variant), variant_metrics(variant.evidence), files)
        status = "FINISHED"
    finally:
        registry.end_run(run, status)
    return run


def _as_named(registry: Registry, recipe: Recipe) -> Registry:
    """The registry with the recipe's experiment: a command knows the model's name alone."""
    named = {"experiment": recipe.registry.experiment, "artifacts": recipe.registry.artifacts}
    known = {key: value for key, value in named.items() if value is not None}
    return registry.model_copy(update=known) if isinstance(registry, Mlflow) and known else registry


def _told(tools: Tools, version: VersionState, verdict: Verdict, run: str, outcome: Outcome, sentence: str) -> None:
    """An entry in the journal for what moved nothing."""
    event = Event(
        when=now(),
        what="rechecked",
        variant=version.variant,
        version=version.version,
        aliases={},
        against=None,
        actor=tools.actor,
        reason=f"{outcome.capitalize()}: {sentence}",
        verdict=verdict.digest(),
        run=run,
    )
    with settled(tools.registry, tools.watcher.note) as (turn, _):
        tell(turn, event)
