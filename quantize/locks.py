"""File locks that the kernel releases when the last process that holds them is gone, however it died."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable

__all__ = ["try_lock", "wait_for_lock"]

_POLL_SECONDS = 0.2
_OWNER_BYTES = 4096


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the `flock` of an open file, beside others where all take it `shared`; False where that cannot be now."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(
    descriptor: int, waiting: Callable[[str], None], *, shared: bool = False, owner: int | None = None
) -> None:
    """Take it, however long that takes. `waiting` is told what the file (or `owner`, another) says of its owner.

    Once for every owner, so that whoever waits for several after another knows for whom.
    """
    told: str | None = None
    while not try_lock(descriptor, shared=shared):
        says = os.pread(descriptor if owner is None else owner, _OWNER_BYTES, 0).decode(errors="replace")
        if says != told:
            told = says
            waiting(says)
        time.sleep(_POLL_SECONDS)
