"""What `quantize compare` can be given: names of variants, runs and registered versions, and where their rows lie.

RUN:VARIANT     a variant (or `baseline`) of a run: its folder, its name, or `latest`
VARIANT         the same of the latest run
NAME@ALIAS      what an alias in the registry points at; NAME@VERSION a version by its number
RUN             all variants of a run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import QuantizeError, RegistryError, StoreError, UsageError
from quantize.evidence import ArmMeasurements, Evidence, of_eval
from quantize.history import known_versions
from quantize.promotion import BASELINE, alias_map
from quantize.registry import Registry, VersionState
from quantize.run import RunRecord
from quantize.store import Store

__all__ = ["Arm", "Places", "arms_of", "pairs_of"]

_STAGE = "evaluate."


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm by its name: its evals, the folder with the rows of each, and whether it answered all of it.

    `folder` and `complete` raise QuantizeError where the rows are gone. `engine` is the kind that answered, empty where
    that is not known; `run` the run that it is of, and `baseline` what tells the baseline's stages in its engine.
    """

    name: str
    variant: str
    evals: tuple[str, ...]
    folder: Callable[[str], Path]
    complete: Callable[[str], bool]
    engine: str = ""
    run: str = ""
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where arms are looked for. `scratch` is a folder for what is fetched.

    `run` reads the record of a run by its folder, its name or `latest`; raises QuantizeError naming those there are.
    """

    store: Store
    run: Callable[[str], RunRecord]
    registry: Callable[[str], Registry]
    scratch: Path


def pairs_of(first: str, second: str, places: Places) -> list[tuple[Arm, Arm]]:
    """The arms to compare: two, or those that two runs share by name. Raises QuantizeError."""
    one, other = arms_of(first, places), arms_of(second, places)
    if isinstance(one, Arm) and isinstance(other, Arm):
        return [(_beside(one, other, places), _beside(other, one, places))]
    if isinstance(one, Arm) or isinstance(other, Arm):
        run, arm = (second, first) if isinstance(one, Arm) else (first, second)
        raise UsageError(f"{run!r} is a whole run and {arm!r} one arm: write {run}:VARIANT, or give two runs.")
    shared = [(arm, match) for arm in one for match in other if arm.variant == match.variant]
    if not shared:
        names = [", ".join(arm.variant for arm in arms) or "none" for arms in (one, other)]
        raise UsageError(f"the runs share no measured variant ({first}: {names[0]}; {second}: {names[1]}).")
    return shared


def _beside(arm: Arm, other: Arm, places: Places) -> Arm:
    """Of a run's baseline, that in the engine of the variant that it is compared with; any other arm as it is."""
    if arm.variant != BASELINE or not arm.run or arm.run != other.run:
        return arm
    return _of_run(places.run(arm.run), BASELINE, places, other.baseline)


def arms_of(text: str, places: Places) -> Arm | list[Arm]:
    """One arm, or for a whole run all its variants that were measured."""
    if (Path(text) / "run.json").is_file() or text == "latest":
        return _all_of(places.run(text), places)
    name, at, which = text.rpartition("@")
    if at:
        return _registered(name, which, places)
    run, colon, variant = text.rpartition(":")
    if colon:
        return _of_run(places.run(run), variant, places)
    return _bare(text, places)


def _bare(text: str, places: Places) -> Arm | list[Arm]:
    """A variant of the latest run, else a run."""
    missing: QuantizeError
    try:
        latest = places.run("latest")
    except QuantizeError as error:
        missing = error
    else:
        names = _names(latest)
        if text in names:
            return _of_run(latest, text, places)
        missing = UsageError(f"the latest run, {latest.run}, has no {text!r} (it has {', '.join(names)}).")
    try:
        record = places.run(text)
    except QuantizeError as error:
        raise UsageError(f"{missing} As a run: {error}") from None
    return _all_of(record, places)


def _all_of(record: RunRecord, places: Places) -> list[Arm]:
    measured = [v.name for v in record.variants if any(label.startswith(_STAGE) for label in v.stages)]
    return [_of_run(record, name, places) for name in measured]


def _names(record: RunRecord) -> list[str]:
    return [BASELINE, *(variant.name for variant in record.variants)]


def _of_run(record: RunRecord, name: str, places: Places, baseline: str = "") -> Arm:
    """An arm of a run. Of several engines that the baseline was measured in, `baseline` names one, else the first."""
    if name not in _names(record):
        raise UsageError(f"it has no {name!r} (it has {', '.join(_names(record))}).", where=f"run {record.run}")
    variant = next((variant for variant in record.variants if variant.name == name), None)
    suffix = variant.baseline if variant is not None else baseline
    stages = variant.stages if variant is not None else record.stages_of_baseline(suffix)
    engine = variant.engine if variant is not None else _engine_of_baseline(record, suffix)
    keys = {label.removeprefix(_STAGE): key for label, key in stages.items() if label.startswith(_STAGE)}
    if not keys:
        reasons = " ".join(variant.verdict.reasons()) if variant is not None else ""
        raise UsageError(f"{name} was not measured. {reasons}".rstrip(), where=f"run {record.run}")

    def folder(name: str) -> Path:
        if places.store.find("evaluate", keys[name]) is None:
            where = str(places.store.path("evaluate", keys[name]))
            raise StoreError("the rows are gone.", where=where, fix="Name the run's own --store, or run it again.")
        return places.store.path("evaluate", keys[name])

    def complete(name: str) -> bool:
        text = (folder(name) / "measurements.json").read_text(encoding="utf-8")
        progressed = ArmMeasurements.model_validate_json(text).progressed
        return progressed is None or progressed.answered == progressed.items

    return Arm(f"{record.run}:{name}", name, tuple(keys), folder, complete, engine, record.run, suffix)


def _engine_of_baseline(record: RunRecord, suffix: str) -> str:
    return next((variant.engine for variant in record.variants if variant.baseline == suffix), "")


def _registered(name: str, which: str, places: Places) -> Arm:
    registry = places.registry(name)
    versions = known_versions(registry)
    number = alias_map(versions).get(which, which)
    version = next((version for version in versions if version.version == number), None)
    if version is None:
        aliases = ", ".join(sorted(alias_map(versions)))
        numbers = ", ".join(version.version for version in versions)
        raise RegistryError(f"there is no {which!r} (aliases: {aliases}; versions: {numbers}).", where=name)
    run = version.tags.get("evidence_run")
    if not run:
        raise RegistryError(
            f"version {number} ({version.variant}) was never measured, or before rows were kept.", where=name
        )
    return _fetched(f"{name}@{which}", version, run, registry, versions, places.scratch)


def _fetched(
    name: str, version: VersionState, run: str, registry: Registry, versions: Sequence[VersionState], scratch: Path
) -> Arm:
    """An arm whose files come from the MLflow run of its verdict, each when it is asked for."""
    evidence = _evidence(registry, version, versions, scratch)
    evals = tuple(dict.fromkeys(m.name.partition(".")[0] for m in evidence.measurements if of_eval(m.name)))

    def folder(eval_name: str) -> Path:
        held = scratch / run
        path = held / "rows" / eval_name
        if not (path / "rows.parquet").is_file():
            held.mkdir(exist_ok=True)
            return registry.fetch(run, f"rows/{eval_name}/rows.parquet", held).parent
        return path

    def complete(eval_name: str) -> bool:
        progressed = None if version.variant == BASELINE else evidence.progressed.get(eval_name)
        return progressed is None or progressed.answered == progressed.items

    return Arm(name, version.variant, evals, folder, complete, version.tags.get("measured_on", "").partition(" on ")[0])


def _evidence(registry: Registry, version: VersionState, versions: Sequence[VersionState], scratch: Path) -> Evidence:
    """What was measured of a version; of the baseline, which has no verdict, what the last variant beside it was."""
    beside = [v for v in versions if v.variant != BASELINE] if version.variant == BASELINE else [version]
    for one in reversed(beside):
        run = one.tags.get("evidence_run")
        if run:
            (scratch / run).mkdir(exist_ok=True)
            path = registry.fetch(run, "evidence.json", scratch / run)
            try:
                return Evidence.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError:
                raise RegistryError(
                    f"the evidence of version {one.version} was written by another version of this program.",
                    where=registry.name,
                    fix="Run its recipe again.",
                ) from None
    raise RegistryError(f"nothing was measured beside version {version.version}.", where=registry.name)
