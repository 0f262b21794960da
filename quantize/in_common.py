"""What several variants of a run need: tokens, and the baseline in each engine. Each stage of it is a task of its own.

A variant waits for what a stage of it reads and for nothing else, so that one is made while the baseline is measured.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from quantize.crew import Task
from quantize.errors import DataError, Interrupted, StageFailed
from quantize.overlap import leaked
from quantize.plan import Baseline, Plan, Stage
from quantize.stage_runs import StageRuns, Trail
from quantize.store import Store

__all__ = ["InCommon"]

#: Why a stage cannot be had; None where it can.
_Told = Future[StageFailed | None]


class InCommon:
    """The stages that variants have in common, and what became of them."""

    def __init__(self, plan: Plan, store: Store, stages: StageRuns) -> None:
        self._plan = plan
        self._store = store
        self._stages = stages
        self._told: dict[str, _Told] = {}
        #: Why the baseline cannot be measured, by engine, and how far on its way that was.
        self._lost: dict[str, tuple[int, StageFailed]] = {}
        self._guard = threading.Lock()

    def tasks(self) -> Iterator[tuple[Task, Trail]]:
        """A task for each stage, what it reads first, with the trail that it leaves."""
        for stage in self._plan.calibrations():
            trail = Trail()
            yield partial(self._calibrate, stage, trail, self._expected(stage)), trail
        for baseline in self._plan.baselines:
            for number, stage in enumerate(baseline.stages()):
                if stage.key not in self._told:
                    trail = Trail()
                    yield partial(self._baseline, baseline, number, stage, trail, self._expected(stage)), trail

    def wait(self, *stages: Stage) -> None:
        """Wait for those of the stages that are in common. Raises StageFailed where one cannot be had."""
        for stage in stages:
            told = self._told.get(stage.key)
            error = told.result() if told is not None else None
            if error is not None:
                raise error

    def lost(self, baseline: Baseline) -> StageFailed | None:
        """Why the baseline cannot be measured in an engine: what failed first on its way, as far as it is known."""
        found = self._lost.get(baseline.suffix)
        return found[1] if found is not None else None

    def stop(self) -> None:
        """Whoever waits is told that the run was stopped."""
        for told in self._told.values():
            with suppress(InvalidStateError):
                told.set_exception(Interrupted("the run was stopped.", fix="Run the same command to resume."))

    def _expected(self, stage: Stage) -> _Told:
        self._told[stage.key] = Future()
        return self._told[stage.key]

    def _calibrate(self, stage: Stage, trail: Trail, told: _Told) -> None:
        """Make tokens. Raises DataError, before any variant is made, where what was fetched holds eval items."""
        self._stages.run(stage, trail)
        calibration = self._plan.recipe.calibration
        if calibration is not None and calibration.online and not calibration.allow_overlap:
            kept = self._store.path(stage.kind, stage.key) / "seen.json"
            problems = leaked(self._plan.recipe, json.loads(kept.read_text(encoding="utf-8")))
            if problems:
                raise DataError("\n".join(problems))
        told.set_result(None)

    def _baseline(self, baseline: Baseline, number: int, stage: Stage, trail: Trail, told: _Told) -> None:
        """Do one stage of the baseline's way in one engine, the `number`th. Raises where no engine has a baseline."""
        try:
            if (before := self.lost(baseline)) is not None:
                raise before
            self.wait(*stage.inputs.values())
            summary = self._stages.run(stage, trail).summary
            if stage is baseline.prove and summary["outcome"] != "pass":
                raise StageFailed(" ".join(summary["sentences"]), where=f"stage {stage.label}")
            if summary.get("hard_stops"):
                stop = summary["hard_stops"][0]
                raise StageFailed(f"the baseline's answers are worthless: {stop}", where=f"stage {stage.label}")
        except StageFailed as error:
            self._lose(baseline, number, error)
            told.set_result(error)
        else:
            told.set_result(None)

    def _lose(self, baseline: Baseline, number: int, error: StageFailed) -> None:
        with self._guard:
            before = self._lost.get(baseline.suffix)
            if before is None or number < before[0]:
                self._lost[baseline.suffix] = (number, error)
            everywhere = len(self._lost) == len(self._plan.baselines)
        if everywhere:
            # No variant can be compared with anything, and none is to blame.
            raise self._lost[self._plan.baselines[0].suffix][1]
