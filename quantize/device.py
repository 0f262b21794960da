"""Which accelerator this machine has, asked of the driver library and not of torch: the driver stays light.

NVML is NVIDIA's management library (nvidia-ml-py). Without it, or without a GPU, the answer is the CPU.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from quantize.errors import UsageError

__all__ = ["Device", "capability", "choose", "cpu_features", "gpus", "visible"]

_T = TypeVar("_T")

#: CPU flags by which kernels are chosen, the widest first.
_INSTRUCTIONS = ("amx_tile", "avx512f", "avx2", "asimd")


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is torch's device string, `name` the product's, `memory` in bytes (None where unknown).

    What engines ask of it: a GPU's compute `capability` (8, 9 for Ada), a CPU's `features` as Linux names them
    (`avx2`, `avx512f`, `amx_tile`). None and empty mean that it is not known.
    """

    kind: str
    name: str
    memory: int | None
    capability: tuple[int, int] | None = None
    features: frozenset[str] = frozenset()

    @property
    def instructions(self) -> str | None:
        """The widest instructions of a CPU, as far as they are known; None on a GPU, whose name says it all."""
        if self.kind != "cpu":
            return None
        return next((name for name in _INSTRUCTIONS if name in self.features), "plain")

    @property
    def device_class(self) -> str:
        """What goes into keys: arms measured on different classes are never compared."""
        return self.name if self.kind != "cpu" else f"cpu-{platform.machine()}"


@cache
def gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that this process may use, in the driver's order (CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found: dict[str, Device] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            name = str(pynvml.nvmlDeviceGetName(handle))
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            device = Device("cuda", name, memory, (int(major), int(minor)))
            found[str(pynvml.nvmlDeviceGetUUID(handle))] = device
    finally:
        pynvml.nvmlShutdown()
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: dict[str, _T], wanted: str | None) -> tuple[_T, ...]:
    """Those of `found` (by UUID) that CUDA_VISIBLE_DEVICES names, by index or by the start of a UUID.

    CUDA stops at the first wrong name.
    """
    if wanted is None:
        return tuple(found.values())
    seen = []
    for part in wanted.split(","):
        name = part.strip()
        if name.isdecimal() and int(name) < len(found):
            seen.append(list(found.values())[int(name)])
        elif name and any(uuid.startswith(name) for uuid in found):
            seen.append(next(one for uuid, one in found.items() if uuid.startswith(name)))
        else:
            break
    return tuple(seen)


def choose(wanted: str) -> Device:
    """The device for `auto`, `cpu` or `cuda`. Raises UsageError where `cuda` is asked for and there is none."""
    if wanted != "cpu" and gpus():
        return gpus()[0]
    if wanted == "cuda":
        raise UsageError(
            "the recipe asks for a CUDA device and this machine shows none.",
            fix="Check `nvidia-smi`, or run with --set resources.device=cpu.",
        )
    return Device("cpu", platform.processor() or platform.machine(), _memory(), features=cpu_features())


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of an x86 CPU by Linux's names; empty on other systems and architectures."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.partition(":")[0].strip() == "flags")
    return frozenset(next(flags, []))


def _memory() -> int | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(pages * size, int(text)) if text.isdigit() else pages * size


def capability() -> tuple[int, int] | None:
    """The first GPU's compute capability (8, 9 for Ada), or None without one."""
    return gpus()[0].capability if gpus() else None
