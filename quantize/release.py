"""From verdicts to decisions, and from decisions to versions and aliases.

The order of a release, each step idempotent, so that the next run finishes what a crash left:

    settle      a turn begins: what an earlier one left half done is finished or undone
    publish     the artifact's digests are recomputed from bytes, then it becomes a version (`registered`)
    verdict     the version is tagged with its verdict: passed, rejected, inconclusive or error
    promote     a transaction: candidate, previous, champion; or `stale`, where the champion is another one by now.
                Where the recipe wants a person's approval, the candidate alone moves, and the version waits
    review      the checklist of each version that passed is logged, and its digest becomes a tag (`review.py`)
    targets     a transaction for each deployment target that moves to the best champion of its variants
    kept        the decision is logged to MLflow, and the run's record and reports are on disk
    decided     the version is tagged with the digest of the verdict: from here on there is nothing left to do

A verdict that a version was already decided by is not decided again: an unchanged recipe costs a few questions to the
registry and takes no lock. A stale one is: the next run decides it against the champion that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantize import faults
from quantize.approval import approval_tag, approve_command, follows, follows_tag, told_waiting, waiting
from quantize.challenge import Challenge
from quantize.decided import verdict_tags
from quantize.errors import Interrupted, RegistryError
from quantize.handover import SERVING, hand_over, serving_tags
from quantize.inputs import datasets
from quantize.journal import Event
from quantize.promotion import BASELINE, alias_map, champion_moves, now, target_moves
from quantize.publishing import Publisher, check_ours, is_ours
from quantize.registry import Registry, VersionState
from quantize.review import Checklist
from quantize.reviewing import Reviewer
from quantize.ruling import DONE, Standing, rule
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.runlog import (
    arm_tags,
    baseline_files,
    baseline_metrics,
    parent_params,
    stage_metrics,
    variant_files,
    variant_metrics,
    variant_params,
)
from quantize.store import writing
from quantize.story import EVALUATION, baseline_story, evaluation, retell, variant_story
from quantize.transaction import Stale, settled, tell, transact, unsettled
from quantize.turn import Turn
from quantize.verdict import Decision

__all__ = ["BASELINE", "Report", "keep", "release_run"]

#: Makes the reports of a run: texts by the names of their files, which begin with `report.`.
Report = Callable[[RunRecord], Mapping[str, str]]


def release_run(registry: Registry, runner: Runner, record: RunRecord, report: Report | None = None) -> RunRecord:
    """Decide what is new in `record` and carry it out. Returns the record with its new decisions, and writes it.

    `report` makes what is kept beside the record. Raises RegistryError, or StoreError for an artifact
    whose bytes are not its manifest's; the same run again finishes what was begun.
    """
    versions = registry.versions()
    check_ours(versions, registry, runner)
    if (
        not _fresh(record, versions)
        and not set(registry.targets) - set(alias_map(versions))
        and not unsettled(registry)
    ):
        record = _nothing_new(registry, runner, record, versions)
        keep(runner, record, report)
        return record
    with settled(registry, runner.watcher.note) as (turn, _):
        versions = registry.versions()
        check_ours(versions, registry, runner)
        for number in (version.version for version in versions if not is_ours(version)):
            runner.watcher.note(f"version {number} of {registry.name} was not made by quantize: it is left alone")
        release = _Release(registry, runner, record, versions, turn)
        fresh = _fresh(record, versions)
        if not fresh:
            if versions:
                release.point_targets(set())
                retell(registry, runner.watcher.note)
            record = _nothing_new(registry, runner, record, versions)
            keep(runner, record, report)
            return record
        try:
            record = release.carry_out(fresh)
            keep(runner, record, report)
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
    checklists: dict[str, Checklist] = field(default_factory=dict)

    def carry_out(self, fresh: list[VariantRecord]) -> RunRecord:
        """Publish, promote or reject each fresh variant, move the targets; returns the record with its decisions."""
        self.parent = self._start(self.record.run, {"recipe": self.record.recipe})
        recipe = [self.runner.directory / "recipe.yaml"]
        self.registry.log(self.parent, parent_params(self.runner, self.record), {}, {"": recipe})
        faults.point("release.started")
        self._baseline(fresh)
        for variant in fresh:
            tags = arm_tags(self.runner, self.record, variant.name)
            run = self._start(variant.name, {**tags, "outcome": variant.verdict.outcome})
            files = variant_files(self.runner, variant)
            params = variant_params(self.runner, variant.name)
            metrics = {**variant_metrics(variant.evidence), **stage_metrics(self.runner, variant.stages)}
            self.registry.log(run, params, metrics, files)
            self.registry.log_inputs(run, datasets(self.runner, variant.name))
            version = self._publisher().variant(variant, run, self.versions)
            self.decided.append((version, self._decide(variant, version, run)))
        self._hand_over(fresh)
        promoted = {decision.variant for _, decision in self.decided if decision.action == "promote"}
        # Where a person approves, what serves moves by a person alone: a new target is pointed, no other moves.
        self.point_targets(set() if self.runner.plan.recipe.release.require_approval else promoted)
        faults.point("release.targets")
        self._ask_for_approval()
        aliases = self.registry.aliases()
        targets = tuple(self.registry.targets)
        self.decided = [(version, _with_aliases(decision, aliases, targets)) for version, decision in self.decided]
        decisions = {decision.variant: decision for _, decision in self.decided}
        variants = [
            v.model_copy(update={"decision": decisions.get(v.name), "checklist": self.checklists.get(v.name)})
            for v in self.record.variants
        ]
        for decision in decisions.values():
            self.registry.log_decision(decision.run, decision)
        faults.point("release.logged")
        return self.record.model_copy(update={"variants": variants})

    def conclude(self) -> None:
        """Log the record and the reports, close the runs, and tag the versions as decided, last of all."""
        folder = self.runner.directory
        self.registry.log(self.parent, {}, {}, {"": [folder / "run.json", *sorted(folder.glob("report.*"))]})
        while self.open:
            self.registry.end_run(self.open.pop(), "FINISHED")
        faults.point("release.ended")
        self._retell()
        for version, decision in self.decided:
            tell(self.turn, self._event(decision, version.version))
            signed = _signed(decision)
            if decision.action != "stale":
                signed["decided"] = decision.verdict_digest
            self.registry.tag(version.version, signed)
            faults.point("release.decided")

    def _retell(self) -> None:
        """Write what the versions' pages tell, before anything says that all is done."""
        known = {variant.name: variant for variant in self.record.variants}
        bodies = {self.versions[0].version: baseline_story(self.record)} if not self.versions[0].description else {}
        for version, decision in self.decided:
            bodies[version.version] = variant_story(self.record, known[decision.variant], version, self.registry.name)
        signed = {version.version: _signed(decision) for version, decision in self.decided}
        retell(self.registry, self.runner.watcher.note, bodies, signed)

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
            what=DONE[decision.action],
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

    def _hand_over(self, fresh: list[VariantRecord]) -> None:
        """Lay beside every version that passed how to serve it, and its checklist: a person may promote it later."""
        reviewer = Reviewer(self.registry, self.runner, self.record, self.versions)
        records = {variant.name: variant for variant in fresh}
        passed = [(version, decision) for version, decision in self.decided if decision.outcome == "pass"]
        promoted = {d.variant: version.version for version, d in passed if d.action == "promote"}
        for version, decision in passed:
            known = {**promoted, decision.variant: version.version}
            told = evaluation(records[decision.variant], self.registry.name, version.version, self.record.run)
            pages = {EVALUATION: told}
            files = hand_over(self.runner, decision.variant, self.registry.name, known, pages)
            self.registry.log(decision.run, {}, {}, {SERVING: files})
            tags = serving_tags(files)
            checklist = reviewer.review(records[decision.variant], decision, *tags.values())
            if checklist is not None:
                self.checklists[decision.variant] = checklist
                tags |= reviewer.keep(decision, checklist)
            self.registry.tag(version.version, tags)

    def _ask_for_approval(self) -> None:
        """Settle which targets follow each version that waits now, and say what approves it."""
        wait = {decision.model_version for _, decision in self.decided if decision.approve}
        if not wait:
            return
        versions = self.registry.versions()
        ask = Challenge(self.registry, self.runner, self.record, self.versions)
        for place, (version, decision) in enumerate(self.decided):
            if version.version not in wait:
                continue
            found = follows(versions, self.registry.targets, version.version, ask.may_serve)
            self.registry.tag(version.version, follows_tag(found))
            also = f" It moves {', '.join(found)} too." if found else ""
            sentence = f"{decision.sentence} To approve it: {decision.approve}.{also}"
            self.decided[place] = version, decision.model_copy(update={"sentence": sentence})

    def _publisher(self) -> Publisher:
        return Publisher(self.registry, self.runner, self.record)

    def _start(self, name: str, tags: dict[str, str]) -> str:
        run = self.registry.start_run(name, self.parent or None, {**tags, "run": self.record.run})
        self.open.append(run)
        return run

    def _baseline(self, fresh: list[VariantRecord]) -> None:
        """The baseline's child run, and version 1 if there is none yet."""
        run = self._start(BASELINE, arm_tags(self.runner, self.record, None))
        files = baseline_files(self.runner, self.record)
        metrics = {**baseline_metrics(fresh), **stage_metrics(self.runner, self.record.baseline_stages)}
        self.registry.log(run, variant_params(self.runner, None), metrics, files)
        self.registry.log_inputs(run, datasets(self.runner, None))
        if not self.versions:
            self.versions.append(self._publisher().baseline(run))
        self.registry.tag(self.versions[0].version, {"evidence_run": run})

    def _decide(self, variant: VariantRecord, version: VersionState, run: str) -> Decision:
        """Tag the version with its verdict and, if it passed, make it the champion or ask for approval."""
        self.turn.check()  # what follows tags the version
        verdict, number = variant.verdict, version.version
        champion = self._against(variant, version)
        ask = Challenge(self.registry, self.runner, self.record, self.versions)
        against = ask.against_champion(variant, version, champion) if verdict.outcome == "pass" else []
        approval = self.runner.plan.recipe.release.require_approval
        standing = Standing(
            version,
            champion,
            serves=alias_map(self.versions).get(variant.name) == number,
            outdated=ask.stale(variant) or "",
            beaten=next((finding.sentence for finding in against if finding.outcome != "pass"), ""),
            asks=approve_command(self.registry.name, version) if approval else "",
        )
        ruling = rule(verdict, standing)
        tags = {**verdict_tags(verdict), **ask.attempt_tags(variant), "measured_on": ask.measured_on(variant.engine)}
        tags |= {"run": self.record.run, "evidence_run": run, "against": champion or "", "review_digest": ""}
        tags |= approval_tag(ruling.approve)
        self.registry.tag(number, {**tags, **({"state": ruling.state} if ruling.state else {})})
        if ruling.action == "promote":
            faults.point("release.passed")
        else:
            faults.point("release.held")
        decision = Decision(
            variant=variant.name,
            action=ruling.action,
            outcome=verdict.outcome,
            sentence=ruling.sentence,
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
            approve=ruling.approve,
        )
        return self._move(decision, number) if ruling.action == "promote" or ruling.approve else decision

    def _move(self, decision: Decision, number: str) -> Decision:
        """Carry a promotion out; of one that waits for approval, the candidate's part.

        Where the aliases are elsewhere by now, the decision becomes `stale`.
        """
        moves, tags = champion_moves(self.registry.versions(), decision.variant, number)
        if decision.approve:
            moves, tags = {alias: to for alias, to in moves.items() if alias == f"{decision.variant}-candidate"}, {}
        try:
            transact(self.turn, self._event(decision, number), moves, tags)
        except Stale as error:
            sentence = f"Stale: version {number} passed and was not promoted: {error.what} Run again: it is decided "
            sentence += "against the champion that is there then."
            return decision.model_copy(update={"action": "stale", "sentence": sentence, "approve": ""})
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


def _nothing_new(registry: Registry, runner: Runner, record: RunRecord, versions: list[VersionState]) -> RunRecord:
    """The record of a run that found nothing to decide: it says so, and who waits since when."""
    names = {variant.name for variant in record.variants}
    wait = [told_waiting(registry.name, version) for version in waiting(versions) if version.variant in names]
    judged = any(variant.verdict.artifact_digest for variant in record.variants)
    remarks = [*([f"Nothing new to decide for {registry.name}."] if judged else []), *wait]
    for remark in remarks:
        runner.watcher.note(remark)
    return record.model_copy(update={"remarks": [*record.remarks, *remarks]})


def keep(runner: Runner, record: RunRecord, report: Report | None) -> None:
    """Write the reports into the run's folder, then the record, and seal it.

    A report that cannot be drawn costs no decision: it is told, and `quantize report` draws it again.
    """
    texts: Mapping[str, str] = {}
    try:
        texts = report(record) if report is not None else {}
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001  whatever a drawing raises, the release goes on
        runner.watcher.note(
            f"the report was not drawn ({type(error).__name__}: {error}); `quantize report` tries again"
        )
    for name, text in texts.items():
        path = runner.directory / name
        with writing(path):
            path.write_text(text, encoding="utf-8")
    runner.write(record)


def _signed(decision: Decision) -> dict[str, str]:
    """The tags that say who decided, when and why."""
    return {"decided_at": decision.decided_at, "actor": decision.actor, "sentence": decision.sentence}


def _with_aliases(decision: Decision, aliases: dict[str, str], targets: tuple[str, ...]) -> Decision:
    """The decision with the aliases that its version has in the end, and a word on the targets that serve it."""
    mine = {alias: version for alias, version in aliases.items() if version == decision.model_version}
    serve = [alias for alias in targets if alias in mine and decision.action == "promote"]
    word = f" {', '.join(serve)} now point{'' if len(serve) > 1 else 's'} at it." if serve else ""
    return decision.model_copy(update={"aliases": mine, "sentence": decision.sentence + word})
