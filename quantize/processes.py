"""Whose CPU time it was: the time of a tree of processes, its ended ones included, beside that of the whole machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuTime", "MachineTime", "machine_time", "name_of", "tree"]

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    """One line of /proc/<pid>/stat. Ticks: `started` since boot, `own` of its threads, `reaped` of ended children."""

    pid: int
    parent: int
    started: int
    own: int
    reaped: int


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Seconds since boot, over all `cores`: `busy` with processes, `stolen` by the hypervisor."""

    cores: int
    busy: float
    stolen: float


def machine_time(stat: Path = _PROC / "stat") -> MachineTime | None:
    """The whole machine's, in a container too: what slows us down need not be in it. None where the system has none.

    Interrupts are left out: the kernel does not say for whom they were, and ours would look like somebody else's.
    """
    try:
        lines = stat.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    cores = sum(1 for line in lines if line.startswith("cpu") and line[3:4].isdigit())
    # user (guests included), nice, system, idle, iowait, irq, softirq, steal
    user, nice, system, _idle, _wait, _irq, _soft, steal = (int(field) for field in lines[0].split()[1:9])
    return MachineTime(cores, (user + nice + system) / _TICKS, steal / _TICKS)


def tree(pid: int) -> set[int]:
    """A process and all that descend from it."""
    return _family([pid], _processes())


def name_of(pid: int) -> str | None:
    """The command's name, or None where no such process is to be seen."""
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


class CpuTime:
    """CPU time of processes and their descendants since this was made.

    Once ours, always ours: a process is followed when its parent ends. Two sums, each of which can only miss time, and
    the larger one counts. One is of processes as they were last seen; it misses what ran between two samples. The other
    adds what parents were credited with when they waited for ended children; it misses those that nobody waited for.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._first: dict[tuple[int, int], _Process] = {}
        self._last: dict[tuple[int, int], _Process] = {}
        self._alive: set[tuple[int, int]] = set()
        self._begun = float("inf")
        self.sample(pids)
        # In ticks since boot, as starts are given.
        self._begun = time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS - 1 if _PROC.is_dir() else 0.0

    def sample(self, pids: Iterable[int]) -> None:
        """Look at the processes, at `pids` besides those already known. Call it about once a second."""
        alive = _processes()
        known = [pid for pid, started in self._last if pid in alive and alive[pid].started == started]
        self._alive = set()
        for pid in _family([*pids, *known], alive):
            process = alive[pid]
            identity = (pid, process.started)
            # One that was there before, but is ours only now, comes with a past that does not count.
            born = process.started >= self._begun
            self._first.setdefault(identity, _Process(pid, 0, 0, 0, 0) if born else process)
            self._last[identity] = process
            self._alive.add(identity)

    @property
    def pids(self) -> set[int]:
        """All that were ours at any time."""
        return {pid for pid, _ in self._last}

    def seconds(self) -> float:
        """CPU seconds so far, as of the last sample."""
        ours = self.pids
        seen = sum(last.own - self._first[identity].own for identity, last in self._last.items())
        credited = 0
        for identity, last in self._last.items():
            first = self._first[identity]
            # An ended process is in its parent's account, if that one is ours; here remains what it began with.
            inherited = identity not in self._alive and last.parent in ours
            credited += (0 if inherited else last.own + last.reaped) - (first.own + first.reaped)
        return max(seen, credited) / _TICKS


def _family(roots: Iterable[int], alive: dict[int, _Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in alive.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    left = [pid for pid in roots if pid in alive]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def _processes() -> dict[int, _Process]:
    """All processes that are to be seen, by pid."""
    found = {}
    # By plain names: it may be thousands, every second.
    for name in os.listdir(_PROC) if _PROC.is_dir() else []:  # noqa: PTH208
        if name.isdigit() and (process := _process(int(name))) is not None:
            found[process.pid] = process
    return found


def _process(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (as above)
            # The command's name may hold anything, brackets too; the fields after its last one are numbers.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return _Process(pid, int(fields[1]), int(fields[19]), own, reaped)
