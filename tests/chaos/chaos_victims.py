"""What is struck, and when: a victim has a name, a way to pick its processes, and what is done to them.

Another kind of process (the worker of another executor, say) is one line more in `VICTIMS`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from chaos_world import LEASE_SECONDS, World
from program import below

#: How long the server stays away, and how long who sleeps does: past the lease in any case.
_AWAY_SECONDS = (1.0, 2.0)
_ASLEEP_SECONDS = (1.5 * LEASE_SECONDS, 3 * LEASE_SECONDS)
#: Between two looks for a victim that is not there now.
_LOOK_SECONDS = 1.0

Pick = Callable[[World, random.Random], list[int]]


@dataclass(frozen=True)
class Victim:
    """`pick` gives the processes that are struck at once, none where there is no such victim now.

    `share` is how often it is drawn beside the others. `after` mends what was done, some seconds later (`seconds`:
    from, to).
    """

    name: str
    share: int
    pick: Pick
    signal: signal.Signals = signal.SIGKILL
    after: Callable[[World, Sequence[int]], None] | None = None
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def kills(self) -> bool:
        return self.signal == signal.SIGKILL


def _driver(world: World, draw: random.Random) -> list[int]:
    drivers = world.drivers()
    return [draw.choice(drivers)] if drivers else []


def _worker(world: World, draw: random.Random) -> list[int]:
    workers = _workers(world, world.processes())
    return [draw.choice(workers)] if workers else []


def _node(world: World, draw: random.Random) -> list[int]:
    """All of a node that has a stage at work: driver, fork server, workers, and what was orphaned there before."""
    processes = world.processes()
    names = sorted({processes[worker] for worker in _workers(world, processes)})
    name = draw.choice(names) if names else None
    return [pid for pid, node in processes.items() if node == name]


def _workers(world: World, processes: Iterable[int]) -> list[int]:
    """Those that a driver's fork server made or the driver itself started, and orphans of drivers that were killed."""
    drivers = set(world.drivers())
    return [pid for pid in processes if pid not in drivers and _runs_a_stage(pid, drivers)]


def _runs_a_stage(pid: int, drivers: set[int]) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        # A fork server is its driver's child; what it forked looks the same, and is not.
        return b"quantize.worker" in program or (b"quantize.forkserver" in program and parent not in drivers)
    return False


def _server(world: World, _draw: random.Random) -> list[int]:
    process = world.server.process
    return [process.pid, *below(process.pid)] if process is not None and process.poll() is None else []


def _restart(world: World, _struck: Sequence[int]) -> None:
    world.server.kill()
    world.server.launch()


def _wake(_world: World, struck: Sequence[int]) -> None:
    for pid in struck:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


VICTIMS = (
    Victim("a stage's worker", 30, _worker),
    Victim("a driver", 24, _driver),
    Victim("a node", 20, _node),
    Victim("the MLflow server", 10, _server, after=_restart, seconds=_AWAY_SECONDS),
    Victim("a worker, asleep", 8, _worker, signal.SIGSTOP, _wake, _ASLEEP_SECONDS),
    Victim("a node, asleep", 8, _node, signal.SIGSTOP, _wake, _ASLEEP_SECONDS),
)


@dataclass
class Chaos:
    """Strikes at random moments, until there were `kills` kills or the clock says `until`."""

    draw: random.Random
    kills: int
    until: float
    #: Seconds between two strikes, on average.
    pause: float
    counts: Counter[str] = field(default_factory=Counter)
    _aim: Victim | None = None
    _next: float = 0.0
    _mends: list[tuple[float, Victim, list[int]]] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """How many kills there were: who sleeps is none."""
        return sum(self.counts[victim.name] for victim in VICTIMS if victim.kills)

    @property
    def over(self) -> bool:
        return self.killed >= self.kills or time.monotonic() >= self.until

    @property
    def _asleep(self) -> set[int]:
        """Who was put to sleep and not woken yet: to do it again would only wake them early."""
        return {pid for _, victim, struck in self._mends if not victim.kills for pid in struck}

    def look(self, world: World) -> None:
        """Mend what is due, and strike where the time has come."""
        now = time.monotonic()
        for mend in [mend for mend in self._mends if mend[0] <= now]:
            self._mend(world, mend)
        if self.over or now < self._next:
            return
        self._aim = self._aim or self.draw.choices(VICTIMS, [victim.share for victim in VICTIMS])[0]
        struck = self._aim.pick(world, self.draw)
        if struck and (self._aim.kills or not self._asleep & set(struck)):
            self._strike(world, self._aim, struck)
            self._aim, self._next = None, now + self.draw.uniform(0, 2 * self.pause)
        else:
            self._next = now + self.draw.uniform(0, _LOOK_SECONDS)

    def settle(self, world: World) -> None:
        """Mend at once all that is left to mend."""
        for mend in list(self._mends):
            self._mend(world, mend)
        world.server.wait()

    def _strike(self, world: World, victim: Victim, struck: list[int]) -> None:
        owners = world.processes()
        for pid in struck:
            with suppress(ProcessLookupError):
                os.kill(pid, victim.signal)
        for node in world.nodes:
            node.killed |= victim.kills and node.name in {owners.get(pid) for pid in struck}
        self.counts[victim.name] += 1
        with (world.folder / "strikes.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%H:%M:%S.%f} {victim.name}: {struck}\n")
        if victim.after is not None:
            self._mends.append((time.monotonic() + self.draw.uniform(*victim.seconds), victim, struck))

    def _mend(self, world: World, mend: tuple[float, Victim, list[int]]) -> None:
        self._mends.remove(mend)
        _, victim, struck = mend
        assert victim.after is not None
        victim.after(world, struck)
