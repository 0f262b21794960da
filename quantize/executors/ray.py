"""The Ray executor: each stage a task of a Ray cluster, with the GPUs, CPUs and memory that the plan says.

Ray places tasks and tries them again on another node where one is lost; nothing is scheduled here. No artifact passes
through Ray: every node sees the store by the same path, and a stage commits there as it does on one machine. A task
takes the stage's lease on the node that it runs on (`_ray_task.py`), so one that is tried again waits for an orphan
that may still be at it, and an orphan cannot publish over its successor.

A process stands between driver and cluster for each stage (`_ray_submit.py`), and is followed as a stage on this
machine is: Ray ends the process that is connected to it when the cluster is lost, takes its SIGTERM, and writes to its
standard output. Where the driver is killed, that process stays, and the stage is finished and committed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr

from quantize.errors import MissingDependency
from quantize.executors._at_work import AtWork
from quantize.executors._following import followed
from quantize.executors._ray_task import document
from quantize.executors._workers import started
from quantize.handed import WITHOUT_DEVICE, Progress, StageSpec
from quantize.leases import Lease
from quantize.record import Record
from quantize.store import writing

__all__ = ["Ray"]

#: How long a process that submitted a task has to end it; longer than that gives the task.
_GRACE_SECONDS = 28.0


class Ray(Record):
    """Stages as tasks of a Ray cluster.

    `cpus` are those of a stage, and its threads; unset: the recipe's threads, else a GPU's share of the node that has
    the fewest. `resources` are names of Ray's that nodes were started with, for what only some of them can do.
    """

    kind: Literal["ray"] = "ray"
    address: str = Field("auto", description="The cluster's address; auto: RAY_ADDRESS, or the one on this machine.")
    cpus: int | None = Field(None, ge=1, description="CPUs of a stage.")
    retries: int = Field(3, ge=0, description="How often a stage whose node or process was lost is tried again.")
    deadline_hours: float = Field(48.0, gt=0, description="When a stage that has not ended is given up.")
    resources: dict[str, float] = Field(default_factory=dict, description="Ray resources that a node must have.")
    _at_work: AtWork = PrivateAttr(default_factory=lambda: AtWork(_GRACE_SECONDS))

    @property
    def remote(self) -> bool:
        """See `protocols.Executor`."""
        return True

    def run(self, spec: StageSpec, store: Path, log: Path, progress: Progress, lease: Lease | None) -> None:
        """See `protocols.Executor`."""
        if find_spec("ray") is None:
            raise MissingDependency("Ray is not installed.", fix="Run: pip install 'quantize[ray]'")
        # The stage's own log is written on its node.
        own = log.with_suffix(".ray.log")
        with writing(own):
            own.parent.mkdir(parents=True, exist_ok=True)
            own.touch()
        with tempfile.TemporaryDirectory() as scratch, own.open("wb") as output:
            read, write = os.pipe()
            job = Path(scratch) / "task.json"
            asked = self.model_dump() | {
                "cpus": 1 if spec.kind in WITHOUT_DEVICE else self.cpus or spec.threads,
                "gpus": spec.gpus_wanted,
                "memory": spec.memory_wanted,
                # The key of what measures time holds the fingerprint of the machine that the plan was made on.
                "here": spec.alone,
            }
            task = {"asked": asked, "events": write, "task": document(spec, store, log)}
            job.write_text(json.dumps(task), encoding="utf-8")
            command = [sys.executable, "-m", "quantize.executors._ray_submit", str(job)]
            start = partial(started, command, output.fileno(), (write,), dict(os.environ), None)
            followed(self._at_work, start, spec, (read, write), own, progress)

    def stop(self) -> None:
        """See `protocols.Executor`."""
        self._at_work.stop()
