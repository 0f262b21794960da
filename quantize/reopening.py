"""Does a version load: its bytes, verified, in the engine that serves it, in a clean process, before an alias moves.

    bytes     the store's artifact where it has the version's digest and verifies, else fetched as `pull` does
    engine    as the version's tag says, else as its run's recipe does, else what its format needs
    witness   the one that was recorded when it was made: in the store, or in the MLflow run of its verdict, by digest
    proof     the ordinary `prove` stage, never reused: what is asked is whether it loads here and now

The version's bytes are those that were judged, tokenizer included, so its own files stand for the baseline's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from quantize.artifact import Manifest
from quantize.device import Device, choose
from quantize.engines import ENGINES_BY_FORMAT, EngineConfig, Transformers
from quantize.environments import locate
from quantize.errors import DataError, RegistryError, StageFailed
from quantize.executors import Local
from quantize.handed import StageSpec
from quantize.promotion import now
from quantize.proof import Proof
from quantize.proved import ENGINE, WITNESS, Proved, kept_witness
from quantize.pull import pull
from quantize.recipe import Recipe
from quantize.record import digest, file_sha256
from quantize.registry import Registry, VersionState
from quantize.run_record import RESOLVED
from quantize.stages import STAGES
from quantize.store import Store, verify_directory

__all__ = ["engine_of_version", "reopen", "run_folder"]

_ENGINES: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
_ALL_THE_SAME = "name another version with --to, or move all the same with --unproven"


def reopen(
    registry: Registry, version: VersionState, store: Store, device: Device, note: Callable[[str], None]
) -> Proved:
    """Fetch, verify, open and ask a version. Raises RegistryError where it is not what was judged or does not load."""
    where = f"{registry.name} version {version.version}"
    if not version.artifact_digest:
        raise RegistryError("quantize did not make it.", where=where, fix="No alias is moved to it.")
    key = digest({"reopen": version.artifact_digest})
    with store.lease("reopen", key, lambda _owner: note(f"{where} is being opened by another process; waiting")):
        draft = store.draft("reopen", key)
        try:
            target = _bytes(registry, version, store, draft, note)
            engine = engine_of_version(version, store, target / "checkpoint")
            note(f"opening {where} in {engine.kind}")
            recipe = _recipe_of(version, store)
            named = recipe.environments if recipe is not None else {}
            if recipe is not None and recipe.resources.device != "auto":
                device = choose(recipe.resources.device)
            proof = _prove(engine, named, target, draft, device, where)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    sentences = " ".join(proof.sentences)
    if proof.outcome != "pass":
        raise RegistryError(f"it is not served again: {sentences}", where=where, fix=f"Or {_ALL_THE_SAME}.")
    return Proved(engine=engine.kind, artifact=version.artifact_digest, when=now(), sentence=sentences)


def engine_of_version(version: VersionState, store: Store, checkpoint: Path) -> EngineConfig:
    """The engine that a version was measured in, as far as it is written down; else the one that its format needs."""
    try:
        return _ENGINES.validate_json(version.tags.get(ENGINE, ""))
    except ValidationError:
        pass  # an older program made it
    recipe = _recipe_of(version, store)
    engines = [recipe.engine_of(v) for v in recipe.variants if v.name == version.variant] if recipe is not None else []
    return engines[0] if engines else ENGINES_BY_FORMAT.get(_format(checkpoint), Transformers())


def _recipe_of(version: VersionState, store: Store) -> Recipe | None:
    """The recipe of the run that judged a version, where this store has it."""
    path = run_folder(store, version) / RESOLVED
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def run_folder(store: Store, version: VersionState) -> Path:
    """Where this store has the run that judged a version. A tag that is no plain name leads nowhere."""
    name = version.tags.get("run", "")
    plain = name not in ("", ".", "..") and Path(name).name == name
    return store.root / "runs" / (name if plain else "-")


def _format(checkpoint: Path) -> str:
    if (checkpoint / "model.gguf").is_file():
        return "gguf"
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return str(config["quantization_config"]["quant_method"])
    except (OSError, ValueError, KeyError, TypeError):
        return "none"


def _bytes(registry: Registry, version: VersionState, store: Store, draft: Path, note: Callable[[str], None]) -> Path:
    """A folder with the version's `checkpoint` and, where there is one, its `witness`; nothing unverified."""
    target = draft / "target"
    target.mkdir()
    kept = _kept(store, version.artifact_digest)
    if kept is not None:
        for name in ("checkpoint", "witness"):
            if (kept / name).is_dir():
                (target / name).symlink_to(kept / name)
    else:
        note(f"fetching version {version.version}: this store does not hold it")
        pull(registry, version.version, target / "checkpoint")
    if not (target / "witness").exists():
        (target / "witness").mkdir()
        _fetch_witness(registry, version, target / WITNESS)
    return target


def _kept(store: Store, wanted: str) -> Path | None:
    """An artifact of the store that has the version's bytes, every file hashed."""

    def fits(manifest: Manifest) -> bool:
        return manifest.checkpoint_digest() == wanted

    made = ((place, found) for kind in ("quantize", "fetch", "convert") for place, found in store.manifests(kind))
    return next((place for place, found in made if fits(found) and not verify_directory(place, found)), None)


def _fetch_witness(registry: Registry, version: VersionState, out: Path) -> None:
    """The witness from the MLflow run that the version names, if it is the one that was logged."""
    kept = kept_witness(version)
    if kept is None:
        return
    with tempfile.TemporaryDirectory(dir=out.parent.parent) as scratch:
        try:
            found = registry.fetch(kept.run, WITNESS, Path(scratch))
        except DataError:
            return
        if file_sha256(found) != kept.sha256:
            raise RegistryError(
                "its witness is not the one that was recorded.",
                where=f"{registry.name} version {version.version}",
                fix="Look at who can write to the registry's files.",
            )
        shutil.move(found, out)


def _prove(
    engine: EngineConfig, named: Mapping[str, str], target: Path, draft: Path, device: Device, where: str
) -> Proof:
    """The `prove` stage in a store of its own; `named` are the recipe's interpreters. Raises RegistryError."""
    name = engine.environment(device.kind)
    interpreters = {}
    if name is not None:
        found = locate(name, named)
        if found.python is None:
            raise RegistryError(
                f"whether it loads cannot be tried: the environment {name} is not made on this machine.",
                where=where,
                fix=f"Run: {found.command}; or {_ALL_THE_SAME}.",
            )
        interpreters[name] = found.python
    inner, key = Store(draft / "store"), digest({"prove": where})
    spec = StageSpec(
        kind="prove",
        name=where,
        key=key,
        version=STAGES["prove"].version,
        config={"engine": engine.model_dump(mode="json", by_alias=True)},
        inputs={"quantized": target, "model": target},
        input_keys={},
        libraries=() if engine.hosted else engine.libraries,
        device=device.kind,
        interpreters=interpreters,
        environment=name if engine.hosted else None,
    )
    try:
        with inner.lease("prove", key, lambda _owner: None) as lease:
            Local().run(spec, inner.root, draft / "prove.log", lambda _what, _done, _total: None, lease)
    except StageFailed as error:
        tail = f" ({error.tail.strip().splitlines()[-1][:300]})" if error.tail.strip() else ""
        raise RegistryError(
            f"it could not be opened: {error.what}{tail}", where=where, fix=f"Or {_ALL_THE_SAME}."
        ) from None
    return Proof.model_validate_json((inner.path("prove", key) / "proof.json").read_text(encoding="utf-8"))
