"""Walk a plan: skip what is committed, run the rest, collect verdicts, hand them to the release.

The driver never imports torch. A variant whose stage fails is decided as an error and the others go on; only what all
variants need (the model, its calibration, the baseline's evals) ends the run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from quantize import __version__, faults
from quantize.actor import actor
from quantize.artifact import Manifest
from quantize.attempts import Ledger, basis, note
from quantize.errors import StageFailed, StoreError
from quantize.evidence import Evidence, with_memory
from quantize.gates import Limit
from quantize.handed import StageSpec
from quantize.plan import Baseline, Measured, Plan, Stage, VariantPlan
from quantize.protocols import Executor
from quantize.recipe import LoadedRecipe
from quantize.record import digest
from quantize.run_record import RESOLVED, RunRecord, VariantRecord, read_record
from quantize.seal import seal, withdraw
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


@dataclass
class Runner:
    """One run of one plan in one store. `ledger` knows the attempts before it."""

    loaded: LoadedRecipe
    plan: Plan
    store: Store
    executor: Executor
    watcher: Watcher
    ledger: Ledger = field(default_factory=Ledger)
    ran: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    _failed: dict[str, StageFailed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = datetime.now(UTC)
        # With the process, because two that start together must not share a folder.
        stamp = self.started.strftime("%Y%m%dT%H%M%S.%f")
        self.name = f"{self.plan.recipe.name}-{stamp}p{os.getpid()}"
        self.directory = self.store.root / "runs" / self.name

    def measure(self) -> RunRecord:
        """Run every stage that is not committed; returns the record without decisions, and writes it."""
        with writing(self.directory):
            self.directory.mkdir(parents=True)
            (self.directory / "recipe.yaml").write_text(self.loaded.text, encoding="utf-8")
            resolved = self.plan.recipe.model_dump_json(indent=1, by_alias=True)
            (self.directory / RESOLVED).write_text(resolved, encoding="utf-8")
        self.watcher.plan(self.plan)
        self._stage(self.plan.fetch)
        if self.plan.calibrate is not None:
            self._stage(self.plan.calibrate)
        failed = [(baseline.suffix, error) for baseline in self.plan.baselines if (error := self._baseline(baseline))]
        if len(failed) == len(self.plan.baselines):
            # No variant can be compared with anything, and none is to blame.
            raise failed[0][1]
        records = [self._variant(way, dict(failed).get(way.baseline.suffix)) for way in self.plan.variants]
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
                **({"calibrate": self.plan.calibrate.key} if self.plan.calibrate is not None else {}),
                **{label: key for baseline in self.plan.baselines for label, key in baseline.labels().items()},
                **self._benchmarked(),
            },
            variants=records,
            ran=self.ran,
            reused=self.reused,
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

    def _baseline(self, baseline: Baseline) -> StageFailed | None:
        """Measure the baseline in one engine; returns why it cannot be."""
        try:
            for stage in baseline.stages():
                summary = self._stage(stage).summary
                if stage is baseline.prove and summary["outcome"] != "pass":
                    raise StageFailed(" ".join(summary["sentences"]), where=f"stage {stage.label}")
                if summary.get("hard_stops"):
                    stop = summary["hard_stops"][0]
                    raise StageFailed(f"the baseline's answers are worthless: {stop}", where=f"stage {stage.label}")
        except StageFailed as error:
            return error
        return None

    def _variant(self, way: VariantPlan, without: StageFailed | None) -> VariantRecord:
        """Make, prove and measure a variant; `without` is why there is no baseline in its engine."""
        keys: dict[str, str] = {}
        engine, suffix = way.baseline.engine.kind, way.baseline.suffix
        try:
            if without is not None:
                raise without
            for form in way.forms:
                self._stage(form)
                keys[form.kind] = form.key
            made = self._stage(way.quantize)
            keys["quantize"] = way.quantize.key
            proof = self._stage(way.prove)
            keys["prove"] = way.prove.key
            artifact = made.checkpoint_digest()
            attempt = self.ledger.attempt(list(self._bases(way).values()), artifact)
            measured = way.measured(attempt)
            count = 0
            if proof.summary["outcome"] == "pass":
                count = self._measure(way, measured, _Attempt(artifact, attempt), keys)
            if count == len(measured.evaluate) and self._under_load(way, measured, keys):
                count += 1
            judge = measured.judges[count]
            self._stage(judge)
        except StageFailed as error:
            verdict, evidence, stages = self._error(way, error), None, keys
        else:
            verdict, evidence = self._judged(judge)
            own = way.baseline.prove
            taken = self.store.find("prove", own.key) if own is not None else None
            evidence = with_memory(evidence, proof.summary, taken.summary if taken is not None else {})
            stages = {**keys, "judge": judge.key}
        return VariantRecord(
            name=way.variant.name,
            verdict=verdict,
            evidence=evidence,
            decision=None,
            stages=stages,
            engine=engine,
            baseline=suffix,
        )

    def _measure(self, way: VariantPlan, measured: Measured, attempt: _Attempt, keys: dict[str, str]) -> int:
        """Run one eval after another, as long as the variant may still pass; returns how many were run."""
        confirmation = self.plan.recipe.confirmation
        for count, (name, stage) in enumerate(measured.evaluate.items()):
            if name == confirmation and not self._so_far(measured, count, ("pass",), keys):
                return count
            self._note(way, name, attempt)
            summary = self._stage(stage).summary
            keys[f"evaluate.{name}"] = stage.key
            stopped = (summary["progressed"] or {}).get("stopped")
            over = bool(summary["hard_stops"]) or stopped in ("fail", "futile")
            limited = any(
                isinstance(gate, Limit) and not gate.advisory and gate.metric.partition(".")[0] == name
                for gate in self.plan.recipe.gates
            )
            last = count + 1 == len(measured.evaluate)
            if not last and (over or (limited and not self._so_far(measured, count + 1, _MAY_PASS, keys))):
                return count + 1
        return len(measured.evaluate)

    def _under_load(self, way: VariantPlan, measured: Measured, keys: dict[str, str]) -> bool:
        """Benchmark a variant that has passed all its evals, and before it the baseline; False where there is none."""
        if measured.benchmark is None or not self._so_far(measured, len(measured.evaluate), ("pass",), keys):
            return False
        own = way.baseline.benchmark
        if own is not None:
            if own.key in self._failed:
                raise self._failed[own.key]
            try:
                self._stage(own)
            except StageFailed as error:
                self._failed[own.key] = error  # not once more for each variant
                raise
        self._stage(measured.benchmark)
        keys["benchmark"] = measured.benchmark.key
        if measured.ahead is not None:
            try:
                self._stage(measured.ahead)
            except StageFailed as error:  # it is shown and judges nothing
                self.watcher.note(f"{measured.ahead.label} failed, and no verdict needs it: {error}")
            else:
                keys["benchmark.ahead"] = measured.ahead.key
        return True

    def _benchmarked(self) -> dict[str, str]:
        """The baselines' benchmarks that this run came to."""
        stages = {f"benchmark{baseline.suffix}": baseline.benchmark for baseline in self.plan.baselines}
        came_to = (*self.ran, *self.reused)
        return {name: stage.key for name, stage in stages.items() if stage is not None and stage.label in came_to}

    def _so_far(self, measured: Measured, count: int, outcomes: tuple[Outcome, ...], keys: dict[str, str]) -> bool:
        """Whether every blocking finding on the first `count` evals has one of `outcomes`."""
        judge = measured.judges[count]
        self._stage(judge)
        keys[f"judge.{count}"] = judge.key
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

    def _note(self, way: VariantPlan, name: str, attempt: _Attempt) -> None:
        """Count an attempt before the artifact is shown its first item of an eval; once."""
        ground = self._bases(way).get(name)
        if ground is None or self.ledger.knows(ground, attempt.artifact):
            return
        with self.store.lease("attempts", digest("attempts"), lambda _owner: None):
            if Ledger.of(self.store, ()).attempt([ground], attempt.artifact) > attempt.number:
                raise StageFailed(
                    "another run has shown this eval set to another artifact of the variant meanwhile.",
                    where=f"variant {way.variant.name}",
                    fix="Run again: it is judged as one attempt more.",
                )
            note(self.store, [ground], attempt.artifact, attempt.number)
        self.ledger.add(ground, attempt.artifact, attempt.number)

    def _stage(self, stage: Stage) -> Manifest:
        """Return the stage's manifest, running it first if nobody has."""
        manifest = self.store.find(stage.kind, stage.key)
        if manifest is not None:
            return self._reuse(stage, manifest)
        with self.store.lease(stage.kind, stage.key, lambda owner: self.watcher.waiting(stage, owner)) as lease:
            manifest = self.store.find(stage.kind, stage.key)
            if manifest is not None:
                return self._reuse(stage, manifest)
            self.watcher.started(stage)
            faults.point("run.leased")
            log = self.directory / "logs" / f"{re.sub('[^a-z0-9._-]+', '-', stage.label)}.log"
            try:
                self.executor.run(self._spec(stage), self.store.root, log, self.watcher.progress(stage), lease)
            except StageFailed as error:
                if self.store.find(stage.kind, stage.key) is None:
                    self.watcher.failed(stage, error)
                    raise
                self.watcher.note(f"{stage.label}: its process died after it had committed; nothing is lost")
        manifest = self.store.find(stage.kind, stage.key)
        if manifest is None:
            raise StageFailed("its process ended well but committed nothing.", where=f"stage {stage.label}")
        faults.point("run.stage_done")
        self.ran.append(stage.label)
        self.watcher.finished(stage, manifest)
        return manifest

    def _reuse(self, stage: Stage, manifest: Manifest) -> Manifest:
        if stage.label in (*self.ran, *self.reused):
            return manifest  # in this run, for another variant
        self.reused.append(stage.label)
        self.watcher.reused(stage)
        return manifest

    def _spec(self, stage: Stage) -> StageSpec:
        return StageSpec(
            kind=stage.kind,
            name=stage.name,
            key=stage.key,
            version=stage.version,
            config=stage.config,
            inputs={label: self.store.path(source.kind, source.key) for label, source in stage.inputs.items()},
            input_keys={label: source.key for label, source in stage.inputs.items()},
            libraries=stage.libraries,
            device=stage.device,
            interpreters=_interpreters(stage),
            environment=stage.hosted,
            alone=stage.alone,
        )

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


def _interpreters(stage: Stage) -> dict[str, Path]:
    """Where the stage finds its environments. Raises StageFailed for one that is not there."""
    found = {}
    for name, environment in stage.environments.items():
        if environment.python is None:
            raise StageFailed(
                f"the environment {name} is not made.",
                where=f"stage {stage.label}",
                fix=f"Run: quantize env create {name}",
            )
        found[name] = environment.python
    return found


def exit_code(outcomes: list[Outcome]) -> int:
    """The exit code for what was decided anew: 1 an error, 3 a rejection, 4 an inconclusive one, else 0."""
    for outcome, code in (("error", 1), ("fail", 3), ("inconclusive", 4)):
        if outcome in outcomes:
            return code
    return 0
