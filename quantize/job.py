"""The job: a recipe's path in, a record and an exit code out. What the command line, and anything else, calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from quantize.announcing import tell_release
from quantize.artifact import ModelFacts
from quantize.attempts import Ledger
from quantize.device import Device, choose, gpus
from quantize.environments import create, locate
from quantize.errors import Interrupted, RecipeError, RegistryAway, RegistryError, UsageError
from quantize.plan import Plan
from quantize.planner import chosen_variants, make_plan, needed_environments
from quantize.preflight import Estimate, Preflight, attempts_of, check, estimates
from quantize.recipe import LoadedRecipe, load
from quantize.record import digest
from quantize.registries import SUFFIX, Mlflow
from quantize.registry import Registry, VersionState
from quantize.release import Report, keep, release_run
from quantize.run import RUN, Runner, RunRecord, exit_code
from quantize.sharing import Cost, Sharing, at_once
from quantize.sources import config_facts, read_config
from quantize.store import Store
from quantize.watcher import Watcher

__all__ = ["Preview", "execute", "named_registry", "open_registry", "preview"]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do. `plan` is None when planned from a config alone: then nothing has a key yet."""

    loaded: LoadedRecipe
    device: Device
    facts: ModelFacts
    preflight: Preflight
    plan: Plan | None
    estimates: tuple[Estimate, ...]


def preview(
    path: Path, overrides: tuple[str, ...], only: tuple[str, ...], store_path: Path, config: Path | None
) -> Preview:
    """Load, plan and check a recipe without running anything."""
    loaded = load(path, overrides)
    device = choose(loaded.recipe.resources.device)
    if config is not None:
        facts = config_facts(read_config(config))
        plan = None
    else:
        plan = make_plan(loaded, device, only)
        facts = loaded.recipe.model.facts()
    variants = tuple(chosen_variants(loaded.recipe, only))
    attempts = attempts_of(plan, Store(store_path)) if plan is not None else {}
    preflight = check(loaded.recipe, facts, device, store_path, variants, attempts)
    costs = tuple(estimates(plan, facts, Store(store_path))) if plan is not None else ()
    return Preview(loaded, device, facts, preflight, plan, costs)


def execute(
    path: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    store_path: Path,
    watcher: Watcher,
    *,
    release: bool,
    create_environments: bool = False,
    report: Report,
) -> tuple[RunRecord, int]:
    """Run a recipe to its decisions. Returns the record, as written to the run's folder, and the exit code.

    `create_environments` makes those that are missing first; `report` makes the files that are kept beside the
    record, released or not.
    """
    loaded = load(path, overrides)
    recipe = loaded.recipe
    device = choose(recipe.resources.device)
    if create_environments:
        variants = tuple(chosen_variants(recipe, only))
        before = check(recipe, recipe.model.facts(), device, store_path, variants, environments=False, release=release)
        if before.problems:  # said before gigabytes are fetched
            raise RecipeError([f"{path}: {problem}" for problem in before.problems])
        for name in needed_environments(recipe, variants, device.kind):
            if locate(name, recipe.environments).python is None:
                create(name, watcher.note)
    plan = make_plan(loaded, device, only)
    store = Store(store_path)
    registry = open_registry(recipe.registry, store.root)
    if any(store.find(stage.kind, stage.key) is None for stage in plan.stages()):
        variants = tuple(way.variant for way in plan.variants)
        attempts = attempts_of(plan, store)
        preflight = check(recipe, recipe.model.facts(), device, store.root, variants, attempts, release=release)
        if preflight.problems:
            raise RecipeError([f"{path}: {problem}" for problem in preflight.problems])
    ledger = Ledger.of(store, _versions(registry, watcher))
    runner = Runner(loaded, plan, store, recipe.resources.executor, watcher, ledger, sharing=_sharing(plan, store))
    with store.lease(RUN, digest(runner.name), lambda _owner: None):
        try:
            record = runner.measure()
        finally:
            watcher.close()
        if not release:
            keep(runner, record, report)
            return record, exit_code([variant.verdict.outcome for variant in record.variants])
        record = tell_release(runner, _released(registry, runner, record, report), registry.name)
    decided = [v.verdict.outcome for v in record.variants if v.decision is not None or v.evidence is None]
    stale = any(v.decision is not None and v.decision.action == "stale" for v in record.variants)
    return record, exit_code(decided) or (Interrupted.exit_code if stale else 0)


def _sharing(plan: Plan, store: Store) -> Sharing | None:
    """How the stages share this machine, or what they ask of others; None where they run one after the other."""
    resources, device = plan.recipe.resources, plan.device
    alone = at_once(resources, device, gpus()) == 1 and resources.stages in (None, 1)
    if alone and not resources.executor.remote:
        return None
    costs = {
        cost.stage.label: Cost(0.0 if cost.cached else cost.seconds, cost.memory)
        for cost in estimates(plan, plan.recipe.model.facts(), store)
    }
    return Sharing.of(plan, resources, gpus(), choose("cpu").memory, costs)


def _released(registry: Registry, runner: Runner, record: RunRecord, report: Report) -> RunRecord:
    """Release, or say where lies what was measured, with its report beside it.

    Raises Interrupted where the registry is away: the same command does the rest. RegistryError where it refuses.
    """
    try:
        return release_run(registry, runner, record, report)
    except RegistryError as error:
        if not any(runner.directory.glob("report.*")):
            keep(runner, record, report)
        fix = f"{error.fix or ''} What was measured lies in {runner.directory} and is not measured again.".strip()
        kind = Interrupted if isinstance(error, RegistryAway) else RegistryError
        raise kind(error.what, where=error.where, fix=fix) from error


def _versions(registry: Registry, watcher: Watcher) -> list[VersionState]:
    """What the registry knows of earlier attempts. It may be away now: the release looks again before it promotes."""
    try:
        return registry.versions()
    except RegistryError as error:
        watcher.note(f"the registry does not answer, so earlier attempts are known from this store alone: {error}")
        return []


def named_registry(model: str, uri: str | None, store: Path) -> Registry:
    """The registry of a model by its name. Raises UsageError for what cannot be one."""
    try:
        config = Mlflow(name=model, uri=uri)
    except ValidationError:
        raise UsageError(
            f"{model!r} cannot be a model's name: letters, digits, '.', '_' and '-' only, and no {SUFFIX!r} at the end."
        ) from None
    return open_registry(config, store)


def open_registry(config: Mlflow, store: Path) -> Registry:
    """The registry of a recipe. Without `uri`: MLFLOW_TRACKING_URI, else a database inside the store."""
    embedded = f"sqlite:///{store.absolute()}/mlflow.db"
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded
    return config.model_copy(
        update={"uri": uri, "artifacts": config.artifacts or str(store.absolute() / "mlartifacts")}
    )
