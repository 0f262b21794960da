"""From verdicts to decisions, and from decisions to versions and aliases.

The order of a promotion, each step idempotent, so that the next run finishes what a crash left:

    publish    the artifact's digests are recomputed from bytes, then it becomes a version (`registered`)
    judged     the version is tagged with the verdict: passed, rejected, inconclusive or error
    candidate  <variant>-candidate   <- the version
    previous   <variant>-previous    <- the champion that is about to go (the baseline, where there was none)
    champion   <variant>             <- the version, and read back
    targets    each deployment target <- the best champion of its variants
    decided    the version is tagged with the digest of the verdict: from here on there is nothing left to do

A verdict that is already on a version is not decided again: an unchanged recipe costs two questions to the registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quantize import __version__, faults
from quantize.artifact import Manifest
from quantize.errors import RegistryError
from quantize.evidence import Measurement
from quantize.plan import Stage
from quantize.protocols import Registry, VersionState
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.store import read_manifest
from quantize.verdict import Action, Decision, Outcome, Verdict

__all__ = ["BASELINE", "release_run"]

BASELINE = "baseline"
_STATES: dict[Outcome, str] = {"pass": "passed", "fail": "rejected", "inconclusive": "inconclusive", "error": "error"}
_ACTIONS: dict[Outcome, Action] = {"pass": "promote", "fail": "reject", "inconclusive": "hold", "error": "reject"}
Report = Callable[[RunRecord], str]


def release_run(registry: Registry, runner: Runner, record: RunRecord, report: Report) -> RunRecord:
    """Decide what is new in `record` and carry it out. Returns the record with its new decisions, and writes it."""
    versions = registry.versions()
    _check_ours(versions, registry, runner)
    pending = [
        variant for variant in record.variants if variant.verdict.artifact_digest and not _decided(variant, versions)
    ]
    if pending:
        record = _Release(registry, runner, record, versions).carry_out(pending)
    text = report(record)
    (runner.directory / "report.md").write_text(text, encoding="utf-8")
    runner.write(record)
    return record


@dataclass
class _Release:
    """One release: the registry as it was found, and what it became."""

    registry: Registry
    runner: Runner
    record: RunRecord
    versions: list[VersionState]

    def carry_out(self, pending: list[VariantRecord]) -> RunRecord:
        """Open the runs, promote or reject each pending variant, move the targets, record the decisions."""
        aliases = self.registry.aliases()
        parent = self.registry.start_run(self.record.run, None, {"recipe": self.record.recipe})
        recipe = [self.runner.directory / "recipe.yaml"]
        self.registry.log(parent, self._parameters(), {}, {"": recipe})
        baseline = self._baseline(parent, pending)
        decisions: dict[str, tuple[Decision, str]] = {}
        for variant in pending:
            run = self._child(parent, variant)
            version = self._publish(variant, run)
            decision = self._decide(variant, version, run, aliases, baseline)
            decisions[variant.name] = (decision, run)
        moved = self._targets(aliases, baseline)
        variants = []
        for variant in self.record.variants:
            if variant.name not in decisions:
                variants.append(variant)
                continue
            decision, run = decisions[variant.name]
            mine = {alias: version for alias, version in moved.items() if version == decision.model_version}
            decision = decision.model_copy(
                update={
                    "aliases": {**decision.aliases, **mine},
                    "sentence": decision.sentence + "".join(f" {alias} now points at it." for alias in mine),
                }
            )
            variants.append(variant.model_copy(update={"decision": decision}))
            self._record(decision, run)
        self.registry.end_run(parent, "FINISHED")
        return self.record.model_copy(update={"variants": variants})

    def _baseline(self, parent: str, pending: list[VariantRecord]) -> str:
        """The baseline's child run, and version 1 if there is none yet; returns its version."""
        measured = next((v.evidence.baseline_measurements for v in pending if v.evidence is not None), [])
        run = self.registry.start_run(BASELINE, parent, {"variant": BASELINE, "run": self.record.run})
        self.registry.log(run, {}, _metrics(measured), {})
        if not self.versions:
            manifest = self._verified(self.runner.plan.fetch)
            tags = {
                "state": "baseline",
                "artifact_digest": manifest.checkpoint_digest(),
                "weight_bytes": str(manifest.weight_bytes()),
                "program": f"quantize {__version__}",
            }
            checkpoint = self._checkpoint(self.runner.plan.fetch)
            self.versions.append(self.registry.publish(checkpoint, _listing(manifest), BASELINE, run, tags))
            faults.point("release.baseline_published")
        self.registry.end_run(run, "FINISHED")
        return self.versions[0].version

    def _child(self, parent: str, variant: VariantRecord) -> str:
        """A child run with the variant's parameters, measurements and rows."""
        run = self.registry.start_run(variant.name, parent, {"variant": variant.name, "run": self.record.run})
        store = self.runner.store
        files: dict[str, list[Path]] = {}
        for label, key in variant.stages.items():
            kind = label.split(".")[0]
            if kind == "evaluate":
                files[f"rows/{label.partition('.')[2]}"] = [store.path(kind, key) / "rows.parquet"]
            elif kind == "judge":
                files[""] = [store.path(kind, key) / name for name in ("verdict.json", "evidence.json")]
        config = next(way.variant for way in self.runner.plan.variants if way.variant.name == variant.name)
        params = {key: json.dumps(value) for key, value in config.model_dump(mode="json").items()}
        self.registry.log(run, params, _metrics(variant.evidence.measurements if variant.evidence else []), files)
        return run

    def _publish(self, variant: VariantRecord, run: str) -> VersionState:
        """The version that holds the variant's artifact: the one there is, or a new one from verified bytes."""
        digest = variant.verdict.artifact_digest
        for version in reversed(self.versions):
            if version.variant == variant.name and version.artifact_digest == digest:
                return version
        stage = next(way.quantize for way in self.runner.plan.variants if way.variant.name == variant.name)
        manifest = self._verified(stage)
        tags = {
            "state": "registered",
            "artifact_digest": digest,
            "weight_bytes": str(manifest.weight_bytes()),
            "program": f"quantize {__version__}",
        }
        version = self.registry.publish(self._checkpoint(stage), _listing(manifest), variant.name, run, tags)
        self.versions.append(version)
        faults.point("release.published")
        return version

    def _decide(
        self, variant: VariantRecord, version: VersionState, run: str, aliases: dict[str, str], baseline: str
    ) -> Decision:
        """Tag the version with its verdict and, if it passed, make it the champion. `aliases` is kept up to date."""
        verdict = variant.verdict
        action = _ACTIONS[verdict.outcome]
        champion = aliases.get(variant.name)
        reason = " ".join(verdict.reasons()[:1])
        tags = {"run": self.record.run, "outcome": verdict.outcome, "lower": str(_lower(verdict))}
        if version.state == "rolled_back":
            action = "hold"
            sentence = (
                f"Held: version {version.version} was rolled back before; `quantize promote --force` overrides that."
            )
            self.registry.tag(version.version, tags)
        elif action == "promote":
            self._promote(variant.name, version.version, tags, aliases, baseline)
            replaced = champion if champion not in (None, version.version) else None
            instead = f", replacing version {replaced}" if replaced else ""
            sentence = f"Promoted: version {version.version} is the champion of {variant.name}{instead}. {reason}"
        else:
            kept = _STATES[verdict.outcome] if champion != version.version else version.state
            self.registry.tag(version.version, {**tags, "state": kept})
            still = " It stays the champion until it is rolled back." if champion == version.version else ""
            word = "Held" if action == "hold" else "Rejected"
            sentence = f"{word}: version {version.version}. {reason}{still}"
        faults.point("release.judged")
        names = (variant.name, f"{variant.name}-previous", f"{variant.name}-candidate")
        return Decision(
            variant=variant.name,
            action=action,
            outcome=verdict.outcome,
            sentence=sentence,
            verdict_digest=verdict.digest(),
            artifact_digest=verdict.artifact_digest,
            model=self.registry.name,
            model_version=version.version,
            previous_version=champion,
            aliases={alias: aliases[alias] for alias in names if alias in aliases},
            decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
            actor=self.record.actor,
            run=run,
        )

    def _promote(self, name: str, version: str, tags: dict[str, str], aliases: dict[str, str], baseline: str) -> None:
        """The steps of a promotion, in the order that the module describes."""
        self.registry.tag(version, {**tags, "state": "passed"})
        faults.point("release.passed")
        steps = [(f"{name}-candidate", version)]
        champion = aliases.get(name)
        if champion != version:
            steps += [(f"{name}-previous", champion or baseline), (name, version)]
        for alias, wanted in steps:
            if aliases.get(alias) != wanted:
                self.registry.set_alias(alias, wanted)
                aliases[alias] = wanted
            faults.point("release.alias_moved")
        if champion is not None and champion != version and self._state(champion) == "promoted":
            self.registry.tag(champion, {"state": "superseded"})
        self.registry.tag(version, {"state": "promoted"})
        faults.point("release.promoted")

    def _targets(self, aliases: dict[str, str], baseline: str) -> dict[str, str]:
        """Point each target at the best promoted champion of its variants; returns the aliases that moved."""
        now = {version.version: version for version in self.registry.versions()}
        moved = {}
        for target, rule in self.registry.targets.items():
            champions = [now[aliases[name]] for name in rule.from_ if aliases.get(name) in now]
            fit = [version for version in champions if version.state == "promoted"]
            best = min(fit, key=lambda v: _preference(v, rule.prefer)).version if fit else baseline
            if aliases.get(target) == best:
                continue
            self.registry.set_alias(f"{target}-previous", aliases.get(target, baseline))
            faults.point("release.target_previous_moved")
            self.registry.set_alias(target, best)
            faults.point("release.target_moved")
            aliases[target] = moved[target] = best
        return moved

    def _record(self, decision: Decision, run: str) -> None:
        """Log the decision and tag the version as decided, last of all."""
        self.registry.log_decision(run, decision)
        self.registry.end_run(run, "FINISHED")
        faults.point("release.logged")
        if decision.model_version is not None:
            self.registry.tag(
                decision.model_version,
                {
                    "decided_at": decision.decided_at,
                    "actor": decision.actor,
                    "sentence": decision.sentence,
                    "decided": decision.verdict_digest,
                },
            )
        faults.point("release.decided")

    def _parameters(self) -> dict[str, str]:
        return {
            "recipe": self.record.recipe,
            "recipe_digest": self.record.recipe_digest,
            "device": self.record.device,
            "program": self.record.program,
        }

    def _verified(self, stage: Stage) -> Manifest:
        """The manifest of a stage whose every byte was just read and found as it says."""
        self.runner.verify(stage)
        manifest = read_manifest(self.runner.store.path(stage.kind, stage.key))
        if manifest is None:
            raise RegistryError("the artifact vanished.", where=stage.label, fix="Run again.")
        return manifest

    def _checkpoint(self, stage: Stage) -> Path:
        return self.runner.store.path(stage.kind, stage.key) / "checkpoint"

    def _state(self, version: str) -> str:
        return next((known.state for known in self.versions if known.version == version), "")


def _decided(variant: VariantRecord, versions: list[VersionState]) -> bool:
    digest = variant.verdict.digest()
    return any(v.variant == variant.name and v.tags.get("decided") == digest for v in versions)


def _check_ours(versions: list[VersionState], registry: Registry, runner: Runner) -> None:
    """Refuse a registered model that is somebody else's, or that belongs to another baseline."""
    if not versions:
        return
    first = versions[0]
    if first.variant != BASELINE:
        raise RegistryError(
            f"version {first.version} was not made by quantize.",
            where=registry.name,
            fix="Choose another registry.name.",
        )
    fetch = runner.plan.fetch
    manifest = read_manifest(runner.store.path(fetch.kind, fetch.key))
    if manifest is not None and manifest.checkpoint_digest() != first.artifact_digest:
        raise RegistryError(
            f"its baseline is {first.artifact_digest[:12]} and this run's is {manifest.checkpoint_digest()[:12]}.",
            where=registry.name,
            fix="Another base model needs another registry.name.",
        )


def _listing(manifest: Manifest) -> str:
    """The files of a version with their digests, as `pull` verifies them."""
    rows = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.checkpoint_files()]
    return json.dumps({"version": 1, "digest": manifest.checkpoint_digest(), "files": rows}, indent=1)


def _metrics(measurements: list[Measurement]) -> dict[str, float]:
    found = {}
    for m in measurements:
        found[m.name] = m.value
        if m.low is not None and m.high is not None:
            found |= {f"{m.name}.low": m.low, f"{m.name}.high": m.high}
    return found


def _lower(verdict: Verdict) -> float:
    """The lower limit of the first finding that has one; what `prefer: quality` ranks by."""
    lowers = [f.numbers["lower"] for f in verdict.findings if f.numbers.get("lower") is not None]
    return float(lowers[0] or 0.0) if lowers else -1.0


def _preference(version: VersionState, prefer: str) -> float:
    return float(version.tags["weight_bytes"]) if prefer == "bytes" else -float(version.tags.get("lower", "-1"))
