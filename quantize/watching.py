"""Watching a measurement of time: whether the machine belonged to it, and ran as it always does.

`Watch` is begun before a load and ended after it. What it tells as a reason makes the block invalid: it is kept on
record and run again. What it tells as a fact stands beside the numbers.

    reason  another process used the GPU, or more than a share of the machine's CPU time; the hypervisor took time away
    reason  clocks were lowered for heat, or by a slow-down or power brake from outside; the clock was set
    fact    clocks, temperature, power; the share of samples in which the GPU was at its power limit

Being at the power limit is no reason: the limit is in the machine's fingerprint, production runs under it too, and an
arm that draws more power is rightly the slower one. Nor is CPU time of others while a GPU is measured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quantize.gpu_watch import GpuWatch
from quantize.processes import CpuTime, MachineTime, machine_time

__all__ = ["Watch", "Watched", "check_alone"]

#: Seconds between two samples of a GPU, and of the processes (looking at all of them costs more).
_GPU_SECONDS = 0.2
_CPU_SECONDS = 1.0
#: A step of the clock in seconds. Slewing is not seen: it moves both clocks alike.
_STEP = 0.005
#: CPU time is counted in ticks of a hundredth of a second: less than this is no evidence.
_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Watched:
    """Why the block is invalid, in sentences (empty: it is not), and what was seen. Shares are of the machine's."""

    reasons: list[str] = field(default_factory=list)
    facts: dict[str, str | float] = field(default_factory=dict)


class Watch:
    """Watches from `begin` to `end`, again and again if need be.

    `device` is `cpu` or `cuda`; `own` gives the processes that are ours, and what descends from them is ours too
    (without it: this process). `foreign` is the share of the machine's CPU time that others may use, `stolen` the one
    that the hypervisor may take.
    """

    def __init__(
        self, device: str, own: Callable[[], set[int]] | None = None, *, foreign: float = 0.05, stolen: float = 0.01
    ) -> None:
        self._own = own or (lambda: {os.getpid()})
        self._on_cpu = device == "cpu"
        self._gpu = None if self._on_cpu else GpuWatch(device)
        self._foreign, self._stolen = foreign, stolen
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start watching. What ran before does not count. What of ours uses a GPU must be on it by now."""
        self._over = threading.Event()
        self._offset = time.time() - time.monotonic()
        self._throttles = _throttles()
        if self._gpu is not None:
            self._gpu.begin()
        self._cpu = CpuTime(self._own())
        self._machine, self._began = machine_time(), time.monotonic()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> Watched:
        """Stop watching, and say what was seen."""
        if self._thread is None:
            raise RuntimeError("a watch is ended that was not begun")
        self._over.set()
        self._thread.join()
        self._thread = None
        self._cpu.sample(self._own())
        machine, wall = machine_time(), time.monotonic() - self._began
        step = (time.time() - time.monotonic()) - self._offset
        reasons, facts = [], dict[str, str | float]()
        if abs(step) > _STEP:
            reasons.append(f"the clock was set by {step * 1000:+.0f} ms.")
        if self._machine is not None and machine is not None:
            of_cpu, facts = self._of_cpu(self._machine, machine, wall)
            reasons += of_cpu if self._on_cpu else []
        if self._gpu is not None:
            of_gpu, more = self._gpu.end(self._cpu.pids)
            reasons, facts = reasons + of_gpu, {**facts, **more}
        return Watched(reasons, facts)

    def _of_cpu(self, before: MachineTime, after: MachineTime, wall: float) -> tuple[list[str], dict[str, str | float]]:
        whole = after.cores * wall
        others = max(0.0, after.busy - before.busy - self._cpu.seconds())
        stolen = after.stolen - before.stolen
        throttles = _throttles() - self._throttles
        reasons = []
        if others > self._foreign * whole and others > _LEAST_SECONDS:
            reasons.append(
                f"other processes used {others / whole:.1%} of the machine's CPU time (at most {self._foreign:.0%})."
            )
        if stolen > self._stolen * whole and stolen > _LEAST_SECONDS:
            reasons.append(f"the hypervisor took {stolen / whole:.1%} of the CPU time (at most {self._stolen:.0%}).")
        if throttles > 0:
            reasons.append(f"CPU clocks were lowered for heat ({throttles} times).")
        return reasons, {"foreign": round(others / whole, 4), "stolen": round(stolen / whole, 4)}

    def _sample(self) -> None:
        """Look at the GPU and the processes until it is over."""
        looked = time.monotonic()
        every = _CPU_SECONDS if self._gpu is None else _GPU_SECONDS
        while not self._over.wait(every):
            if self._gpu is not None:
                self._gpu.sample(self._cpu.pids)
            if time.monotonic() - looked >= _CPU_SECONDS:
                looked = time.monotonic()
                self._cpu.sample(self._own())


def check_alone(
    device: str, own: Callable[[], set[int]] | None = None, *, seconds: float = 1.0, foreign: float = 0.05
) -> list[str]:
    """Why the device is not ours alone just now, in sentences; empty where it is. Takes `seconds`.

    To be called before anything of ours is on a GPU: in a container the driver's process ids cannot be told apart, and
    then every process on the GPU is somebody else's.
    """
    watch = Watch(device, own, foreign=foreign)
    watch.begin()
    time.sleep(seconds)
    mine = (own or (lambda: {os.getpid()}))()
    present = GpuWatch(device).present(mine) if device != "cpu" else []
    return list(dict.fromkeys([*present, *watch.end().reasons]))


def _throttles(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """How often clocks were lowered for heat since boot, over all CPUs; 0 where that is not counted."""
    count = 0
    for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        try:
            count += int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return count
