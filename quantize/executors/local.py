"""The local executor: one worker process per stage, on this machine.

The worker runs in its own session, so that Ctrl-C reaches the driver alone, which then asks the worker to stop.

Stages share the device with other runs on this machine, but for those that measure time: these have it alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from quantize.child import link_to_package
from quantize.device_locks import holding
from quantize.errors import Interrupted, StageFailed
from quantize.handed import Progress, StageSpec
from quantize.machine import device_names
from quantize.record import Record
from quantize.store import writing

__all__ = ["Local"]

_TAIL_LINES = 15
_GRACE_SECONDS = 20.0
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
#: Threads that wait sleep instead of spinning: beside other work, spinning made sampling ten times slower.
_THREADS = {"OMP_WAIT_POLICY": "passive"}
#: GPUs are counted as NVML counts them, whose names stand in keys.
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
#: Stages that do not use the device: they copy files and read numbers.
_WITHOUT_DEVICE = ("fetch", "judge")


class Local(Record):
    """Stages one after the other, on this machine. `threads` caps the CPU threads of a stage (None: all cores)."""

    kind: Literal["local"] = "local"
    threads: int | None = None

    def run(self, spec: StageSpec, store: Path, log: Path, progress: Progress, lease: int) -> None:
        """See `protocols.Executor.run`."""
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
            job.write_text(json.dumps(self._job(spec, store, write, log)), encoding="utf-8")
            interpreter = sys.executable if spec.environment is None else spec.interpreters[spec.environment]
            process = subprocess.Popen(
                [interpreter, "-m", "quantize.worker", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write, lease, *device),
                start_new_session=True,
                env=self._environment(spec, Path(scratch)),
                # Of an interpreter that has modules of its own in the current directory, those would be taken first.
                cwd=scratch if spec.environment is not None else None,
            )
            os.close(write)
            error = _follow(process, read, progress)
        if process.returncode != 0 or error is not None:
            raise _failure(spec, process.returncode, error, log)

    def _environment(self, spec: StageSpec, scratch: Path) -> dict[str, str]:
        environment = {**_THREADS, **os.environ, **_QUIET, **_ORDER}
        if spec.kind != "fetch":
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        if spec.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
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
            "threads": self.threads,
        }


@contextmanager
def _device(spec: StageSpec, progress: Progress) -> Iterator[list[int]]:
    """Hold the locks of the stage's device for it, beside others or `alone`; yields their descriptors."""
    if spec.kind in _WITHOUT_DEVICE:
        yield []
        return

    def waiting(owner: str) -> None:
        progress(f"waiting: device used by {owner or 'another stage'}", 0, None)

    with holding(device_names(spec.device), f"{spec.kind} {spec.name}".strip(), waiting, alone=spec.alone) as held:
        yield held


def _follow(process: subprocess.Popen[bytes], read: int, progress: Progress) -> dict[str, Any] | None:
    """Read events until the worker ends; returns its error event, if it sent one."""
    error: dict[str, Any] | None = None
    try:
        with os.fdopen(read, encoding="utf-8") as events:
            for line in events:
                event = json.loads(line)
                if "progress" in event:
                    progress(*event["progress"])
                error = event.get("error", error)
        process.wait()
    except BaseException:
        _end(process)
        raise
    return error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(spec: StageSpec, returncode: int, error: dict[str, Any] | None, log: Path) -> StageFailed | Interrupted:
    if returncode == Interrupted.exit_code:
        return Interrupted(f"stage {spec.kind} {spec.name} was stopped.", fix="Run the same command to resume.")
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = "".join(deque(lines, _TAIL_LINES))
    if error is not None:
        what, where, fix = error["what"], error["where"], error["fix"]
        return StageFailed(what, where=where or f"stage {spec.kind} {spec.name}", fix=fix, tail=tail)
    if returncode == -signal.SIGKILL:
        what = "its process was killed (SIGKILL)."
        fix = "The usual cause is memory: see what `quantize plan` estimates, or use a machine with more of it."
    else:
        what, fix = f"its process ended with status {returncode}.", f"The whole log is {log}."
    return StageFailed(what, where=f"stage {spec.kind} {spec.name}", fix=fix, tail=tail)
