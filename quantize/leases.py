"""Leases on what several nodes may be about to do in one shared folder: one has it, the others wait or take over.

    <folder>/<node>.lock    an `flock`: on one node the kernel knows who lives, and frees it however they died
    <folder>/<generation>   a ticket, the highest of which counts: who has it, on which node, and for how long it may be
                            silent. Its modification time is its heartbeat; zero says that it was given back

A ticket is made by linking a finished file under the next number, which only one can do. Its owner touches it. A node
finds the tickets of its own dead processes by its flock, at once; those of another node when they were silent for too
long. Two times that the file system itself gave are compared for that, and because some file systems (Lustre) take the
time of whoever touches, a ticket must also have been seen to stay as it is: for two beats, or, where no time can be
trusted because a clock went back, for as long as its owner may be silent.

The generation is a fencing token. An owner that slept past its time is overtaken, and asks before it publishes
(`Lease.check`); what it could still publish between question and rename is refused by the rename itself, which never
goes over an artifact that is there (`store.Store.commit`). So of two at most one publishes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import LeaseLost, StoreError, UsageError
from quantize.locks import try_lock, wait_for_lock

__all__ = ["NODE", "SECONDS", "Lease", "beating", "holding", "is_held", "node"]

#: Names this node, where the kernel's boot id does not tell nodes apart.
NODE = "QUANTIZE_NODE"
#: How long the owner of a lease may be silent before another node takes it over.
SECONDS = "QUANTIZE_LEASE_SECONDS"
_SECONDS = 60.0
_LEAST_SECONDS, _MOST_SECONDS = 0.5, 86400.0
#: How often an owner touches its ticket in that time.
_BEATS = 5
_POLL_SECONDS = 0.5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
#: What a file says that another node removed.
_GONE = (errno.ENOENT, errno.ESTALE)


def node() -> str:
    """Which node this is: a name for file names. Processes of one node see each other's flocks."""
    if named := os.environ.get(NODE):
        if not named.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"{named!r} is no name of a node: letters, digits, '-' and '_'.", where=NODE)
        return named
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")[:12]
    return "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())


@dataclass(frozen=True, slots=True)
class Lease:
    """A ticket that counts as long as no higher one is there.

    `descriptor` has its node's flock, for a process to inherit; -1 in one that has inherited it under another number.
    """

    folder: Path
    generation: int
    seconds: float
    descriptor: int = -1

    @property
    def ticket(self) -> Path:
        """The file that is touched."""
        return self.folder / str(self.generation)

    def check(self) -> None:
        """Raise LeaseLost where another node has taken it over."""
        if max(_generations(self.folder), default=self.generation) != self.generation or not _is_there(self.ticket):
            raise LeaseLost(
                f"another node has taken this work over{_by(self.folder)}: nothing was heard of this one for "
                f"{self.seconds:g} seconds.",
                where=str(self.folder),
                fix=f"Nothing is lost: the other one does it. {SECONDS} sets how long a node may be silent.",
            )

    def beat(self) -> None:
        """Touch the ticket. Raises LeaseLost where it is gone."""
        try:
            os.utime(self.ticket)
        except OSError as error:
            if error.errno in _GONE:
                self.check()

    def document(self) -> dict[str, Any]:
        """What a process that inherits the descriptor needs besides."""
        return {"folder": str(self.folder), "generation": self.generation, "seconds": self.seconds}

    @staticmethod
    def inherited(document: dict[str, Any]) -> Lease:
        """The lease that `document` speaks of, in a process that was started with it."""
        return Lease(Path(document["folder"]), document["generation"], document["seconds"])


@contextmanager
def holding(folder: Path, waiting: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of `folder`, which is there, and beat for it.

    Waits while somebody has it; `waiting` is told once who: a JSON object with `pid`, `host` and `node`.
    """
    mine, seconds = node(), _seconds()
    descriptor = os.open(folder / f"{mine}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder, waiting)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "node": mine, "seconds": seconds})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        lease = _next(folder, mine, owner, descriptor, waiting)
        try:
            with beating(lease):
                yield lease
        finally:
            with suppress(OSError):
                os.utime(lease.ticket, (0, 0))
    finally:
        os.close(descriptor)


@contextmanager
def beating(lease: Lease, lost: Callable[[LeaseLost], None] = lambda _error: None) -> Iterator[None]:
    """Touch the lease's ticket from time to time; `lost` is told, in a thread, at every beat once it was taken over."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease.seconds / _BEATS):
            try:
                lease.beat()
            except LeaseLost as error:
                lost(error)
            except OSError:
                continue  # a file system that is away for a moment: the next beat tells

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_held(folder: Path) -> bool:
    """Whether anybody has the lease of a folder, on this node or on another. Looks twice at one that seems silent."""
    mine = node()
    lock = folder / f"{mine}.lock"
    if lock.exists():
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not try_lock(descriptor):
                return True
        finally:
            os.close(descriptor)
    watch, before = _Watch(), None
    while True:
        found = _read(folder, max(_generations(folder), default=0))
        if found is None or found.node == mine or watch.silent(found, now := _now(folder, None)):
            return False
        if found.fresh(now) or found != (before or found):
            return True
        before = found
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Ticket:
    generation: int
    says: str
    beaten: float

    @property
    def node(self) -> str:
        return str(json.loads(self.says).get("node"))

    @property
    def seconds(self) -> float:
        """How long its owner said that it may be silent."""
        return float(json.loads(self.says).get("seconds", _SECONDS))

    def fresh(self, now: float) -> bool:
        """Whether it was touched a moment ago, by the file system's clock."""
        return now - self.beaten <= self.seconds


class _Watch:
    """Watches a ticket that somebody else may touch."""

    def __init__(self) -> None:
        self._seen: _Ticket | None = None
        self._since = 0.0

    def silent(self, found: _Ticket, now: float) -> bool:
        """Whether it was given back, or its owner is gone; `now` is the file system's time."""
        if found.beaten == 0:
            return True
        if found != self._seen:
            self._seen, self._since = found, time.monotonic()
        watched = time.monotonic() - self._since
        return watched > found.seconds or (watched > 2 * found.seconds / _BEATS and not found.fresh(now))


def _next(folder: Path, mine: str, owner: str, descriptor: int, waiting: Callable[[str], None]) -> Lease:
    """The next ticket, once the newest one does not count any more. Call it under the node's flock."""
    told: str | None = None
    watch = _Watch()
    while True:
        newest = max(_generations(folder), default=0)
        found = _read(folder, newest)
        # Of this node nobody lives who had it: the flock is ours.
        if found is not None and found.node != mine and not watch.silent(found, _now(folder, descriptor)):
            if found.says != told:
                told = found.says
                waiting(found.says)
            time.sleep(_POLL_SECONDS)
        elif _link(folder, newest + 1, owner, mine):
            if max(_generations(folder)) == newest + 1:
                for old in _generations(folder):
                    if old <= newest:
                        (folder / str(old)).unlink(missing_ok=True)
                return Lease(folder, newest + 1, json.loads(owner)["seconds"], descriptor)
            # Others went on while this one slept after it had read which is the newest.
            (folder / str(newest + 1)).unlink(missing_ok=True)


def _link(folder: Path, generation: int, text: str, mine: str) -> bool:
    """Make a ticket; False where somebody else has."""
    part = folder / f".{mine}.{os.getpid()}.{threading.get_ident()}"
    part.write_text(text, encoding="utf-8")
    try:
        os.link(part, folder / str(generation))
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, *_NO_LOCKS):
            raise
        raise StoreError(
            "this file system has no hard links.", where=str(folder), fix="Choose another place with --store."
        ) from error
    finally:
        part.unlink()
    return True


def _lock(descriptor: int, folder: Path, waiting: Callable[[str], None]) -> None:
    try:
        wait_for_lock(descriptor, waiting)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            "this file system has no file locks.",
            where=str(folder),
            fix="Mount it with them (Lustre: -o flock), or choose another place with --store.",
        ) from error


def _generations(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _is_there(path: Path) -> bool:
    """By opening it: what a network file system remembers of a file is asked for anew then."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def _read(folder: Path, generation: int) -> _Ticket | None:
    try:
        with (folder / str(generation)).open(encoding="utf-8") as file:
            says, beaten = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return _Ticket(generation, says, beaten)


def _now(folder: Path, descriptor: int | None) -> float:
    """What time it is, by the file system."""
    if descriptor is not None:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    probe = folder / f".{node()}.{os.getpid()}.{threading.get_ident()}"
    with probe.open("wb") as file:
        os.utime(file.fileno())
        now = os.fstat(file.fileno()).st_mtime
    probe.unlink(missing_ok=True)
    return now


def _by(folder: Path) -> str:
    """Who has it, in words."""
    found = _read(folder, max(_generations(folder), default=0))
    owner = json.loads(found.says) if found is not None else {}
    return f" (pid {owner.get('pid')} on {owner.get('host')})" if owner else ""


def _seconds() -> float:
    text = os.environ.get(SECONDS, "")
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        what = f"{text!r} is no number of seconds between {_LEAST_SECONDS:g} and {_MOST_SECONDS:g}."
        raise UsageError(what, where=SECONDS)
    return seconds
