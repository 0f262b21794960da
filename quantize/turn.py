"""A turn: having a registered model to oneself while aliases move.

Two locks, one inside the other:

file      an embedded database has one beside it, held by `flock`. It cannot be taken from a process that lives, and the
          kernel gives it back when the process is gone.
ticket    an entry of the journal, on every registry. Its number is the *generation*, which stands in all that is
          written under it. The holder renews it; who waits takes it over when it was not renewed for as long as it says
          it holds, measured on the waiter's own clock, or at once when its process is known to be dead (same machine,
          same boot). So clocks of two machines are never compared.

Everything that is appended under a ticket that was taken over is void, by the rules of the chain: that is prevented.
An alias that a paused holder moves late is not: MLflow takes no condition. Its holder asks for the generation right
before each move (`check`), which leaves the time of one request, and a late move is found by the next turn.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize import __version__, faults
from quantize.actor import actor
from quantize.errors import QuantizeError, RegistryError, UsageError
from quantize.journal import Chain, Entry, Event, Linked, Owner, head_problem
from quantize.locks import try_lock, wait_for_lock
from quantize.promotion import now
from quantize.registry import Registry

__all__ = ["SECONDS", "Turn", "holding", "owner_is_gone", "read_journal", "unlock"]

#: The environment variable that says how many seconds a ticket holds without being renewed.
SECONDS = "QUANTIZE_LOCK_SECONDS"
_SECONDS = 60.0
#: How often a ticket is renewed in the time that it holds.
_RENEWALS = 4
#: Seconds between two looks of who waits, drawn anew each time: who looks at the same moment loses all but one.
_LOOKS = (0.2, 0.6)
#: Tickets that this process holds. One of ours that is not here was left by an error.
_held: set[str] = set()


@dataclass
class Turn:
    """A registry whose lock we hold. `chain` is the journal as far as we have read it, and nobody else goes on."""

    registry: Registry
    chain: Chain
    generation: int
    nonce: str
    note: Callable[[str], None]

    def append(self, kind: str, **content: Any) -> Linked:
        """Write an entry that counts. Raises RegistryError where our lock was taken over meanwhile."""
        if not self._ours():
            raise self._taken()
        made = _append(self.registry, self.chain, kind, generation=self.generation, **content)
        if made is None:
            raise self._taken()
        self.registry.set_head(self.chain.mark())
        return made

    def check(self) -> None:
        """Ask whether the lock is still ours; to be done right before an alias moves. Raises RegistryError."""
        _read_on(self.registry, self.chain)
        if not self._ours():
            raise self._taken()

    def _ours(self) -> bool:
        lock = self.chain.state.lock
        return lock is not None and lock.number == self.generation

    def _taken(self) -> RegistryError:
        lock = self.chain.state.lock
        by = f"by {lock.entry.owner}" if lock is not None else "by `quantize unlock`"
        return RegistryError(
            f"the lock of this model was taken over {by}: this process did not renew it in time.",
            where=self.registry.name,
            fix=f"Look with `quantize history {self.registry.name}`, then run the same command again; it first puts "
            "right what was left half done.",
        )


def read_journal(registry: Registry) -> Chain:
    """The journal, whole. Raises RegistryError for one that is broken, or of a newer program."""
    mark = registry.head()  # first: others may write while we read
    chain = Chain()
    _read_on(registry, chain)
    problem = head_problem(chain, mark)
    if problem:
        raise _broken(registry, problem)
    return chain


def _read_on(registry: Registry, chain: Chain, again: int | None = None) -> str:
    """Read what was appended since. With `again`, the number of an entry, return what changes about that one."""
    lines = registry.entries(chain.read if again is None else again - 1)
    try:
        chain.extend([line for line in lines if line.number > chain.read])
    except RegistryError as error:
        raise RegistryError(error.what, where=f"journal of {registry.name}", fix=error.fix) from error
    if chain.problems:
        raise _broken(registry, chain.problems[0])
    return next((line.renewed for line in lines if line.number == again), "")


def _broken(registry: Registry, problem: str) -> RegistryError:
    return RegistryError(
        problem,
        where=f"journal of {registry.name}",
        fix="Nothing is moved on a journal that cannot be believed: docs/registry.md says how to go on.",
    )


@contextmanager
def holding(registry: Registry, note: Callable[[str], None]) -> Iterator[Turn]:
    """Have the registry to oneself for the time of a `with`. Waits as long as somebody who lives has it.

    `note` is told for whom. Raises RegistryError where nobody answers, or where the journal cannot be believed.
    """
    with _file_lock(registry.lock_file, registry.name, note) as alone:
        chain = read_journal(registry)
        if not chain.entries:
            registry.prepare()
        turn = _ticket(registry, chain, note, alone=alone)
        _held.add(turn.nonce)
        over = threading.Event()
        # Where the file lock excludes everybody else, nobody waits for the ticket.
        thread = threading.Thread(target=_renewing, args=(turn, over), daemon=True) if not alone else None
        try:
            faults.point("turn.locked")
            if thread is not None:
                thread.start()
            yield turn
            faults.point("turn.over")
        finally:
            over.set()
            if thread is not None:
                thread.join()
            _held.discard(turn.nonce)
            _leave(turn)


def unlock(registry: Registry, reason: str, who: str) -> Owner | None:
    """Take the lock from whoever has it, at an operator's word; returns the owner, None where nobody has it.

    Raises UsageError where a process of this machine holds the file lock: that is given back by ending the process.
    """
    file = registry.lock_file
    if file is not None and file.exists():
        with file.open("r+") as descriptor:
            if not try_lock(descriptor.fileno()):
                holder = file.read_text(encoding="utf-8").strip() or "unnamed"
                raise UsageError(
                    f"the lock is a file that a process holds ({holder}).",
                    where=str(file),
                    fix="End that process; the lock goes with it.",
                )
    while True:
        chain = read_journal(registry)
        lock = chain.state.lock
        if lock is None or lock.entry.owner is None:
            return None
        told = _event("lock taken", who, f"Taken from {lock.entry.owner} by hand. {reason}")
        if _append(registry, chain, "unlock", generation=0, over=lock.number, reason=reason, event=told, who=who):
            registry.set_head(chain.mark())
            return lock.entry.owner


@contextmanager
def _file_lock(file: Path | None, name: str, note: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock file, where there is one; yields whether there is."""
    if file is None:
        yield False
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RegistryError(
            f"the lock of {name} cannot be opened ({error.strerror}).",
            where=str(file),
            fix="Whoever moves aliases must be able to write there.",
        ) from error
    try:
        wait_for_lock(descriptor, lambda who: note(f"another process is releasing {name}{_named(who)}; waiting"))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_ourselves()}\n".encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def _named(who: str) -> str:
    return f" ({who.strip()})" if who.strip() else ""


def _ticket(registry: Registry, chain: Chain, note: Callable[[str], None], *, alone: bool) -> Turn:
    """Take the ticket; where another has it, wait until it is given back, expired or its owner dead."""
    seen: tuple[int, str] | None = None
    since = 0.0
    while True:
        lock = chain.state.lock
        if lock is None or lock.entry.owner is None or alone or owner_is_gone(lock):
            turn = _take(registry, chain, note)
            if turn is not None:
                return turn
        elif seen is None or seen[0] != lock.number:
            note(f"{lock.entry.owner} has the lock of {registry.name}; waiting")
            seen, since = (lock.number, lock.renewed), time.monotonic()
        elif time.monotonic() - since > lock.entry.owner.seconds:
            turn = _take(registry, chain, note)
            if turn is not None:
                return turn
        time.sleep(random.uniform(*_LOOKS))  # noqa: S311 (no secret)
        renewed = _read_on(registry, chain, lock.number if lock is not None else None)
        if lock is not None and seen is not None and (lock.number, renewed) != seen:
            seen, since = (lock.number, renewed), time.monotonic()


def _take(registry: Registry, chain: Chain, note: Callable[[str], None]) -> Turn | None:
    """Append a lock; None where somebody else was faster."""
    before = chain.state.lock
    owner = _ourselves()
    told = None
    if before is not None:
        told = _event("lock taken", owner.actor, f"Taken from {before.entry.owner}, who had not given it back.")
    over = before.number if before is not None else None
    made = _append(registry, chain, "lock", generation=0, owner=owner, over=over, event=told)
    if made is None:
        return None
    if told is not None:
        note(told.reason)
    registry.set_head(chain.mark())
    return Turn(registry, chain, made.number, made.entry.nonce, note)


def _append(
    registry: Registry, chain: Chain, kind: str, *, generation: int, who: str = "", **content: Any
) -> Linked | None:
    """Append an entry after the chain's head and read on; returns it where it counts, None where another came first."""
    after, link = chain.head
    entry = Entry.model_validate(
        {
            "after": after,
            "link": link,
            "generation": generation,
            "kind": kind,
            "when": now(),
            "actor": who or actor(),
            "program": f"quantize {__version__}",
            "nonce": uuid.uuid4().hex,
            **content,
        }
    )
    registry.append(entry.model_dump_json(), entry.digest())
    faults.point("turn.appended")
    # Not by its number: where the answer was lost and the entry sent again, the first of the two counts.
    _read_on(registry, chain)
    return next((linked for linked in reversed(chain.entries) if linked.entry.nonce == entry.nonce), None)


def _leave(turn: Turn) -> None:
    """Give the ticket back. Where nobody answers, whoever comes next finds our process dead, or the ticket expired."""
    with suppress(QuantizeError):
        turn.append("unlock")


def _renewing(turn: Turn, over: threading.Event) -> None:
    """Show that we live until `over`. An error is no reason to stop: the next time somebody may answer."""
    lock = turn.chain.state.lock
    seconds = lock.entry.owner.seconds if lock is not None and lock.entry.owner is not None else _SECONDS
    while not over.wait(seconds / _RENEWALS):
        with suppress(QuantizeError):
            turn.registry.renew(turn.generation, uuid.uuid4().hex)


def _event(what: str, who: str, reason: str) -> Event:
    return Event(when=now(), what=what, variant="", version="", aliases={}, against=None, actor=who, reason=reason)


def _ourselves() -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=_read("/proc/sys/kernel/random/boot_id"),
        pids=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        actor=actor(),
        seconds=_seconds(),
    )


def _seconds() -> float:
    """How long a ticket of ours holds. Raises UsageError for a setting that is no time."""
    text = os.environ.get(SECONDS, "")
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{text!r} is no number of seconds.", where=SECONDS)
    return seconds


def owner_is_gone(lock: Linked) -> bool:
    """Whether the owner is known to be gone: of this machine and boot, and no such process, or ourselves earlier on."""
    owner, here = lock.entry.owner, _ourselves()
    if owner is None or not owner.boot or (owner.host, owner.boot, owner.pids) != (here.host, here.boot, here.pids):
        return False
    if (owner.pid, owner.started) == (here.pid, here.started):
        return lock.entry.nonce not in _held
    return _started(owner.pid) != owner.started


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None for one that is gone, or dead and not yet buried."""
    text = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(text[19]) if len(text) > 19 and text[0] not in "ZX" else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
