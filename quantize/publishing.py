"""From artifacts to versions: bytes are verified, then registered; what is registered is of one baseline, and ours."""

from __future__ import annotations

import json
from dataclasses import dataclass

from quantize import __version__, faults
from quantize.artifact import Manifest
from quantize.errors import RegistryError
from quantize.plan import Stage
from quantize.promotion import BASELINE
from quantize.proved import ENGINE, engine_tag, loading_tags
from quantize.registry import Registry, VersionState
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.store import read_manifest
from quantize.watcher import in_notes

__all__ = ["Publisher", "check_ours", "is_ours"]


@dataclass(frozen=True, slots=True)
class Publisher:
    """Makes versions of a run's artifacts."""

    registry: Registry
    runner: Runner
    record: RunRecord

    def baseline(self, run: str) -> VersionState:
        """Version 1: the model as given. Raises StoreError, RegistryError."""
        plan = self.runner.plan
        engines = (baseline.engine for baseline in plan.baselines if baseline.engine.form == "checkpoint")
        engine = next(engines, None)
        tags = engine_tag(engine) if engine is not None else {}
        version = self._register(plan.fetch, BASELINE, run, BASELINE, tags)
        faults.point("release.baseline")
        return version

    def variant(self, variant: VariantRecord, run: str, versions: list[VersionState]) -> VersionState:
        """The version that holds a variant's artifact: one of `versions`, or a new one from verified bytes.

        Raises StoreError, RegistryError.
        """
        wanted = variant.verdict.artifact_digest
        way = next(way for way in self.runner.plan.variants if way.variant.name == variant.name)
        tags = loading_tags(self.runner.store, way, run)
        for version in reversed(versions):
            if (version.variant, version.artifact_digest) == (variant.name, wanted):
                if version.tags.get(ENGINE) != tags[ENGINE]:
                    self.registry.tag(version.version, tags)
                return version
        version = self._register(way.quantize, variant.name, run, "registered", tags, wanted)
        faults.point("release.published")
        return version

    def _register(
        self, stage: Stage, variant: str, run: str, state: str, more: dict[str, str], wanted: str | None = None
    ) -> VersionState:
        """Verify a stage's bytes and make a version of its checkpoint. Raises StoreError, RegistryError."""
        self.runner.verify(stage)
        directory = self.runner.store.path(stage.kind, stage.key)
        manifest = read_manifest(directory)
        if manifest is None or (wanted is not None and manifest.checkpoint_digest() != wanted):
            raise RegistryError(
                "the artifact is not the one that the verdict is about.", where=str(directory), fix="Run again."
            )
        tags = {
            "state": state,
            "artifact_digest": manifest.checkpoint_digest(),
            "weight_bytes": str(manifest.weight_bytes()),
            "recipe": self.record.recipe,
            "run": self.record.run,
            "program": f"quantize {__version__}",
            **more,
        }
        progress = in_notes(f"files of {variant}", self.runner.watcher.note)
        return self.registry.publish(directory / "checkpoint", _listing(manifest), variant, run, tags, progress)


def is_ours(version: VersionState) -> bool:
    """Whether this program made a version."""
    return bool(version.variant and version.artifact_digest)


def check_ours(versions: list[VersionState], registry: Registry, runner: Runner) -> None:
    """Refuse a registered model that is somebody else's, or that belongs to another baseline."""
    if versions and not is_ours(versions[0]):
        raise RegistryError(
            f"version {versions[0].version} was not made by quantize.",
            where=f"registered model {registry.name}",
            fix="Choose another registry.name.",
        )
    fetch = runner.plan.fetch
    manifest = read_manifest(runner.store.path(fetch.kind, fetch.key))
    known = versions[0].artifact_digest if versions else ""
    if versions and manifest is not None and manifest.checkpoint_digest() != known:
        raise RegistryError(
            f"its baseline is {known[:12]} and this run's is {manifest.checkpoint_digest()[:12]}.",
            where=f"registered model {registry.name}",
            fix="Another base model needs another registry.name.",
        )


def _listing(manifest: Manifest) -> str:
    """The files of a version with their digests, as `pull` verifies them."""
    rows = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.checkpoint_files()]
    return json.dumps({"version": 1, "digest": manifest.checkpoint_digest(), "files": rows}, indent=1)
