"""File locks that the kernel releases when the last process that holds them is gone, however it died."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable

__all__ = ["try_lock", "wait_for_lock"]

_POLL_SECONDS = 0.2
_OWNER_BYTES = 4096


def try_lock(descriptor: int) -> bool:
    """Take the `flock` of an open file; False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, waiting: Callable[[str], None]) -> None:
    """Take it, however long that takes. `waiting` is told once what the file says of its owner."""
    told = False
    while not try_lock(descriptor):
        if not told:
            told = True
            waiting(os.pread(descriptor, _OWNER_BYTES, 0).decode(errors="replace"))
        time.sleep(_POLL_SECONDS)
