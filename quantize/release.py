"""From verdicts to decisions, and from decisions to versions and aliases.

The order of a release, each step idempotent, so that the next run finishes what a crash left:

    settle      a turn begins: what an earlier one left half done is finished or undone
    publish     the artifact's digests are recomputed from bytes, then it becomes a version (`registered`)
    verdict     the version is tagged with its verdict: passed, rejected, inconclusive or error
    promote     a transaction: candidate, previous, champion; or `stale`, where the champion is another one by now
    targets     a transaction for each deployment target that moves to the best champion of its variants
    kept        the decision is logged to MLflow, and the run's record and report are on disk
    decided     the version is tagged with the digest of the verdict: from here on there is nothing left to do

A verdict that a version was already decided by is not decided again: an unchanged recipe costs a few questions to the
registry and takes no lock. A stale one is: the next run decides it against the champion that it finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from quantize import __version__, faults
from quantize.artifact import Manifest
from quantize.challenge import Challenge
from quantize.decided import verdict_tags
from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.handover import SERVING, hand_over, serving_tags
from quantize.journal import Event
from quantize.plan import Stage
from quantize.promotion import BASELINE, alias_map, champion_moves, now, target_moves
from quantize.protocols import Registry
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.runlog import (
    baseline_files,
    baseline_metrics,
    parent_params,
    variant_files,
    variant_metrics,
    variant_params,
)
from quantize.store import read_manifest, writing
from quantize.transaction import Stale, settled, tell, transact, unsettled
from quantize.turn import Turn
from quantize.verdict import Action, Decision, Outcome

__all__ = ["BASELINE", "release_run"]

_STATES: dict[Outcome, str] = {"pass": "passed", "fail": "rejected", "inconclusive": "inconclusive", "error": "error"}
_ACTIONS: dict[Outcome, Action] = {"pass": "promote", "fail": "reject", "inconclusive": "hold", "error": "reject"}
_DONE: dict[Action, str] = {"promote": "promoted", "reject": "rejected", "hold": "held", "stale": "stale"}
Report = Callable[[RunRecord], str]


def release_run(registry: Registry, runner: Runner, record: RunRecord, report: Report | None = None) -> RunRecord:
    """Decide what is new in `record` and carry it out. Returns the record with its new decisions, and writes it.

    `report` makes the Markdown that is kept beside the record. Raises RegistryError, or StoreError for an artifact
    whose bytes are not its manifest's; the same run again finishes what was begun.
    """
    versions = registry.versions()
    _check_ours(versions, registry, runner)
    if (
        not _fresh(record, versions)
        and not set(registry.targets) - set(alias_map(versions))
        and not unsettled(registry)
    ):
        _keep(runner, record, report)
        return record
    with settled(registry, runner.watcher.note) as (turn, _):
        versions = registry.versions()
        _check_ours(versions, registry, runner)
        for number in (version.version for version in versions if not _is_ours(version)):
            runner.watcher.note(f"version {number} of {registry.name} was not made by quantize: it is left alone")
        release = _Release(registry, runner, record, versions, turn)
        fresh = _fresh(record, versions)
        if not fresh:
            if versions:
                release.point_targets(set())
            _keep(runner, record, report)
            return record
        try:
            record = release.carry_out(fresh)
            _keep(runner, record, report)
            faults.point("release.kept")
            release.conclude()
        except BaseException:
            release.abandon()
            raise
    return record


@dataclass
class _Release:
    """One release: the registry as it was found, the MLflow runs that are open, and what was decided."""

    registry: Registry
    runner: Runner
    record: RunRecord
    versions: list[VersionState]
    turn: Turn
    parent: str = ""
    open: list[str] = field(default_factory=list)
    decided: list[tuple[VersionState, Decision]] = field(default_factory=list)

    def carry_out(self, fresh: list[VariantRecord]) -> RunRecord:
        """Publish, promote or reject each fresh variant, move the targets; returns the record with its decisions."""
        self.parent = self._start(self.record.run, {"recipe": self.record.recipe})
        recipe = [self.runner.directory / "recipe.yaml"]
        self.registry.log(self.parent, parent_params(self.runner, self.record), {}, {"": recipe})
        faults.point("release.started")
        self._baseline(fresh)
        for variant in fresh:
            run = self._start(variant.name, {"variant": variant.name, "outcome": variant.verdict.outcome})
            files = variant_files(self.runner, variant)
            params = variant_params(self.runner, variant.name)
            self.registry.log(run, params, variant_metrics(variant.evidence), files)
            version = self._publish(variant, run)
            self.decided.append((version, self._decide(variant, version, run)))
        self._hand_over()
        promoted = {decision.variant for _, decision in self.decided if decision.action == "promote"}
        self.point_targets(promoted)
        faults.point("release.targets")
        aliases = self.registry.aliases()
        targets = tuple(self.registry.targets)
        self.decided = [(version, _with_aliases(decision, aliases, targets)) for version, decision in self.decided]
        decisions = {decision.variant: decision for _, decision in self.decided}
        variants = [v.model_copy(update={"decision": decisions.get(v.name)}) for v in self.record.variants]
        for decision in decisions.values():
            self.registry.log_decision(decision.run, decision)
        faults.point("release.logged")
        return self.record.model_copy(update={"variants": variants})

    def conclude(self) -> None:
        """Log the record and the report, close the runs, and tag the versions as decided, last of all."""
        kept = [self.runner.directory / name for name in ("run.json", "report.md")]
        self.registry.log(self.parent, {}, {}, {"": [path for path in kept if path.is_file()]})
        while self.open:
            self.registry.end_run(self.open.pop(), "FINISHED")
        faults.point("release.ended")
        for version, decision in self.decided:
            tell(self.turn, self._event(decision, version.version))
            signed = {"decided_at": decision.decided_at, "actor": decision.actor, "sentence": decision.sentence}
            if decision.action != "stale":
                signed["decided"] = decision.verdict_digest
            self.registry.tag(version.version, signed)
            faults.point("release.decided")

    def point_targets(self, promoted: set[str]) -> None:
        """A transaction for each target that moves, because a variant in `promoted` is new or the target is."""
        versions = self.registry.versions()
        ask = Challenge(self.registry, self.runner, self.record, self.versions)
        moves = target_moves(versions, self.registry.targets, promoted, ask.may_serve)
        known = {version.version: version for version in versions}
        for target, (current, best) in moves.items():
            before = current or versions[0].version
            wanted = {f"{target}-previous": before} if before != best else {}
            event = Event(
                when=now(),
                what="served",
                variant=known[best].variant,
                version=best,
                aliases={},
                against=current,
                actor=self.record.actor,
                reason=f"{target} points at version {best} now; by the run {self.record.run}.",
            )
            try:
                transact(self.turn, event, {**wanted, target: best}, {})
            except Stale as error:
                self.runner.watcher.note(str(error))

    def _event(self, decision: Decision, version: str) -> Event:
        return Event(
            when=decision.decided_at,
            what=_DONE[decision.action],
            variant=decision.variant,
            version=version,
            aliases={},
            against=decision.previous_version,
            actor=decision.actor,
            reason=decision.sentence,
            verdict=decision.verdict_digest,
            run=decision.run,
        )

    def abandon(self) -> None:
        """Close the open runs as failed, if the registry still answers: what is being raised matters more."""
        try:
            while self.open:
                self.registry.end_run(self.open.pop(), "FAILED")
        except RegistryError:
            self.open.clear()

    def _hand_over(self) -> None:
        """Lay beside every version that passed how to serve it: a person may promote one that was held."""
        passed = [(version, decision) for version, decision in self.decided if decision.outcome == "pass"]
        promoted = {d.variant: version.version for version, d in passed if d.action == "promote"}
        for version, decision in passed:
            known = {**promoted, decision.variant: version.version}
            files = hand_over(self.runner, decision.variant, self.registry.name, known)
            self.registry.log(decision.run, {}, {}, {SERVING: files})
            self.registry.tag(version.version, serving_tags(files))

    def _start(self, name: str, tags: dict[str, str]) -> str:
        run = self.registry.start_run(name, self.parent or None, {**tags, "run": self.record.run})
        self.open.append(run)
        return run

    def _baseline(self, fresh: list[VariantRecord]) -> None:
        """The baseline's child run, and version 1 if there is none yet."""
        run = self._start(BASELINE, {"variant": BASELINE})
        files = baseline_files(self.runner, self.record)
        self.registry.log(run, variant_params(self.runner, None), baseline_metrics(fresh), files)
        if not self.versions:
            self.versions.append(self._register(self.runner.plan.fetch, BASELINE, run, BASELINE))
            faults.point("release.baseline")
        self.registry.tag(self.versions[0].version, {"evidence_run": run})

    def _publish(self, variant: VariantRecord, run: str) -> VersionState:
        """The version that holds the variant's artifact: the one there is, or a new one from verified bytes."""
        wanted = variant.verdict.artifact_digest
        for version in reversed(self.versions):
            if (version.variant, version.artifact_digest) == (variant.name, wanted):
                return version
        stage = next(way.quantize for way in self.runner.plan.variants if way.variant.name == variant.name)
        version = self._register(stage, variant.name, run, "registered", wanted)
        faults.point("release.published")
        return version

    def _register(self, stage: Stage, variant: str, run: str, state: str, wanted: str | None = None) -> VersionState:
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
        }
        return self.registry.publish(directory / "checkpoint", _listing(manifest), variant, run, tags)

    def _decide(self, variant: VariantRecord, version: VersionState, run: str) -> Decision:
        """Tag the version with its verdict and, if it passed, make it the champion."""
        self.turn.check()  # what follows tags the version
        verdict = variant.verdict
        number = version.version
        action = _ACTIONS[verdict.outcome]
        champion = self._against(variant, version)
        reason = " ".join(verdict.reasons()[:1])
        ask = Challenge(self.registry, self.runner, self.record, self.versions)
        against = ask.against_champion(variant, version, champion) if action == "promote" else []
        beaten = [finding for finding in against if finding.outcome != "pass"]
        outdated = ask.stale(variant)
        tags = {**verdict_tags(verdict), **ask.attempt_tags(variant), "measured_on": ask.measured_on(variant.engine)}
        tags |= {"run": self.record.run, "evidence_run": run, "against": champion or ""}
        if version.state == "rolled_back":
            # Its state stays: one good verdict does not undo what somebody saw in production.
            self.registry.tag(number, tags)
            action = "hold" if action == "promote" else action
            sentence = f"{_DONE[action].capitalize()}: version {number} was rolled back before, and only "
            sentence += f"`quantize promote --force` brings it back. {reason}"
        elif action == "promote" and (outdated or beaten):
            # A verdict at too large an alpha is none; one that lost to the champion may be promoted by hand.
            self.registry.tag(number, {**tags, "state": "inconclusive" if outdated else "passed"})
            faults.point("release.held")
            action = "hold"
            sentence = f"Held: version {number}. {outdated or beaten[0].sentence}"
        elif action == "promote":
            # One that is the champion already, or whose promotion was finished by now, is not made less first.
            state = "promoted" if alias_map(self.versions).get(variant.name) == number else "passed"
            self.registry.tag(number, {**tags, "state": state})
            faults.point("release.passed")
            instead = f", in place of version {champion}" if champion is not None else ""
            stays = f"stays the champion of {variant.name}"
            is_now = stays if champion == number else f"is the champion of {variant.name}{instead}"
            sentence = f"Promoted: version {number} {is_now}. {reason}"
        else:
            self.registry.tag(number, {**tags, "state": _STATES[verdict.outcome]})
            faults.point("release.refused")
            still = ", ".join(alias for alias in version.aliases if not alias.endswith("-candidate"))
            warn = f" {still} still point{'' if ',' in still else 's'} at it: `quantize rollback` moves them."
            sentence = f"{_DONE[action].capitalize()}: version {number}. {reason}{warn if still else ''}"
        decision = Decision(
            variant=variant.name,
            action=action,
            outcome=verdict.outcome,
            sentence=sentence,
            verdict_digest=verdict.digest(),
            artifact_digest=verdict.artifact_digest,
            model=self.registry.name,
            model_version=number,
            previous_version=champion,
            aliases={},
            decided_at=now(),
            actor=self.record.actor,
            run=run,
            against=against,
        )
        return self._promote(decision, number) if action == "promote" else decision

    def _promote(self, decision: Decision, number: str) -> Decision:
        """Carry a promotion out. Where the champion is another one by now, the decision becomes `stale`."""
        moves, tags = champion_moves(self.registry.versions(), decision.variant, number)
        try:
            transact(self.turn, self._event(decision, number), moves, tags)
        except Stale as error:
            sentence = f"Stale: version {number} passed and was not promoted: {error.what} Run again: it is decided "
            sentence += "against the champion that is there then."
            return decision.model_copy(update={"action": "stale", "sentence": sentence})
        return decision

    def _against(self, variant: VariantRecord, version: VersionState) -> str | None:
        """The champion that is decided against; where this verdict moved the alias already, the one that it met."""
        champion = alias_map(self.versions).get(variant.name)
        if champion == version.version and version.tags.get("verdict_digest") == variant.verdict.digest():
            return version.tags.get("against") or None
        return champion


def _fresh(record: RunRecord, versions: list[VersionState]) -> list[VariantRecord]:
    """The variants whose verdicts no version was decided by yet."""
    return [v for v in record.variants if v.verdict.artifact_digest and not _decided(v, versions)]


def _decided(variant: VariantRecord, versions: list[VersionState]) -> bool:
    wanted = variant.verdict.digest()
    return any(v.variant == variant.name and v.tags.get("decided") == wanted for v in versions)


def _is_ours(version: VersionState) -> bool:
    return bool(version.variant and version.artifact_digest)


def _check_ours(versions: list[VersionState], registry: Registry, runner: Runner) -> None:
    """Refuse a registered model that is somebody else's, or that belongs to another baseline."""
    if versions and not _is_ours(versions[0]):
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


def _keep(runner: Runner, record: RunRecord, report: Report | None) -> None:
    if report is not None:
        path = runner.directory / "report.md"
        with writing(path):
            path.write_text(report(record), encoding="utf-8")
    runner.write(record)


def _with_aliases(decision: Decision, aliases: dict[str, str], targets: tuple[str, ...]) -> Decision:
    """The decision with the aliases that its version has in the end, and a word on the targets that serve it."""
    mine = {alias: version for alias, version in aliases.items() if version == decision.model_version}
    serve = [alias for alias in targets if alias in mine and decision.action == "promote"]
    word = f" {', '.join(serve)} now point{'' if len(serve) > 1 else 's'} at it." if serve else ""
    return decision.model_copy(update={"aliases": mine, "sentence": decision.sentence + word})


def _listing(manifest: Manifest) -> str:
    """The files of a version with their digests, as `pull` verifies them."""
    rows = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.checkpoint_files()]
    return json.dumps({"version": 1, "digest": manifest.checkpoint_digest(), "files": rows}, indent=1)
