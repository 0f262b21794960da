"""Named points at which a test may kill the process, so that "kill -9 at any moment" is a finite list.

`point("store.renamed")` does nothing unless `QUANTIZE_FAULT` names it; then the process dies by SIGKILL, as an
out-of-memory killer or a power cut would end it: no `finally`, no `atexit`, no flush. The points are found by reading
the source, and a test fails when one of them is never reached.
"""

from __future__ import annotations

import os
import signal

__all__ = ["point"]


def point(name: str) -> None:
    """Die here if `QUANTIZE_FAULT` is `name`."""
    if os.environ.get("QUANTIZE_FAULT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
