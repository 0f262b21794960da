"""NVML with one GPU that does as a test says. There is no other way to see a GPU run hot, or a stranger on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml


class PlantedGpu:
    """What a test may change while it is watched. `reads` counts how often the clock was looked at."""

    def __init__(self) -> None:
        self.reasons = 0
        self.pids: list[int] = []
        self.using: dict[int, int] = {}
        self.clock, self.temperature, self.power = 1500, 60, 300_000
        self.reads = 0

    def plant(self, monkeypatch: Any) -> None:
        """Put it where the driver library would be."""

        def current_clock(_handle: Any, _kind: int) -> int:
            self.reads += 1
            return self.clock

        def lacking(*_: Any) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        def utilization(_handle: Any, since: int) -> list[Any]:
            return [SimpleNamespace(pid=pid, smUtil=share, timeStamp=since + 1) for pid, share in self.using.items()]

        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}a-serial",
            "nvmlDeviceGetName": lambda handle: "NVIDIA Planted",
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"00000000:6{handle}:00.0"),
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlDeviceGetPowerManagementLimit": lambda handle: 700_000 - handle * 100_000,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetApplicationsClock": lacking,
            "nvmlDeviceGetMigMode": lambda handle: [0, 0],
            "nvmlDeviceGetEccMode": lambda handle: [1, 1],
            "nvmlDeviceGetComputeMode": lambda handle: 0,
            "nvmlDeviceGetPersistenceMode": lambda handle: 1,
            "nvmlDeviceGetMaxPcieLinkGeneration": lambda handle: 5,
            "nvmlDeviceGetMaxPcieLinkWidth": lambda handle: 16,
            "nvmlDeviceGetNvLinkState": lambda handle, link: int(link < 4),
            "nvmlDeviceGetNvLinkVersion": lambda handle, link: 4,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: self.reasons,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=pid) for pid in self.pids],
            "nvmlDeviceGetProcessUtilization": utilization,
            "nvmlDeviceGetClockInfo": current_clock,
            "nvmlDeviceGetTemperature": lambda handle, sensor: self.temperature,
            "nvmlDeviceGetPowerUsage": lambda handle: self.power,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)
