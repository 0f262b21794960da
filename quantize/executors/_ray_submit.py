"""`python -m quantize.executors._ray_submit TASK.json`: one stage as a task of a Ray cluster, to its end.

Says how far it is, and how it ended, as a worker does: by JSON lines on the descriptor that TASK.json names.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from quantize.errors import Interrupted, QuantizeError, StageFailed, UsageError
from quantize.executors._ray_task import progress_file, run_stage

__all__ = ["Node", "infeasible", "main", "share_of_cpus"]

_POLL_SECONDS = 0.3
_CONNECT_SECONDS = 10.0
#: How long a task that is cancelled has to end its stage, for which it takes up to 20 seconds itself.
_GRACE_SECONDS = 24.0
_SETTING = "resources.executor"


@dataclass(frozen=True, slots=True)
class Node:
    """A node that lives, and what it was started with."""

    address: str
    resources: Mapping[str, float]


def main(arguments: list[str]) -> int:
    """Entry point. Exit 0 when the stage is committed; otherwise an `error` event says why."""
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))

    def send(event: dict[str, Any]) -> None:
        with suppress(OSError):  # a driver that is gone is no reason to stop
            os.write(job["events"], (json.dumps(event) + "\n").encode())

    try:
        error = _submitted(job["asked"], job["task"], lambda told: send({"progress": told}))
    except QuantizeError as raised:
        send({"error": {"what": raised.what, "where": raised.where, "fix": raised.fix}})
        return raised.exit_code
    except Exception as raised:  # noqa: BLE001 (the boundary of the process: what Ray raises becomes a line in the driver)
        traceback.print_exc()
        what = f"Ray could not run it: {type(raised).__name__}: {_last_line(raised)}"
        send({"error": {"what": what, "where": None, "fix": None}})
        return 1
    if error is not None:
        send({"error": error})
        return 1
    return 0


def _submitted(asked: dict[str, Any], task: dict[str, Any], tell: Callable[[Any], None]) -> dict[str, Any] | None:
    """Connect, submit and follow; the error that the stage ended with, or None."""
    _connect(asked["address"])
    import ray

    own = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"] and (node["NodeID"] == own or not asked["here"])]
    nodes = [Node(node["NodeManagerAddress"], node["Resources"]) for node in alive]
    options = _options(asked, nodes)
    options["name"] = f"{task['stage']['kind']} {task['stage']['name']}".strip()
    if asked["here"]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=own, soft=False)
    reference = ray.remote(run_stage).options(**options).remote(task | {"threads": options["num_cpus"]})
    try:
        return _followed(reference, asked, progress_file(Path(task["log"])), tell)
    except BaseException:
        ray.cancel(reference, force=False)
        ray.wait([reference], timeout=_GRACE_SECONDS)
        raise


def _options(asked: dict[str, Any], nodes: Sequence[Node]) -> dict[str, Any]:
    """What Ray is asked for. Raises StageFailed where no node could ever give it.

    The estimate of memory is coarse: what is larger than every node gets all of the largest.
    """
    gpus = asked["gpus"]
    if asked["here"] and gpus:  # nothing else may run on the node's other GPUs
        gpus = max(int(node.resources.get("GPU", 0)) for node in nodes)
    cpus = asked["cpus"] or share_of_cpus(nodes, gpus)
    most = max((node.resources.get("memory", 0.0) for node in nodes), default=0.0)
    memory = int(min(asked["memory"] or 0.0, most))
    wanted = {"CPU": float(cpus), "GPU": float(gpus), "memory": float(memory)}
    wanted = {name: value for name, value in wanted.items() if value} | asked["resources"]
    if (problem := infeasible(wanted, nodes)) is not None:
        raise StageFailed(problem, fix=f"Start such a node, or ask for less in {_SETTING}.")
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "memory": memory or None,
        "resources": asked["resources"],
        "max_retries": asked["retries"],
        "retry_exceptions": [Interrupted],
    }


def _followed(reference: Any, asked: dict[str, Any], told: Path, tell: Callable[[Any], None]) -> dict[str, Any] | None:
    """The error that the stage ended with, or None. Raises StageFailed where the task is given up, by us or by Ray."""
    import ray

    until, before = time.monotonic() + 3600 * asked["deadline_hours"], b""
    while not ray.wait([reference], timeout=_POLL_SECONDS)[0]:
        with suppress(OSError, ValueError):
            if (now := told.read_bytes()) != before:
                before = now
                tell(json.loads(now))
        if time.monotonic() > until:
            raise StageFailed(
                f"it has not ended in {asked['deadline_hours']:g} hours.",
                fix=f"See on Ray's dashboard what it waits for, or set {_SETTING}.deadline_hours.",
            )
    try:
        error: dict[str, Any] | None = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        raise Interrupted("its Ray task was cancelled.", fix="Run the same command to resume.") from None
    except ray.exceptions.OutOfMemoryError as lost:
        fix = "See what `quantize plan` estimates, or use nodes with more memory."
        raise StageFailed(f"Ray killed it for memory: {_last_line(lost)}", fix=fix) from lost
    except ray.exceptions.RayTaskError as failed:
        if isinstance(failed.cause, Interrupted):
            what = f"it was stopped on its node, {1 + asked['retries']} times in all."
            raise StageFailed(what, fix="Run the same command to resume.") from failed
        fix = "This version of quantize has to be installed on every node; the log beside this stage's has more."
        raise StageFailed(f"its Ray task failed: {_last_line(failed)}", fix=fix) from failed
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as lost:
        what = f"its node or its process was lost, {1 + asked['retries']} times in all: {_last_line(lost)}"
        raise StageFailed(what, fix="Run the same command to resume.") from lost
    return error


def _connect(address: str) -> None:
    """Be a driver of the cluster at `address`. Raises UsageError where there is none, or one of another version."""
    import ray

    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    where = f"{_SETTING}.address {address}"
    fix = f"Start one (`ray start --head`), name its address, or leave {_SETTING} out."
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UsageError("Ray Client is not supported.", where=where, fix="Start the run on a node of the cluster.")
    if port.isdecimal():
        # Ray itself would try for minutes.
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise UsageError(f"no Ray cluster answers: {error.strerror or error}.", where=where, fix=fix) from None
    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "Version mismatch" in text:
            what, fix = f"the Ray cluster is of another version: {text}", "Install its versions of Ray and Python here."
        else:
            what = f"no Ray cluster answers: {text[:300]}"
        raise UsageError(what, where=where, fix=fix) from error
    # Ray has taken the signal for itself.
    signal.signal(signal.SIGTERM, _stop)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by a signal.")


def infeasible(wanted: Mapping[str, float], nodes: Sequence[Node]) -> str | None:
    """Why no node could ever run what is wanted, or None: Ray would wait for such a node for ever."""
    if any(all(node.resources.get(name, 0.0) >= value for name, value in wanted.items()) for node in nodes):
        return None
    there = [f"{node.address}: {_shown({name: node.resources.get(name, 0.0) for name in wanted})}" for node in nodes]
    had = "; ".join(there) or "no nodes"
    return f"no node of the Ray cluster can ever run it. It asks for {_shown(wanted)}; there are {had}."


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value / 1e9:.1f} GB" if name == "memory" else f"{name} {value:g}" for name, value in resources.items()
    )


def share_of_cpus(nodes: Sequence[Node], gpus: int) -> int:
    """CPUs of a stage where nobody says: its GPUs' share of the node with the fewest; without GPUs, all of a node's."""
    able = [node.resources for node in nodes if node.resources.get("GPU", 0.0) >= gpus and node.resources.get("CPU")]
    return max(1, int(min((node["CPU"] * gpus / node["GPU"] if gpus else node["CPU"] for node in able), default=1)))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv[1:]))
