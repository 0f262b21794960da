"""What a promoted version is handed over with: how to serve it, in each engine that does, made from what was judged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantize.errors import RegistryError
from quantize.plan import VariantPlan
from quantize.record import digest, file_sha256
from quantize.registry import Registry, VersionState
from quantize.run import Runner
from quantize.serving import Served, describe, pick_draft, write_serving
from quantize.store import read_manifest, writing

__all__ = ["SERVING", "fetch_serving", "hand_over", "serving_tags"]

#: The folder of these files, in a run's folder and in the MLflow run of the version's verdict.
SERVING = "serving"
_DIGEST = "serving_digest"
_RUNNABLE = 0o755


def serving_tags(paths: Sequence[Path]) -> dict[str, str]:
    """The tag of a version by which its serving files are known again."""
    return {_DIGEST: _digest(paths)}


def fetch_serving(registry: Registry, version: VersionState, out: Path) -> None:
    """Lay the files of a version that was promoted into `out`/serving. Raises RegistryError for others than those."""
    wanted, run = version.tags.get(_DIGEST), version.tags.get("evidence_run")
    if not wanted or not run:
        return
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        fetched = registry.fetch(run, SERVING, Path(scratch))
        paths = list(fetched.iterdir())
        if any(path.is_symlink() or not path.is_file() for path in paths) or _digest(paths) != wanted:
            raise RegistryError(
                "its serving files are not those that were written for it.",
                where=f"{registry.name} version {version.version}",
                fix="Do not run them, and look at who can write to the registry's files.",
            )
        shutil.copytree(fetched, out / SERVING)
    for path in (out / SERVING).glob("*.sh"):
        path.chmod(_RUNNABLE)


def _digest(paths: Sequence[Path]) -> str:
    return digest({path.name: file_sha256(path) for path in paths})


def hand_over(
    runner: Runner, variant: str, name: str, versions: Mapping[str, str], pages: Mapping[str, str]
) -> list[Path]:
    """Write the files for a variant of the registered model `name` into the run's folder; returns where they lie.

    They name versions by number, because an alias moves on. `versions` has this variant's, and those of the variants
    that were promoted in the same run: one that is less than half as large becomes its draft. `pages` lie beside.
    """
    known = {
        way.variant.name: _served(runner, way, name, versions[way.variant.name])
        for way in runner.plan.variants
        if way.variant.name in versions
    }
    served = known[variant]
    engine = next(way.baseline.engine for way in runner.plan.variants if way.variant.name == variant)
    texts = write_serving(
        served,
        gpu=runner.plan.device if runner.plan.device.kind == "cuda" else None,
        draft=pick_draft(served, known.values()),
        dtype=getattr(engine, "dtype", "auto"),
        kv_cache=getattr(engine, "kv_cache_dtype", "auto"),
    )
    folder = runner.directory / SERVING / variant
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for file, text in {**texts, **pages}.items():
            path = folder / file
            path.write_text(text, encoding="utf-8")
            path.chmod(_RUNNABLE if path.suffix == ".sh" else 0o644)
            paths.append(path)
    return paths


def _served(runner: Runner, way: VariantPlan, name: str, version: str) -> Served:
    """The artifact of a variant as those who serve it see it."""
    directory = runner.store.path("quantize", way.quantize.key)
    manifest = read_manifest(directory)
    weights = manifest.weight_bytes() if manifest is not None else 0
    variant = way.variant
    scheme = variant.resolved_scheme()
    return describe(directory / "checkpoint", name, version, variant.method.format, scheme, weights)
