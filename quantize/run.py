"""Walk a plan: skip what is committed, run the rest, collect verdicts, hand them to the release.

The driver never imports torch. A variant whose stage fails is decided as an error and the others go on; only what all
variants need (the model, its calibration, the baseline's evals) ends the run.

Each variant's way is a task, and each stage that variants have in common. Done in turn, they are done in the order of
the plan; side by side (`sharing`), a stage waits for what it reads, then for its share of the machine, and the verdicts
are the same.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from quantize import __version__, faults
from quantize.actor import actor
from quantize.artifact import Manifest
from quantize.attempts import Ledger, basis, note
from quantize.crew import Crew, InTurn, SideBySide
from quantize.errors import StageFailed, StoreError
from quantize.evidence import Evidence, with_memory
from quantize.gates import Limit
from quantize.in_common import InCommon
from quantize.plan import Measured, Plan, Stage, VariantPlan
from quantize.protocols import Executor
from quantize.recipe import LoadedRecipe
from quantize.record import digest
from quantize.run_record import RESOLVED, RunRecord, VariantRecord, read_record
from quantize.seal import seal, withdraw
from quantize.sharing import Sharing
from quantize.stage_runs import StageRuns, Trail
from quantize.store import Store, read_manifest, verify_directory, writing
from quantize.verdict import Finding, Outcome, Verdict
from quantize.watcher import Watcher

__all__ = ["RESOLVED", "RUN", "RunRecord", "Runner", "VariantRecord", "exit_code", "read_record"]

#: The kind of the lease that a run holds from its first stage to its last decision.
RUN = "run"

#: What leaves a variant a chance to pass in the end.
_MAY_PASS: tuple[Outcome, ...] = ("pass", "inconclusive")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An artifact, and how often its variant was tried, this time included."""

    artifact: str
    number: int


@dataclass(frozen=True, slots=True)
class _Walk:
    """A variant on its way: the keys of what it came to, by the names that the record gives them."""

    way: VariantPlan
    trail: Trail
    keys: dict[str, str] = field(default_factory=dict)


@dataclass
class Runner:
    """One run of one plan in one store. `ledger` knows the attempts before it.

    Without `counting` it makes none: what serves already is measured again, and nothing is chosen by it. Without
    `sharing`, or where one stage at once is all there is room for, stages run one after the other.
    """

    loaded: LoadedRecipe
    plan: Plan
    store: Store
    executor: Executor
    watcher: Watcher
    ledger: Ledger = field(default_factory=Ledger)
    counting: bool = True
    sharing: Sharing | None = None
    _failed: dict[str, StageFailed] = field(default_factory=dict)
    _trails: list[Trail] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.started = datetime.now(UTC)
        # With the process, because two that start together must not share a folder.
        stamp = self.started.strftime("%Y%m%dT%H%M%S.%f")
        self.name = f"{self.plan.recipe.name}-{stamp}p{os.getpid()}"
        self.directory = self.store.root / "runs" / self.name
        if self.sharing is not None and self.sharing.capacity.stages == 1 and not self.executor.remote:
            self.sharing = None
        self._stages = StageRuns(self.plan, self.store, self.executor, self.watcher, self.directory, self.sharing)
        self._common = InCommon(self.plan, self.store, self._stages)

    def measure(self) -> RunRecord:
        """Run every stage that is not committed; returns the record without decisions, and writes it."""
        with writing(self.directory):
            self.directory.mkdir(parents=True)
            (self.directory / "recipe.yaml").write_text(self.loaded.text, encoding="utf-8")
            resolved = self.plan.recipe.model_dump_json(indent=1, by_alias=True)
            (self.directory / RESOLVED).write_text(resolved, encoding="utf-8")
        self.watcher.plan(self.plan)
        self._trails.append(Trail())
        fetched = self._stages.run(self.plan.fetch, self._trails[0])
        variants = self._variants()
        ran, reused, times = self._stages.passed(self._trails)
        record = RunRecord(
            run=self.name,
            recipe=self.plan.recipe.name,
            recipe_digest=self.loaded.digest,
            program=f"quantize {__version__}",
            started=self.started.isoformat(timespec="seconds"),
            seconds=round((datetime.now(UTC) - self.started).total_seconds(), 1),
            device=self.plan.device.name,
            actor=actor(),
            baseline_stages={
                "fetch": self.plan.fetch.key,
                **self.plan.calibrated(),
                **{label: key for baseline in self.plan.baselines for label, key in baseline.labels().items()},
                **self._benchmarked((*ran, *reused)),
            },
            variants=variants,
            ran=ran,
            reused=reused,
            times=times,
            remarks=fetched.summary.get("notes", []),
        )
        self.write(record)
        return record

    def write(self, record: RunRecord) -> None:
        """Write `run.json`, whole or not at all, and seal the folder: nothing may be written into it afterwards."""
        path = self.directory / "run.json"
        with writing(path):
            withdraw(self.directory)
            part = path.with_suffix(".part")
            part.write_text(record.model_dump_json(indent=1), encoding="utf-8")
            faults.point("run.record_written")
            part.rename(path)
            faults.point("run.record_kept")
            seal(self.directory, self.store, record.keys())

    def verify(self, stage: Stage) -> None:
        """Recompute a stage's digests from bytes before it is released. Raises StoreError."""
        directory = self.store.path(stage.kind, stage.key)
        manifest = read_manifest(directory)
        problems = verify_directory(directory, manifest) if manifest else [f"{directory}: no manifest"]
        if problems:
            raise StoreError(problems[0], fix=f"Remove {directory} and run again: the stage is made anew.")

    def _variants(self) -> list[VariantRecord]:
        """Every variant's record, in the order of the recipe."""
        records: dict[str, VariantRecord] = {}
        crew: Crew = InTurn() if self.sharing is None else SideBySide(self._stop)
        with crew:
            for task, trail in self._common.tasks():
                self._trails.append(trail)
                crew.spawn(task)
            for way in self.plan.variants:
                self._trails.append(Trail())
                crew.spawn(partial(self._variant, _Walk(way, self._trails[-1]), records))
        for way in self.plan.variants:
            # Side by side, a variant may have been judged before its baseline failed.
            if (lost := self._common.lost(way.baseline)) is not None:
                records[way.variant.name] = self._record(way, self._error(way, lost), None, {})
        return [records[way.variant.name] for way in self.plan.variants]

    def _stop(self) -> None:
        """End all that is at work; whoever waits for it is told."""
        self._stages.stop()
        self._common.stop()

    def _stage(self, stage: Stage, trail: Trail) -> Manifest:
        """Return the stage's manifest, running it first if nobody has. Waits for what others make of what it reads."""
        self._common.wait(*stage.inputs.values(), stage)
        return self._stages.run(stage, trail)

    def _variant(self, walk: _Walk, records: dict[str, VariantRecord]) -> None:
        """Make, prove and measure a variant, and put down its record."""
        way = walk.way
        if self._common.lost(way.baseline) is not None:
            return
        try:
            for form in way.forms:
                self._stage(form, walk.trail)
                walk.keys[form.kind] = form.key
            made = self._stage(way.quantize, walk.trail)
            walk.keys["quantize"] = way.quantize.key
            proof = self._stage(way.prove, walk.trail)
            walk.keys["prove"] = way.prove.key
            artifact = made.checkpoint_digest()
            attempt = self._number(way, artifact)
            measured = way.measured(attempt)
            count = 0
            if proof.summary["outcome"] == "pass":
                count = self._measure(walk, measured, _Attempt(artifact, attempt))
            if count == len(measured.evaluate) and self._under_load(walk, measured):
                count += 1
            judge = measured.judges[count]
            self._stage(judge, walk.trail)
            own = way.baseline.prove
            if own is not None:
                self._common.wait(own)
        except StageFailed as error:
            records[way.variant.name] = self._record(way, self._error(way, error), None, walk.keys)
            return
        verdict, evidence = self._judged(judge)
        taken = self.store.find("prove", own.key) if own is not None else None
        evidence = with_memory(evidence, proof.summary, taken.summary if taken is not None else {})
        records[way.variant.name] = self._record(way, verdict, evidence, {**walk.keys, "judge": judge.key})

    def _record(
        self, way: VariantPlan, verdict: Verdict, evidence: Evidence | None, stages: dict[str, str]
    ) -> VariantRecord:
        return VariantRecord(
            name=way.variant.name,
            verdict=verdict,
            evidence=evidence,
            decision=None,
            stages=stages,
            engine=way.baseline.engine.kind,
            baseline=way.baseline.suffix,
        )

    def _measure(self, walk: _Walk, measured: Measured, attempt: _Attempt) -> int:
        """Run one eval after another, as long as the variant may still pass; returns how many were run."""
        confirmation = self.plan.recipe.confirmation
        for count, (name, stage) in enumerate(measured.evaluate.items()):
            if name == confirmation and not self._so_far(walk, measured, count, ("pass",)):
                return count
            # Before it counts as an attempt: what it is compared with may fail yet.
            self._common.wait(*stage.inputs.values())
            self._note(walk.way, name, attempt)
            summary = self._stage(stage, walk.trail).summary
            walk.keys[f"evaluate.{name}"] = stage.key
            stopped = (summary["progressed"] or {}).get("stopped")
            over = bool(summary["hard_stops"]) or stopped in ("fail", "futile")
            limited = any(
                isinstance(gate, Limit) and not gate.advisory and gate.metric.partition(".")[0] == name
                for gate in self.plan.recipe.gates
            )
            last = count + 1 == len(measured.evaluate)
            if not last and (over or (limited and not self._so_far(walk, measured, count + 1, _MAY_PASS))):
                return count + 1
        return len(measured.evaluate)

    def _under_load(self, walk: _Walk, measured: Measured) -> bool:
        """Benchmark a variant that has passed all its evals, and before it the baseline; False where there is none."""
        if measured.benchmark is None or not self._so_far(walk, measured, len(measured.evaluate), ("pass",)):
            return False
        own = walk.way.baseline.benchmark
        if own is not None:
            with self._stages.turn(own.key):
                if own.key in self._failed:
                    raise self._failed[own.key]
                try:
                    self._stage(own, walk.trail)
                except StageFailed as error:
                    self._failed[own.key] = error  # not once more for each variant
                    raise
        self._stage(measured.benchmark, walk.trail)
        walk.keys["benchmark"] = measured.benchmark.key
        if measured.ahead is not None:
            try:
                self._stage(measured.ahead, walk.trail)
            except StageFailed as error:  # it is shown and judges nothing
                self.watcher.note(f"{measured.ahead.label} failed, and no verdict needs it: {error}")
            else:
                walk.keys["benchmark.ahead"] = measured.ahead.key
        return True

    def _benchmarked(self, came_to: tuple[str, ...]) -> dict[str, str]:
        """The baselines' benchmarks that this run came to."""
        stages = {f"benchmark{baseline.suffix}": baseline.benchmark for baseline in self.plan.baselines}
        return {name: stage.key for name, stage in stages.items() if stage is not None and stage.label in came_to}

    def _so_far(self, walk: _Walk, measured: Measured, count: int, outcomes: tuple[Outcome, ...]) -> bool:
        """Whether every blocking finding on the first `count` evals has one of `outcomes`."""
        judge = measured.judges[count]
        self._stage(judge, walk.trail)
        walk.keys[f"judge.{count}"] = judge.key
        verdict, _ = self._judged(judge)
        findings = [f for f in verdict.findings if not f.advisory and f.kind != "skipped"]
        return all(finding.outcome in outcomes for finding in findings)

    def _judged(self, judge: Stage) -> tuple[Verdict, Evidence]:
        directory = self.store.path("judge", judge.key)
        verdict = Verdict.model_validate_json((directory / "verdict.json").read_text(encoding="utf-8"))
        return verdict, Evidence.model_validate_json((directory / "evidence.json").read_text(encoding="utf-8"))

    def _bases(self, way: VariantPlan) -> dict[str, str]:
        """What attempts of a variant are counted on, by eval."""
        baseline = self.store.find("fetch", self.plan.fetch.key)
        bytes_of_it = baseline.checkpoint_digest() if baseline is not None else ""
        return {name: basis(bytes_of_it, dataset, way.variant.name) for name, dataset in self.plan.counted.items()}

    def _number(self, way: VariantPlan, artifact: str) -> int:
        """Which attempt an artifact is; where none are counted, the one that it was, else the first."""
        bases = list(self._bases(way).values())
        with self._guard:
            known = [basis for basis in bases if self.counting or self.ledger.knows(basis, artifact)]
            return self.ledger.attempt(known, artifact)

    def _note(self, way: VariantPlan, name: str, attempt: _Attempt) -> None:
        """Count an attempt before the artifact is shown its first item of an eval; once."""
        ground = self._bases(way).get(name)
        if ground is None or not self.counting:
            return
        with self._guard:
            if not self.ledger.knows(ground, attempt.artifact):
                self._count(way, ground, attempt)

    def _count(self, way: VariantPlan, ground: str, attempt: _Attempt) -> None:
        with self.store.lease("attempts", digest("attempts"), lambda _owner: None) as lease:
            if Ledger.of(self.store, ()).attempt([ground], attempt.artifact) > attempt.number:
                raise StageFailed(
                    "another run has shown this eval set to another artifact of the variant meanwhile.",
                    where=f"variant {way.variant.name}",
                    fix="Run again: it is judged as one attempt more.",
                )
            lease.check()
            note(self.store, [ground], attempt.artifact, attempt.number)
        self.ledger.add(ground, attempt.artifact, attempt.number)

    def _error(self, way: VariantPlan, error: StageFailed) -> Verdict:
        """A verdict for a variant that a stage stopped. It names no artifact, so nothing can be promoted by it."""
        # What an engine's process wrote comes below the first line.
        what, _, log = error.what.partition("\n")
        told = StageFailed(what, where=error.where, fix=error.fix)
        finding = Finding(
            gate="every stage runs",
            kind="stage",
            metric="stage",
            outcome="error",
            sentence=str(told),
            numbers={},
            detail=log or error.tail,
        )
        return Verdict(
            variant=way.variant.name,
            outcome="error",
            findings=[finding],
            artifact_digest="",
            baseline_digest="",
            recipe_digest=self.loaded.digest,
            rows={},
            program=f"quantize {__version__}",
        )


def exit_code(outcomes: list[Outcome]) -> int:
    """The exit code for what was decided anew: 1 an error, 3 a rejection, 4 an inconclusive one, else 0."""
    for outcome, code in (("error", 1), ("fail", 3), ("inconclusive", 4)):
        if outcome in outcomes:
            return code
    return 0
