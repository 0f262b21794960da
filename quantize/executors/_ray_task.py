"""What a Ray task does on its node: the stage's lease, a last look whether it is to be done, then the local executor.

Its node has a name of its own among those that share the store, whatever machine it is on: containers of one kernel may
not see each other's locks.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantize import __version__
from quantize.device import choose, gpus
from quantize.errors import Interrupted, LeaseLost, QuantizeError, StageFailed
from quantize.executors.local import Local
from quantize.handed import WITHOUT_DEVICE, Progress, StageSpec
from quantize.leases import NODE, Lease
from quantize.store import Store

__all__ = ["document", "progress_file", "run_stage"]

_INTERVAL_SECONDS = 0.5
_THREADS = "OMP_NUM_THREADS"
_SHARED = (
    "Every node must see it by the same path: use a folder that all share, or name in resources.executor.resources "
)
_SHARED += "what only the nodes have that do."


def progress_file(log: Path) -> Path:
    """Where a task says how far it is."""
    return log.with_suffix(".progress")


def document(spec: StageSpec, store: Path, log: Path) -> dict[str, Any]:
    """A stage as JSON, and who asks for it. Which GPUs it sees, and its threads, are known when it is submitted."""
    stage = asdict(spec) | {
        "inputs": {name: str(path) for name, path in spec.inputs.items()},
        "interpreters": {name: str(path) for name, path in spec.interpreters.items()},
        "gpus": None,
    }
    return {
        "program": __version__,
        "store": str(store.absolute()),
        "log": str(log.absolute()),
        "stage": stage,
        "variables": {name: value for name, value in os.environ.items() if name == _THREADS or name.startswith("HF_")},
    }


def run_stage(job: dict[str, Any]) -> dict[str, Any] | None:
    """Run one stage on this node and commit it; None, or the error that it ended with.

    `job` is a `document`, and in `threads` how many CPUs Ray was asked for: as many threads it has.
    """
    try:
        _run(job)
    except Interrupted:
        raise  # whoever stops a node stops what runs on it: another one is to do it
    except QuantizeError as error:
        where = f"{error.where} (on {socket.gethostname()})" if error.where else f"node {socket.gethostname()}"
        tail = f"\n{error.tail}" if isinstance(error, StageFailed) and error.tail else ""
        return {"what": error.what + tail, "where": where, "fix": error.fix}
    return None


def _run(job: dict[str, Any]) -> None:
    _take_over(job["variables"])
    spec, store = _spec(job["stage"] | {"threads": job["threads"]}), Path(job["store"])
    _refuse(job["program"], spec, store)
    log, opened = Path(job["log"]), Store(store)
    told = _teller(progress_file(log))
    try:
        while opened.find(spec.kind, spec.key) is None:
            with opened.lease(spec.kind, spec.key, lambda owner: told(f"waiting: {owner} is at it", 0, None)) as lease:
                if opened.find(spec.kind, spec.key) is None:
                    _work(spec, store, log, told, lease)
    finally:
        progress_file(log).unlink(missing_ok=True)


def _work(spec: StageSpec, store: Path, log: Path, told: Progress, lease: Lease) -> None:
    try:
        Local().run(spec, store, log, told, lease)
    except StageFailed:
        with suppress(LeaseLost):
            lease.check()
            raise


def _spec(stage: dict[str, Any]) -> StageSpec:
    paths = {name: {label: Path(path) for label, path in stage[name].items()} for name in ("inputs", "interpreters")}
    return StageSpec(**(stage | paths | {"libraries": tuple(stage["libraries"])}))


def _take_over(variables: dict[str, str]) -> None:
    """The driver's variables, and not what Ray made of its own count of CPUs."""
    import ray

    os.environ.pop(_THREADS, None)
    os.environ.update(variables)
    # One process runs tasks of several GPUs, one after the other.
    gpus.cache_clear()
    if NODE not in os.environ:
        os.environ[NODE] = f"ray-{ray.get_runtime_context().get_node_id()[:16]}"


def _refuse(program: str, spec: StageSpec, store: Path) -> None:
    """Raise StageFailed where this node is not one that the stage may run on."""
    if program != __version__:
        raise StageFailed(
            f"quantize is {__version__} on this node, and {program} where the run was started.",
            fix="Install one version everywhere.",
        )
    for place in (store, *spec.inputs.values()):
        if not place.is_dir():
            raise StageFailed("this node does not have the store.", where=str(place), fix=_SHARED)
        for path in place.rglob("*") if place != store else ():
            if not path.exists():
                raise StageFailed(f"this node does not have {path.resolve()}.", where=str(path), fix=_SHARED)
    for name, python in spec.interpreters.items():
        if not python.is_file():
            raise StageFailed(
                f"this node does not have the environment {name}.",
                where=str(python),
                fix=f"Make it there (`quantize env create {name}`), or set QUANTIZE_ENVS to a folder that all share.",
            )
    if spec.kind not in WITHOUT_DEVICE and spec.device_class and choose(spec.device).device_class != spec.device_class:
        raise StageFailed(
            f"this node has {choose(spec.device).device_class}, and the plan is for {spec.device_class}.",
            fix="Start the driver on a node like those that work, and name what only these have in "
            "resources.executor.resources.",
        )


def _teller(file: Path) -> Progress:
    """A `Progress` that leaves the newest state in a file, whole."""
    last = 0.0

    def tell(what: str, done: float, total: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _INTERVAL_SECONDS:
            return
        last = now
        part = file.with_name(f"{file.name}.{os.getpid()}")
        with suppress(OSError):
            part.write_text(json.dumps([what, done, total]), encoding="utf-8")
            part.replace(file)

    return tell
