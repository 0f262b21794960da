"""Which processes a server consists of, and the memory that they hold: by /proc, and on GPUs by NVIDIA's driver."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.handed import Host

__all__ = ["gpu_bytes", "gpu_name", "gpu_total", "peak_resident", "serving_threads", "started_with"]


def serving_threads(host: Host) -> int:
    """Threads that a model computes with behind a server on a CPU, where the recipe does not say: all cores but one.

    Where kernels have all of them, the server's own process and the sender wait for their turn, and tokens arrive in
    lumps.
    """
    return host.threads or max(1, len(os.sched_getaffinity(0)) - 1)


def started_with(argument: str) -> list[int]:
    """Our children that have `argument` in their command line (the guard first), and all that they started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it ended meanwhile
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid for pid in parents.get(os.getpid(), []) if argument.encode() in _command(pid)]
    for pid in found:
        found += parents.get(pid, [])
    return found


def peak_resident(pids: Iterable[int]) -> int:
    """The most bytes that one of these processes has had resident: the one that holds the weights, on CPUs."""
    return max((_resident(pid) for pid in pids), default=0)


def gpu_name() -> str:
    """The GPU's name. By the driver's library: our own torch may be a build for CPUs."""
    with _nvml() as nvml:
        return str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))) if nvml else platform.machine()


def gpu_bytes(pids: Iterable[int]) -> int | None:
    """Bytes of GPU memory that some processes hold; None where the driver does not say."""
    wanted = set(pids)
    with _nvml() as nvml:
        held = [
            int(one.usedGpuMemory or 0)
            for index in range(nvml.nvmlDeviceGetCount() if nvml else 0)
            for one in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
            if one.pid in wanted
        ]
    return sum(held) or None


def gpu_total() -> int | None:
    """Bytes in use on the GPUs that this process may use, whoever holds them; None where there are none.

    In a container the driver names processes by numbers of the host's. A server that has the device to itself, as in
    a benchmark, is all that is on it but for what the driver keeps.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _nvml() as nvml:
        if nvml is None:
            return None
        names = ["0"] if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]
        return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles) or None


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _resident(pid: int) -> int:
    """Peak resident bytes of a process; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    kib = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(kib[1]) * 1024 if kib else 0


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, or None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  its errors are classes of its own, made when it is imported
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
