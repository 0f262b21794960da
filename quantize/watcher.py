"""Who is told what happens in a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from quantize.artifact import Manifest
from quantize.errors import StageFailed
from quantize.handed import Progress
from quantize.plan import Plan, Stage

__all__ = ["Watcher", "in_notes"]

#: Seconds between two sentences on the same transfer.
_QUIET_SECONDS = 15.0


def in_notes(what: str, note: Callable[[str], None]) -> Progress:
    """A `Progress` in bytes that becomes a sentence now and then; what takes no longer than a pause is not told."""
    last = time.monotonic()

    def tell(doing: str, done: float, total: float | None) -> None:
        nonlocal last
        if time.monotonic() - last > _QUIET_SECONDS:
            last = time.monotonic()
            note(f"{what}: {doing}, {done / 1e9:.1f} GB" + (f" of {total / 1e9:.1f} GB" if total else ""))

    return tell


class Watcher:
    """Told what happens. `display.py` has the ones that draw; this one is silent."""

    def plan(self, plan: Plan) -> None:
        """The stages to come."""

    def reused(self, stage: Stage) -> None:
        """The stage was committed before."""

    def started(self, stage: Stage) -> None:
        """The stage's process starts."""

    def waiting(self, stage: Stage, owner: str) -> None:
        """Another process has the stage's lease."""

    def progress(self, stage: Stage) -> Progress:
        """Where the stage's own progress goes."""
        return lambda _what, _done, _total: None

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """The stage is committed."""

    def failed(self, stage: Stage, error: StageFailed) -> None:
        """The stage failed; its variant is out."""

    def note(self, sentence: str) -> None:
        """Anything else that a user wants to know while waiting."""

    def close(self) -> None:
        """The run is over, well or badly."""
