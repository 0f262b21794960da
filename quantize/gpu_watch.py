"""Watching GPUs through NVML: what lowered their clocks, who else used them, how fast and hot they were."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quantize.machine import handles
from quantize.processes import name_of

__all__ = ["GpuWatch", "in_container"]

#: NVML's bits of what lowers clocks from outside -> what it is. Idling, set clocks and the power limit are not in.
_LOWERED = {
    0x08: "a hardware slow-down",
    0x20: "heat (by the driver)",
    0x40: "heat (by the hardware)",
    0x80: "a power brake from outside",
}
_POWER_LIMIT = 0x04
#: The number of the first namespace of process ids. In another one NVML's ids may be those of the host.
_HOST_PIDS = "pid:[4026531836]"


class GpuWatch:
    """The visible GPUs that `device` (`cuda`, `cuda:1`) stands for, from `begin` to `end`."""

    def __init__(self, device: str) -> None:
        self._device = device

    def begin(self) -> None:
        """Start. What ran before does not count; where ids cannot be told apart, who is there now is not asked."""
        self._open = ExitStack()
        self._nvml, self._handles = self._open.enter_context(handles(self._device))
        self._seen: dict[str, list[float]] = {"clock": [], "temperature": [], "power": []}
        self._lowered: dict[str, int] = {}
        self._samples = self._limited = 0
        self._others: dict[int, str] = {}
        # NVML's time stamps are of the wall clock, in microseconds.
        self._since = int(time.time() * 1e6)
        self._before = (
            {pid for one in self._handles for pid in _computing(self._nvml, one)} if in_container() else set()
        )

    def sample(self, own: set[int]) -> None:
        """Look once. `own` are the processes that are ours."""
        known = own | self._before
        now = self._since
        for handle in self._handles:
            self._look(self._nvml, handle)
            for pid in _computing(self._nvml, handle) - known:
                self._others.setdefault(pid, f"{_called(pid)} was on the GPU.")
            # The driver keeps the last few seconds of these, so they are read as they come.
            for pid, (share, at) in _using(self._nvml, handle, self._since).items():
                now = max(now, at)
                if pid not in known and share > 0:
                    self._others[pid] = f"{_called(pid)} used the GPU (up to {share} %)."
        self._since = now

    def _look(self, nvml: Any, handle: Any) -> None:
        self._samples += 1
        bits = _number(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if bits is None:  # the function's name until driver 535
            bits = _number(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        for bit, name in _LOWERED.items():
            if int(bits or 0) & bit:
                self._lowered[name] = self._lowered.get(name, 0) + 1
        self._limited += bool(int(bits or 0) & _POWER_LIMIT)
        for name, read in (
            ("clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            ("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        ):
            if (value := _number(read)) is not None:
                self._seen[name].append(value)

    def end(self, own: set[int]) -> tuple[list[str], dict[str, str | float]]:
        """Look a last time; returns the reasons and the facts (MHz, °C, W, shares of the samples)."""
        self.sample(own)
        self._open.close()
        reasons = [
            f"GPU clocks were lowered by {name} in {count} of {self._samples} samples."
            for name, count in self._lowered.items()
        ]
        clock, temperature, power = (self._seen[name] for name in ("clock", "temperature", "power"))
        facts: dict[str, str | float] = {}
        if clock:
            facts["sm_clock_mean"] = round(sum(clock) / len(clock), 1)
        if temperature:
            facts["temperature_max"] = max(temperature)
        if power:
            facts["power_mean"] = round(sum(power) / len(power), 1)
        if self._samples:
            facts["at_power_limit"] = round(self._limited / self._samples, 4)
        if self._before - own:
            facts["unknown_processes"] = float(len(self._before - own))
        return [*reasons, *self._others.values()], facts

    def present(self, own: set[int]) -> list[str]:
        """Who else is on the GPUs now, whoever it is: a sentence each."""
        with handles(self._device) as (nvml, found):
            pids = {pid for handle in found for pid in _computing(nvml, handle)} - own
        return [f"{_called(pid)} was on the GPU." for pid in sorted(pids)]


def _computing(nvml: Any, handle: Any) -> set[int]:
    try:
        return {int(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except nvml.NVMLError:
        return set()


def _using(nvml: Any, handle: Any, since: int) -> dict[int, tuple[int, int]]:
    """Each process's largest share (per cent) of the multiprocessors since then, and when it was last seen.

    Empty where nobody had one, or the driver does not count it.
    """
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since)
    except nvml.NVMLError:
        return {}
    found: dict[int, tuple[int, int]] = {}
    for sample in samples:
        pid, at = int(sample.pid), int(sample.timeStamp)
        if at > since:
            share, last = found.get(pid, (0, 0))
            found[pid] = max(share, int(sample.smUtil)), max(last, at)
    return found


def _number(read: Callable[[], Any]) -> float | None:
    try:
        return float(read())
    except Exception:  # noqa: BLE001 (not every GPU has every sensor, nor every driver every function)
        return None


def _called(pid: int) -> str:
    name = None if in_container() else name_of(pid)
    return f"process {pid} ({name})" if name else f"process {pid} (as the driver counts)"


def in_container() -> bool:
    """Whether process ids here are not those of the host."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) != _HOST_PIDS
    except OSError:
        return False
