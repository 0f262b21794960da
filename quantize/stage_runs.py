"""One stage of a run: found in the store, or done under its lease, with its share of the machine, once.

Several threads may ask for stages at once. What they came to is kept in a trail for each, so that a run tells the same
in the same order whether its stages ran side by side or one after the other.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from quantize import faults
from quantize.artifact import Manifest
from quantize.desk import Desk
from quantize.errors import LeaseLost, QuantizeError, StageFailed
from quantize.handed import WITHOUT_DEVICE, StageSpec
from quantize.leases import Lease
from quantize.plan import Plan, Stage
from quantize.protocols import Executor
from quantize.run_record import StageTime
from quantize.sharing import Sharing
from quantize.store import Store
from quantize.watcher import Watcher

__all__ = ["StageRuns", "Trail"]

#: The stages that one task of a run came to, in order.
Trail = list[Stage]


class StageRuns:
    """Runs stages of `plan`; `directory` is the run's folder. Without `sharing`, a stage has all that the driver sees.

    Where they run on other machines, `sharing` says what each asks for, and nothing here is given to them.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        executor: Executor,
        watcher: Watcher,
        directory: Path,
        sharing: Sharing | None,
    ) -> None:
        self._plan = plan
        self._store = store
        self._executor = executor
        self._watcher = watcher
        self._directory = directory
        self._sharing = sharing
        self._desk = Desk(sharing.capacity) if sharing is not None and not executor.remote else None
        self._turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._guard = threading.Lock()
        self._labels: set[str] = set()
        self._times: dict[str, StageTime] = {}

    def run(self, stage: Stage, trail: Trail) -> Manifest:
        """Return the stage's manifest, running it first if nobody has. Raises StageFailed."""
        manifest = self._store.find(stage.kind, stage.key)
        while manifest is None:
            with self.turn(stage.key), self._leased(stage) as lease:
                manifest = self._store.find(stage.kind, stage.key) or self._run(stage, lease)
        if self._came_to(stage, trail):
            self._watcher.reused(stage)
        return manifest

    def turn(self, key: str) -> threading.RLock:
        """What a thread holds while it does a stage that others may ask for too."""
        with self._guard:
            return self._turns[key]

    def stop(self) -> None:
        """Start nothing any more, and end all that is at work."""
        if self._desk is not None:
            self._desk.close()
        self._executor.stop()

    def passed(self, trails: Sequence[Trail]) -> tuple[list[str], list[str], list[StageTime]]:
        """Labels of what ran and of what was done before, and the times of the first, in the order of the trails."""
        ran: list[str] = []
        reused: list[str] = []
        times: dict[str, StageTime] = {}
        for stage in (stage for trail in trails for stage in trail):
            if stage.key in self._times and stage.key not in times:
                times[stage.key] = self._times[stage.key]
                ran.append(stage.label)
            elif stage.key not in times and stage.label not in (*ran, *reused):
                reused.append(stage.label)
        return ran, reused, list(times.values())

    @contextmanager
    def _leased(self, stage: Stage) -> Iterator[Lease | None]:
        if self._executor.remote:
            yield None
            return
        with self._store.lease(stage.kind, stage.key, lambda owner: self._watcher.waiting(stage, owner)) as lease:
            yield lease

    def _came_to(self, stage: Stage, trail: Trail) -> bool:
        """Note it; True where the run had not come to a stage of this name before."""
        with self._guard:
            trail.append(stage)
            first = stage.label not in self._labels
            self._labels.add(stage.label)
            if self._sharing is not None:
                self._sharing.passed(stage.label)
            return first

    def _run(self, stage: Stage, lease: Lease | None) -> Manifest | None:
        """Do it now, as soon as it may have what it asks for. None where another node has taken it over."""
        with self._devices(stage) as devices:
            began, clock = datetime.now(UTC), time.monotonic()
            self._watcher.started(stage)
            faults.point("run.leased")
            log = self._directory / "logs" / f"{re.sub('[^a-z0-9._-]+', '-', stage.label)}.log"
            try:
                progress = self._watcher.progress(stage)
                self._executor.run(self._spec(stage, devices), self._store.root, log, progress, lease)
            except StageFailed as error:
                if lease is not None and self._taken_over(stage, lease):
                    return None
                if self._store.find(stage.kind, stage.key) is None:
                    self._watcher.failed(stage, error)
                    raise
                self._watcher.note(f"{stage.label}: its process died after it had committed; nothing is lost")
            ended, seconds = datetime.now(UTC), time.monotonic() - clock
        manifest = self._store.find(stage.kind, stage.key)
        if manifest is None:
            raise StageFailed("its process ended well but committed nothing.", where=f"stage {stage.label}")
        faults.point("run.stage_done")
        with self._guard:
            self._labels.add(stage.label)
            self._times[stage.key] = StageTime(
                stage=stage.label,
                key=stage.key,
                device=", ".join(devices),
                began=began.isoformat(timespec="milliseconds"),
                ended=ended.isoformat(timespec="milliseconds"),
                seconds=round(seconds, 3),
                peak_memory_bytes=manifest.provenance.peak_memory_bytes,
                log=str(log.relative_to(self._directory)),
            )
        self._watcher.finished(stage, manifest)
        return manifest

    def _taken_over(self, stage: Stage, lease: Lease) -> bool:
        try:
            lease.check()
        except LeaseLost as error:
            self._watcher.note(f"{stage.label}: {error.what}")
            return True
        return False

    @contextmanager
    def _devices(self, stage: Stage) -> Iterator[tuple[str, ...]]:
        """The stage's own devices, by name, once they are free. Raises StageFailed where they could never be."""
        if self._sharing is None or self._desk is None:
            yield (stage.device,) if stage.kind not in WITHOUT_DEVICE else ()
            return
        with self._guard:
            request = self._sharing.request(stage)
        try:
            self._desk.check(request)
        except QuantizeError as error:
            raise StageFailed(error.what, where=error.where, fix=error.fix) from error
        with self._desk.holding(request) as devices:
            yield devices

    def _spec(self, stage: Stage, devices: Sequence[str]) -> StageSpec:
        sharing, remote = self._sharing, self._executor.remote
        # One that has the machine alone has all of it, whether others run side by side or not.
        shared = sharing if not remote and not stage.alone else None
        numbers = [number for _, _, number in (name.partition(":") for name in devices)]
        asked = sharing.request(stage) if sharing is not None and remote else None
        on_gpu = stage.device != "cpu"
        return StageSpec(
            kind=stage.kind,
            name=stage.name,
            key=stage.key,
            version=stage.version,
            config=stage.config,
            inputs={label: self._store.path(source.kind, source.key) for label, source in stage.inputs.items()},
            input_keys={label: source.key for label, source in stage.inputs.items()},
            libraries=stage.libraries,
            device=stage.device,
            interpreters=_interpreters(stage),
            environment=stage.hosted,
            alone=stage.alone,
            online=stage.online,
            gpus=tuple(map(int, numbers)) if shared is not None and devices and on_gpu else None,
            threads=self._plan.recipe.resources.threads or (shared.threads if shared is not None else None),
            gpus_wanted=asked.devices if asked is not None and on_gpu else 0,
            memory_wanted=asked.memory if asked is not None else None,
            device_class=self._plan.device.device_class if on_gpu == (self._plan.device.kind != "cpu") else "",
        )


def _interpreters(stage: Stage) -> dict[str, Path]:
    """Where the stage finds its environments. Raises StageFailed for one that is not here."""
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
