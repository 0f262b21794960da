"""Named points at which a test may kill the process, so that "kill -9 at any moment" is a finite list.

`point("store.renamed")` does nothing unless `QUANTIZE_FAULT` names it; then the process dies by SIGKILL, as an
out-of-memory killer or a power cut would end it: no `finally`, no `atexit`, no flush. `store.renamed@2` waits for the
second time that it is reached. With `:STOP` behind it the process is only stopped, as one that a machine forgot, until
somebody wakes it. The points are found by reading the source, and a test fails when one of them is never reached.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

__all__ = ["point"]

_reached: Counter[str] = Counter()


def point(name: str) -> None:
    """Die or stop here if `QUANTIZE_FAULT` says so."""
    asked = os.environ.get("QUANTIZE_FAULT", "")
    if not asked.startswith(name):
        return
    place, _, how = asked.partition(":")
    wanted, _, times = place.partition("@")
    if wanted != name:
        return
    _reached[name] += 1
    if _reached[name] == int(times or 1):
        os.kill(os.getpid(), signal.SIGSTOP if how == "STOP" else signal.SIGKILL)
