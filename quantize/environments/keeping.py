"""The folders that environments are made in: who may touch them, what is left half-made, and how they go.

One process makes or removes an environment at a time. The lock is an `flock`, which the kernel releases however the
process ends, so whoever has it knows that a folder without its record is what a killed process left.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantize.environments.pins import SHIPPED, known, names, read
from quantize.environments.places import KEY_LETTERS, RECORD, directory, root
from quantize.errors import QuantizeError
from quantize.locks import try_lock, wait_for_lock

__all__ = ["Note", "alone", "clean", "discard", "held", "remove", "remove_outdated", "reporting", "sweep"]

#: Told in a sentence what is going on.
Note = Callable[[str], None]

_POLL_SECONDS = 0.2
#: Attempts to remove a folder into which a pip whose starter was killed may still write, for the moment it has left.
_ATTEMPTS = 50


class _BusyError(QuantizeError):
    """Another process has the environment's lock."""


def remove(name: str, *, pins: Path = SHIPPED) -> list[Path]:
    """Remove what was made of an environment, by whatever version of the pins; returns the folders that are gone.

    Raises UsageError for a name that nothing is known of, QuantizeError while another process is making it.
    """
    if not _folders(name):
        known(name, pins)
    return _remove(name, lambda _: True)


def remove_outdated(*, pins: Path = SHIPPED) -> list[Path]:
    """Remove everything that was made from other pins than today's; returns the folders that are gone."""
    current = {directory(read(name, pins)) for name in names(pins)}
    old = {_name(place) for place in _folders() if place not in current}
    return [place for name in sorted(old) for place in _remove(name, lambda place: place not in current)]


def clean() -> None:
    """Remove what killed processes left half-made, unless it is being made right now."""
    for name in sorted({_name(place) for place in _folders() if not (place / RECORD).exists()}):
        with suppress(_BusyError), reporting(), alone(name, None):
            sweep(name)


def held(name: str) -> bool:
    """Whether a process is making, or removing, this environment."""
    path = _lock_file(name)
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(name: str, waiting: Note | None) -> Iterator[None]:
    """Hold an environment's lock. While another process has it, wait and say so once; without `waiting`, refuse."""
    path = _lock_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:

        def busy(holder: str) -> None:
            if waiting is None:
                raise _BusyError(f"{holder} is making {name}.", where=str(path), fix="Wait for it, or end it.")
            waiting(f"{name}: {holder} is making it; waiting")

        wait_for_lock(descriptor, busy)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock_file(name: str) -> Path:
    return root() / "locks" / f"{name}.lock"


def _folders(name: str | None = None) -> list[Path]:
    """What was made, or half-made, of an environment (None: of all): folders named after it and a digest."""
    pattern = f"{'*' if name is None else glob.escape(name)}-{'[0-9a-f]' * KEY_LETTERS}"
    return sorted(path for path in root().glob(pattern) if path.is_dir())


def _name(place: Path) -> str:
    return place.name.rpartition("-")[0]


def _remove(name: str, chosen: Callable[[Path], bool]) -> list[Path]:
    if not _folders(name):
        return []
    with reporting(), alone(name, None):
        places = [place for place in _folders(name) if chosen(place)]
        for place in places:
            discard(place)
    return places


def sweep(name: str) -> None:
    """Under the lock: remove what is half-made."""
    for place in _folders(name):
        if not (place / RECORD).exists():
            discard(place)


def discard(place: Path) -> None:
    """Remove a folder; the record first, so that it is never seen without its files."""
    (place / RECORD).unlink(missing_ok=True)
    for _ in range(_ATTEMPTS):
        try:
            shutil.rmtree(place)
        except OSError as error:
            if not place.exists():
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return
    raise QuantizeError("something goes on writing there.", where=str(place), fix="End it and run again.")


@contextmanager
def reporting() -> Iterator[None]:
    """Turn the operating system's refusal into an error that says how to mend it."""
    try:
        yield
    except OSError as error:
        raise QuantizeError(
            f"{error.strerror or error}.",
            where=str(error.filename or root()),
            fix="Free some space or set QUANTIZE_ENVS to a folder that may be written.",
        ) from error
