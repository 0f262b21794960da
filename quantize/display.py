"""What a run shows while it works: live bars on a terminal, timestamped lines anywhere else. All of it on stderr.

Stages may run side by side, each in a thread of the driver: what is said of one is said in one piece.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import datetime
from typing import Any

from quantize.artifact import Manifest
from quantize.errors import StageFailed
from quantize.handed import Progress
from quantize.plan import Plan, Stage
from quantize.watcher import Watcher

__all__ = ["Bars", "Lines", "watcher"]

_QUIET_SECONDS = 15.0


def watcher() -> Watcher:
    """Bars where stderr is a terminal, lines where it is not."""
    return Bars() if sys.stderr.isatty() else Lines()


class Lines(Watcher):
    """One line per event; a stage's own progress at most every quarter of a minute."""

    def __init__(self) -> None:
        self._total = 0
        self._done = 0
        self._whole = threading.RLock()

    def plan(self, plan: Plan) -> None:
        """See Watcher."""
        self._total = sum(1 for _ in plan.stages())
        self._say(f"{plan.recipe.name}: {len(plan.variants)} variants, {self._total} stages on {plan.device.name}")

    def reused(self, stage: Stage) -> None:
        """See Watcher."""
        with self._whole:
            self._done += 1
            self._say(f"[{self._done}/{self._total}] {stage.label}: done before")

    def started(self, stage: Stage) -> None:
        """See Watcher."""
        self._say(f"[{self._done + 1}/{self._total}] {stage.label} ...")

    def waiting(self, stage: Stage, owner: str) -> None:
        """See Watcher."""
        self._say(f"{stage.label}: {_owner(owner)} is at it; waiting")

    def progress(self, stage: Stage) -> Progress:
        """See Watcher."""
        last = time.monotonic()

        def show(what: str, done: float, total: float | None) -> None:
            nonlocal last
            if time.monotonic() - last > _QUIET_SECONDS:
                last = time.monotonic()
                self._say(f"  {stage.label}: {what or 'working'}" + (f" {done:g}/{total:g}" if total else ""))

        return show

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See Watcher."""
        with self._whole:
            self._done += 1
            self._say(f"[{self._done}/{self._total}] {stage.label}: {_made(manifest)}")

    def failed(self, stage: Stage, error: StageFailed) -> None:
        """See Watcher."""
        with self._whole:
            self._say(f"{stage.label} FAILED: {error}")
            for line in error.tail.splitlines():
                self._say(f"  | {line}")

    def note(self, sentence: str) -> None:
        """See Watcher."""
        self._say(sentence)

    def _say(self, text: str) -> None:
        with self._whole:
            print(f"{datetime.now().astimezone():%H:%M:%S} {text}", file=sys.stderr, flush=True)


class Bars(Watcher):
    """A bar for the whole run and one for each stage at work, with the libraries' own progress in it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._overall: Any = None
        self._current: dict[str, Any] = {}
        self._whole = threading.RLock()

    def plan(self, plan: Plan) -> None:
        """See Watcher."""
        total = sum(1 for _ in plan.stages())
        self._console.print(
            f"[bold]{plan.recipe.name}[/]: {len(plan.variants)} variants, {total} stages on {plan.device.name}"
        )
        self._overall = self._progress.add_task("all stages", total=total)
        self._progress.start()

    def reused(self, stage: Stage) -> None:
        """See Watcher."""
        self._progress.advance(self._overall)

    def started(self, stage: Stage) -> None:
        """See Watcher."""
        self._current[stage.key] = self._progress.add_task(stage.label, total=None)

    def waiting(self, stage: Stage, owner: str) -> None:
        """See Watcher."""
        self._console.print(f"[yellow]…[/] {stage.label}: {_owner(owner)} is at it; waiting")

    def progress(self, stage: Stage) -> Progress:
        """See Watcher."""
        bar = self._current[stage.key]

        def show(what: str, done: float, total: float | None) -> None:
            text = f"{stage.label} [dim]{what[:40]}[/]" if what else stage.label
            self._progress.update(bar, description=text, completed=done, total=total)

        return show

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See Watcher."""
        self._progress.remove_task(self._current.pop(stage.key))
        self._progress.advance(self._overall)
        self._console.print(f"[green]✓[/] {stage.label} [dim]{_made(manifest)}[/]")

    def failed(self, stage: Stage, error: StageFailed) -> None:
        """See Watcher."""
        self._progress.remove_task(self._current.pop(stage.key))
        with self._whole:
            self._console.print(f"[red]✗ {stage.label}[/]: {error}", markup=True, highlight=False)
            for line in error.tail.splitlines():
                self._console.print(f"  │ {line}", markup=False, highlight=False, style="dim")

    def note(self, sentence: str) -> None:
        """See Watcher."""
        self._console.print(sentence, highlight=False)

    def close(self) -> None:
        """See Watcher."""
        self._progress.stop()


def _made(manifest: Manifest) -> str:
    seconds = manifest.provenance.seconds
    held = sum(file.size for file in manifest.files if file.target is None)
    memory = manifest.provenance.peak_memory_bytes
    return f"{seconds:.0f} s, {held / 1e6:,.1f} MB, peak memory {memory / 1e9:.1f} GB"


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError):
        return "another process"
