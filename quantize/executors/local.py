"""The local executor: one worker process per stage, on this machine.

The worker runs in its own session, so that Ctrl-C reaches the driver alone, which then asks the worker to stop.

Stages share the device with other runs on this machine, but for those that measure time: these have it alone. A stage
that was given some of the GPUs sees those alone, as `cuda:0` and so on, and holds the locks of those alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr

from quantize.child import link_to_package
from quantize.device_locks import holding
from quantize.executors._at_work import AtWork
from quantize.executors._following import followed
from quantize.executors._workers import Worker, forked, started
from quantize.handed import WITHOUT_DEVICE, Progress, StageSpec
from quantize.leases import Lease
from quantize.machine import device_names
from quantize.record import Record
from quantize.store import writing

__all__ = ["Local"]

_QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
#: Threads that wait sleep instead of spinning: beside other work, spinning made sampling ten times slower.
_THREADS = {"OMP_WAIT_POLICY": "passive"}
#: GPUs are counted as NVML counts them, whose names stand in keys.
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Local(Record):
    """Stages on this machine."""

    kind: Literal["local"] = "local"
    _at_work: AtWork = PrivateAttr(default_factory=AtWork)

    @property
    def remote(self) -> bool:
        """See `protocols.Executor`."""
        return False

    def run(self, spec: StageSpec, store: Path, log: Path, progress: Progress, lease: Lease | None) -> None:
        """See `protocols.Executor`."""
        if lease is None:
            raise ValueError("a stage on this machine needs its lease")
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        with (
            _device(spec, progress) as device,
            tempfile.TemporaryDirectory() as scratch,
            log.open("wb") as output,
        ):
            read, write = os.pipe()
            job = Path(scratch) / "stage.json"
            document = self._job(spec, store, write, log) | {"lease": lease.document()}
            job.write_text(json.dumps(document), encoding="utf-8")
            start = partial(self._start, spec, job, output.fileno(), (write, lease.descriptor, *device))
            followed(self._at_work, start, spec, (read, write), log, progress)

    def stop(self) -> None:
        """See `protocols.Executor`."""
        self._at_work.stop()

    def _start(self, spec: StageSpec, job: Path, output: int, descriptors: Sequence[int]) -> Worker:
        """The stage's process; the first of the descriptors takes its events."""
        scratch = job.parent
        environment = self._environment(spec, scratch)
        # To fetch from the hub needs a server of its own: libraries read whether they may when they are imported.
        if spec.environment is None and not (spec.kind == "fetch" and spec.online):
            events, *held = descriptors
            if worker := forked(job, output, events, held, environment):
                return worker
        interpreter = sys.executable if spec.environment is None else str(spec.interpreters[spec.environment])
        # Of an interpreter that has modules of its own in the current directory, those would be taken first.
        folder = scratch if spec.environment is not None else None
        return started([interpreter, "-m", "quantize.worker", str(job)], output, descriptors, environment, folder)

    def _environment(self, spec: StageSpec, scratch: Path) -> dict[str, str]:
        environment = {**_THREADS, **os.environ, **_QUIET, **_ORDER}
        if not spec.online:
            environment |= _OFFLINE
        if spec.device == "cpu":
            environment[_VISIBLE] = ""
        elif spec.gpus is not None:
            environment[_VISIBLE] = _named(spec.gpus, os.environ.get(_VISIBLE))
        if spec.threads is not None:
            environment["OMP_NUM_THREADS"] = str(spec.threads)
        if spec.environment is not None:
            environment |= {"PYTHONPATH": str(link_to_package(scratch)), "PYTHONNOUSERSITE": "1"}
        return environment

    def _job(self, spec: StageSpec, store: Path, events: int, log: Path) -> dict[str, Any]:
        """What the worker is given."""
        return {
            "kind": spec.kind,
            "name": spec.name,
            "key": spec.key,
            "config": spec.config,
            "inputs": {name: str(path) for name, path in spec.inputs.items()},
            "input_keys": spec.input_keys,
            "libraries": list(spec.libraries),
            "interpreters": {name: str(path) for name, path in spec.interpreters.items()},
            "device": spec.device,
            "store": str(store),
            "events": events,
            # Beside the stage's own log: what the processes that it starts write.
            "logs": str(log.with_suffix("").absolute()),
            "threads": spec.threads,
        }


def _named(gpus: Sequence[int], seen: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for some of the GPUs that the driver sees, each as the driver's own variable has it."""
    names = [name.strip() for name in seen.split(",")] if seen is not None else None
    return ",".join(str(gpu) if names is None else names[gpu] for gpu in gpus)


@contextmanager
def _device(spec: StageSpec, progress: Progress) -> Iterator[list[int]]:
    """Hold the locks of the stage's device for it, beside others or `alone`; yields their descriptors."""
    if spec.kind in WITHOUT_DEVICE:
        yield []
        return

    def waiting(owner: str) -> None:
        progress(f"waiting: device used by {owner or 'another stage'}", 0, None)

    own = [spec.device] if spec.gpus is None else [f"{spec.device}:{gpu}" for gpu in spec.gpus]
    names = [name for device in own for name in device_names(device)]
    with holding(names, f"{spec.kind} {spec.name}".strip(), waiting, alone=spec.alone) as held:
        yield held
