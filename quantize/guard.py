"""`python guard.py COMMAND ...`: runs a command that must not outlive whoever started it.

Serving engines start processes of their own, and a driver can be killed at any time: what is left would hold a GPU's
memory until somebody looks. The guard stays between the two. Its standard input is a pipe that only the starter holds
open: when the starter is gone, however it died, the pipe ends, and the guard ends the command's whole process group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

__all__ = ["GRACE_SECONDS", "main"]

#: How long a command may take to end by itself before it is killed.
GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05


def main(command: list[str]) -> int:
    """Run `command`; returns its status, a signal as 128 + number. Ends it when standard input ends, or on SIGTERM."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    while process.poll() is None and not asked:
        # Nobody ever writes: the pipe becomes readable when it ends.
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable:
            break
    status = process.poll()
    _end(process)
    status = process.returncode if status is None else status
    return status if status >= 0 else 128 - status


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
