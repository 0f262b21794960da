"""The machine that times are measured on: what of it is stable and changes them, and its GPUs as NVML names them.

Times of two machines, or of one before and after a change, are never compared silently: `fingerprint` stands in the key
of every stage that measures time. So nothing in it may flicker. Limits stand in it and no readings (a GPU's largest
clock, not the current one; the widest PCIe link, which an idle GPU gives up), and nothing that names the machine: its
twin gives the same. Of the kernel's release the first two numbers are in: minor releases change the scheduler, while a
security patch would otherwise throw all evidence away. What cannot be read is `unknown`, every time.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.device import Device, cpu_features, visible

__all__ = ["device_names", "fingerprint", "handles", "quota"]

_UNKNOWN = "unknown"
_CPUS = Path("/sys/devices/system/cpu")
_GIB = 2**30


def fingerprint(device_kind: str) -> dict[str, str]:
    """What changes times on `cpu` or `cuda`. The CPU is in both: it is what keeps a GPU busy."""
    return {**_cpu(), **(_gpu(device_kind) if device_kind != "cpu" else {})}


def device_names(device: str) -> tuple[str, ...]:
    """Names of locks: `cpu`, or every GPU that a stage on `device` (`cuda`, `cuda:1`) may use, by its place on the bus.

    The bus and not the index: two processes with other CUDA_VISIBLE_DEVICES mean the same GPU.
    """
    if device == "cpu":
        return ("cpu",)
    with handles(device) as (nvml, found):
        places = [_ask(lambda one: nvml.nvmlDeviceGetPciInfo(one).busId, handle) for handle in found]
    return tuple(f"gpu-{re.sub('[^0-9A-Za-z]+', '-', place)}" for place in places) or ("gpu",)


@contextmanager
def handles(device: str) -> Iterator[tuple[Any, list[Any]]]:
    """NVML and its handles of the GPUs that `device` (`cuda`, `cuda:1`) stands for; no handles where there are none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 (without the library, or without a driver below it, there is no GPU)
        yield None, []
        return
    try:
        yield pynvml, _found(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _found(nvml: Any, device: str) -> list[Any]:
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    by_uuid = {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in every}
    seen = list(visible(by_uuid, os.environ.get("CUDA_VISIBLE_DEVICES")))
    _, _, index = device.partition(":")
    return seen[int(index) : int(index) + 1] if index else seen


def _gpu(device: str) -> dict[str, str]:
    with handles(device) as (nvml, found):
        if not found:
            return {"gpu": _UNKNOWN}

        def each(read: Callable[[Any], Any]) -> str:
            """What is read of every GPU, in their order; once where it is the same."""
            values = [_ask(read, handle) for handle in found]
            return values[0] if len(set(values)) == 1 else ", ".join(values)

        cuda = _ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "gpu": each(nvml.nvmlDeviceGetName),
            "gpus": str(len(found)),
            "gpu driver": _ask(nvml.nvmlSystemGetDriverVersion),
            "gpu cuda": f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}" if cuda.isdecimal() else cuda,
            "gpu power limit": each(lambda one: f"{nvml.nvmlDeviceGetPowerManagementLimit(one) / 1000:.0f} W"),
            "gpu sm clock": each(lambda one: f"{nvml.nvmlDeviceGetMaxClockInfo(one, nvml.NVML_CLOCK_SM)} MHz"),
            "gpu memory clock": each(lambda one: f"{nvml.nvmlDeviceGetMaxClockInfo(one, nvml.NVML_CLOCK_MEM)} MHz"),
            "gpu set clock": each(lambda one: f"{nvml.nvmlDeviceGetApplicationsClock(one, nvml.NVML_CLOCK_SM)} MHz"),
            "gpu mig": each(lambda one: nvml.nvmlDeviceGetMigMode(one)[0]),
            "gpu ecc": each(lambda one: nvml.nvmlDeviceGetEccMode(one)[0]),
            "gpu compute mode": each(nvml.nvmlDeviceGetComputeMode),
            "gpu persistence": each(nvml.nvmlDeviceGetPersistenceMode),
            "gpu pcie": each(
                lambda one: f"{nvml.nvmlDeviceGetMaxPcieLinkGeneration(one)} x{nvml.nvmlDeviceGetMaxPcieLinkWidth(one)}"
            ),
            "gpu nvlinks": each(lambda one: _nvlinks(nvml, one)),
        }


def _nvlinks(nvml: Any, handle: Any) -> str:
    """How many links are up, and of which version."""
    states = [_ask(nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    up = [link for link, state in enumerate(states) if state == "1"]
    return f"{len(up)} v{nvml.nvmlDeviceGetNvLinkVersion(handle, up[0])}" if up else "0"


def _ask(read: Callable[..., Any], *arguments: Any) -> str:
    """The answer as text; `unknown` where the GPU does not have it or the driver does not say."""
    try:
        answer = read(*arguments)
    except Exception:  # noqa: BLE001 (an old driver lacks the function, a small GPU the feature: both mean the same)
        return _UNKNOWN
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def _cpu() -> dict[str, str]:
    widest = Device("cpu", "", None, features=cpu_features()).instructions
    allowed = quota()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpuinfo("model name") or _cpuinfo("CPU part") or platform.processor() or _UNKNOWN,
        "cpu architecture": platform.machine(),
        "cpu instructions": widest or _UNKNOWN,
        "cpu cores": str(cores),
        "cpu quota": "none" if allowed is None else f"{allowed:g}",
        "cpu machine": f"{_sys('present')}, sockets {_kinds('topology/physical_package_id')}, SMT {_sys('smt/active')}",
        "cpu governor": _values("cpufreq/scaling_governor"),
        # Not `scaling_max_freq`: a hot machine lowers that.
        "cpu clock": _values("cpufreq/cpuinfo_max_freq"),
        "cpu turbo": f"{_sys('cpufreq/boost')} {_sys('intel_pstate/no_turbo')}",
        "numa nodes": str(len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        "hypervisor": "yes" if "hypervisor" in cpu_features() else "no",
        "memory": _memory(),
        "huge pages": _huge_pages(),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }


def quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many cores' time the control groups grant this process, the least of its group and those above; None: all."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        own = (root / controllers if controllers else root) / path.lstrip("/")
        # In a container the path may be the host's and not be there: then its own group is the root.
        top = root / controllers if controllers else root
        above = {parent for parent in own.parents if top in parent.parents}
        found += [_quota_of(group) for group in {top, own, *above}]
    return min((value for value in found if value is not None), default=None)


def _quota_of(group: Path) -> float | None:
    limit, _, period = _read(group / "cpu.max").partition(" ")
    if limit == _UNKNOWN:
        limit, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() else None


def _cpuinfo(field: str) -> str:
    """The values of a field in /proc/cpuinfo, each once; large and small cores have two."""
    text = _read(Path("/proc/cpuinfo"))
    return ", ".join(sorted(set(re.findall(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE))))


def _memory() -> str:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return f"{round(int(found[1]) * 1024 / _GIB)} GiB" if found else _UNKNOWN


def _huge_pages() -> str:
    """The chosen one of `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")))
    return found[1] if found else _UNKNOWN


def _sys(name: str) -> str:
    return _read(_CPUS / name)


def _kinds(name: str) -> int:
    return len({_read(path) for path in _CPUS.glob(f"cpu[0-9]*/{name}")})


def _values(name: str) -> str:
    return ", ".join(sorted({_read(path) for path in _CPUS.glob(f"cpu[0-9]*/{name}")})) or _UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return _UNKNOWN
