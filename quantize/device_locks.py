"""Having a device beside others, or alone: one lock per device on this machine, for all runs of one user.

    <folder>/<device>.lock   held shared by each stage that uses the device, exclusively by one that measures time
    <folder>/<device>.gate   passed through by who wants the first; whoever waits for it exclusively keeps the gate shut

Without the gate a benchmark would wait as long as evaluations of other runs overlap; with it, those that come later
wait behind the benchmark. The locks are `flock`s on descriptors that the stage's process inherits: a stage whose driver
was killed still has its device, and the kernel frees it when both are gone, however they died.

The folder is at a fixed place, /tmp/quantize-<uid>: $TMPDIR and $XDG_RUNTIME_DIR differ between a login, a scheduled
job and a batch system's job, and the last one ends at logout, and locks at different places exclude nobody.
QUANTIZE_RUNTIME_DIR names another. Other users' processes, and those of other containers, hold none of these locks:
`watching.py` finds them by what they do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from quantize.errors import QuantizeError
from quantize.locks import wait_for_lock

__all__ = ["FOLDER", "holding", "runtime_folder"]

#: The environment variable that names another folder.
FOLDER = "QUANTIZE_RUNTIME_DIR"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OWNER_BYTES = 512


def runtime_folder() -> Path:
    """Where the locks are."""
    if named := os.environ.get(FOLDER):
        return Path(named).absolute()
    fixed = Path("/tmp")  # noqa: S108 (the folder in it is checked when it is opened)
    return (fixed if fixed.is_dir() else Path(tempfile.gettempdir())) / f"quantize-{os.getuid()}"


@contextmanager
def holding(devices: Sequence[str], who: str, waiting: Callable[[str], None], *, alone: bool) -> Iterator[list[int]]:
    """Hold the locks of `devices` (`machine.device_names`); yields their descriptors, for a process to inherit.

    Waits as long as it must. `waiting` is told who has a device, as they called themselves (`who`), empty where that is
    not known. Raises QuantizeError where the folder is not to be trusted or cannot be made.
    """
    with ExitStack() as stack:
        held = []
        # In one order for everybody, so that no two wait for each other.
        for device in sorted(set(devices)):
            descriptor = _take(device, waiting, alone=alone)
            stack.callback(_leave, descriptor, who)
            _write(descriptor, who)
            held.append(descriptor)
        yield held


def _take(device: str, waiting: Callable[[str], None], *, alone: bool) -> int:
    """A descriptor that holds the lock of one device."""
    while True:
        with ExitStack() as failed, ExitStack() as passing:
            folder = _open_folder(runtime_folder())
            passing.callback(os.close, folder)
            lock, gate = (_open(folder, f"{device}.{kind}") for kind in ("lock", "gate"))
            failed.callback(os.close, lock)
            # Closing it opens the gate again.
            passing.callback(os.close, gate)
            wait_for_lock(gate, lambda says: waiting(_owner(says)), shared=not alone, owner=lock)
            wait_for_lock(lock, lambda says: waiting(_owner(says)), shared=not alone)
            # Of a file that was removed meanwhile (old ones in /tmp are), others hold another one of the same name.
            if _is_still(lock, folder, f"{device}.lock") and _is_still(gate, folder, f"{device}.gate"):
                failed.pop_all()
                return lock


def _open_folder(path: Path) -> int:
    """Open the folder, which is made where it is not there; it must be ours, and nobody else may write into it."""
    mend = f"Remove it, or name a folder of your own in {FOLDER}."
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST)
        what = "the folder of the devices' locks is a link or a file" if link else f"{error.strerror}"
        raise QuantizeError(f"{what}.", where=str(path), fix=mend) from error
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE:
        os.close(folder)
        raise QuantizeError("others may write into the folder of the devices' locks.", where=str(path), fix=mend)
    return folder


def _open(folder: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        raise QuantizeError(
            f"the lock {name} cannot be opened: {error.strerror}.",
            where=str(runtime_folder()),
            fix=f"Remove it, or name a folder of your own in {FOLDER}.",
        ) from error


def _is_still(descriptor: int, folder: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(descriptor: int, who: str) -> None:
    """Say who has it. Of several that share it, the last one stands there."""
    line = json.dumps({"pid": os.getpid(), "stage": who[:200]})
    os.pwrite(descriptor, line.encode().ljust(_OWNER_BYTES), 0)


def _leave(descriptor: int, who: str) -> None:
    """Take our line away, where it still is ours, and the lock where no process has inherited it."""
    if _says(os.pread(descriptor, _OWNER_BYTES, 0)) == {"pid": os.getpid(), "stage": who[:200]}:
        os.pwrite(descriptor, b" " * _OWNER_BYTES, 0)
    os.close(descriptor)


def _says(line: bytes | str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _owner(says: str) -> str:
    """Who has it, in words; empty where the line does not say."""
    found = _says(says)
    return f"{found.get('stage')} (pid {found.get('pid')})" if isinstance(found, dict) else ""
