"""Which stages run now: devices and memory, given to whoever is nearest to a decision.

`Slots` is a pure machine without threads or clocks: requests are submitted, `granted` gives what is free, `release`
takes it back. The same calls grant the same things, so that a simulation may drive it as a run does (`desk.Desk`).

    a request waits in the order of its priority, lower first, then in the order of coming
    one that does not fit lets later ones pass, if they fit: a judge runs beside an evaluation that waits for a GPU
    one that wants to be alone lets nobody pass: what runs ends, it runs, the others follow
    one that was overtaken too often comes first, and nothing that takes what it waits for passes it any more
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantize.errors import QuantizeError

__all__ = ["Capacity", "Request", "Slots"]

#: For each device, how many that came later may be served before one that waits.
_PATIENCE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is: `devices` by name with their bytes of memory, the host's `memory` in bytes (None: not known).

    At most `stages` run at once (None: as many as there is room for).
    """

    devices: Mapping[str, float | None]
    memory: float | None = None
    stages: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What `who` wants: so many `devices` (0: none), bytes of the host's `memory` and of the devices' together.

    `alone` is for one that measures time: it gets every device, and nothing runs meanwhile. Where the bytes are not
    known (None) they are not counted.
    """

    who: str
    priority: tuple[float, ...] = ()
    devices: int = 0
    memory: float | None = None
    device_memory: float | None = None
    alone: bool = False

    @property
    def each(self) -> float:
        """Bytes that every one of its devices must have."""
        return (self.device_memory or 0.0) / max(1, self.devices)


@dataclass(slots=True)
class _Waiting:
    ticket: int
    request: Request
    overtaken: int = 0


class Slots:
    """Grants of one machine. Not for several threads: see `desk.Desk`."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._patience = _PATIENCE * max(1, len(capacity.devices))
        self._waiting: list[_Waiting] = []
        self._running: dict[int, tuple[Request, tuple[str, ...]]] = {}
        self._tickets = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        """Let a request wait; returns its ticket. Raises QuantizeError for one that could never be granted."""
        self.check(request)
        self._tickets += 1
        self._waiting.append(_Waiting(self._tickets, request))
        return self._tickets

    def granted(self) -> list[tuple[int, tuple[str, ...]]]:
        """Grant what may run now: tickets and the names of their devices, in the order of the grants."""
        found = []
        while (chosen := self._next()) is not None:
            waiting, devices = chosen
            self._waiting.remove(waiting)
            self._running[waiting.ticket] = (waiting.request, devices)
            for other in self._waiting:
                other.overtaken += other.ticket < waiting.ticket
            found.append((waiting.ticket, devices))
        return found

    def release(self, ticket: int) -> None:
        """Give back what a ticket has, or its place in the queue."""
        self._running.pop(ticket, None)
        self._waiting = [waiting for waiting in self._waiting if waiting.ticket != ticket]

    def _next(self) -> tuple[_Waiting, tuple[str, ...]] | None:
        """The one to be granted next, and its devices."""
        reserved = False
        for waiting in sorted(self._waiting, key=self._order):
            wanted = waiting.request
            takes = wanted.devices > 0 or bool(wanted.memory)
            if not (reserved and takes) and (devices := self._fitting(wanted)) is not None:
                return waiting, devices
            if wanted.alone:
                return None
            reserved = reserved or self._overdue(waiting)
        return None

    def _order(self, waiting: _Waiting) -> tuple[bool, tuple[float, ...], int]:
        overdue = self._overdue(waiting)
        return (not overdue, () if overdue else waiting.request.priority, waiting.ticket)

    def _overdue(self, waiting: _Waiting) -> bool:
        return waiting.overtaken >= self._patience

    def _fitting(self, wanted: Request) -> tuple[str, ...] | None:
        """The devices that it may have beside what runs, None where it may not run now."""
        running = [request for request, _ in self._running.values()]
        if wanted.alone:
            return tuple(self.capacity.devices) if not running else None
        if any(request.alone for request in running):
            return None
        if self.capacity.stages is not None and len(running) >= self.capacity.stages:
            return None
        used = sum(request.memory or 0.0 for request in running)
        if self.capacity.memory is not None and wanted.memory and used + wanted.memory > self.capacity.memory:
            return None
        taken = {name for _, devices in self._running.values() for name in devices}
        free = [name for name in self._large_enough(wanted) if name not in taken]
        return tuple(free[: wanted.devices]) if len(free) >= wanted.devices else None

    def _large_enough(self, wanted: Request) -> list[str]:
        return [name for name, memory in self.capacity.devices.items() if memory is None or memory >= wanted.each]

    def check(self, wanted: Request) -> None:
        """Raise QuantizeError for a request that could never be granted, whatever else runs."""
        limit, need = self.capacity.memory, wanted.memory or 0.0
        if limit is not None and need > limit:
            raise QuantizeError(
                f"it needs about {need / 1e9:.1f} GB of memory and stages may have {limit / 1e9:.1f} GB.",
                where=wanted.who,
                fix="Raise resources.memory_gb, or use a machine with more.",
            )
        large = self._large_enough(wanted)
        if wanted.devices > len(large):
            size = f" with {wanted.each / 1e9:.1f} GB of memory" if len(large) < len(self.capacity.devices) else ""
            many = f"{wanted.devices} devices" if wanted.devices > 1 else "a device"
            raise QuantizeError(
                f"it needs {many}{size} and there are {len(large)}.",
                where=wanted.who,
                fix="Let its engine use fewer (tensor_parallel_size), or use a machine with more.",
            )
