"""Following a process that does a stage: its events, its end, and what that means."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantize.errors import Interrupted, StageFailed
from quantize.executors._at_work import AtWork
from quantize.executors._workers import Worker
from quantize.handed import Progress, StageSpec

__all__ = ["followed"]

_TAIL_LINES = 15
#: How often whoever follows a process looks up: Ray cancels a task by an interrupt that ends no read.
_LOOK_SECONDS = 0.5


def followed(
    at_work: AtWork,
    start: Callable[[], Worker],
    spec: StageSpec,
    pipe: tuple[int, int],
    log: Path,
    progress: Progress,
) -> None:
    """Start the process of a stage, which writes its events into `pipe` and all else into `log`, to its end.

    Raises StageFailed where it ended badly, Interrupted where it was asked to.
    """
    read, write = pipe
    with at_work.following(start) as process:
        os.close(write)
        error = _follow(process, read, progress, at_work.grace)
    returncode = process.wait()
    if returncode != 0 or error is not None:
        if at_work.stopped:
            raise _interrupted(spec)
        raise _failure(spec, returncode, error, log)


def _follow(process: Worker, read: int, progress: Progress, grace: float) -> dict[str, Any] | None:
    """Read events until the process ends; returns its error event, if it sent one."""
    error: dict[str, Any] | None = None
    try:
        for line in _lines(read):
            event = json.loads(line)
            if "progress" in event:
                progress(*event["progress"])
            error = event.get("error", error)
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
                break
    except BaseException:
        _end(process, grace)
        raise
    return error


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines up to the end of a pipe. What interrupts a thread from within its own process is seen between two looks."""
    rest = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(_LOOK_SECONDS):
                continue
            more = pipe.read(1 << 16)
            if not more:
                return
            *lines, rest = (rest + more).split(b"\n")
            yield from lines


def _end(process: Worker, grace: float) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupted(spec: StageSpec) -> Interrupted:
    return Interrupted(f"stage {spec.kind} {spec.name} was stopped.", fix="Run the same command to resume.")


def _failure(spec: StageSpec, returncode: int, error: dict[str, Any] | None, log: Path) -> StageFailed | Interrupted:
    if returncode == Interrupted.exit_code:
        return _interrupted(spec)
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = "".join(deque(lines, _TAIL_LINES))
    if error is not None:
        what, where, fix = error["what"], error["where"], error["fix"]
        return StageFailed(what, where=where or f"stage {spec.kind} {spec.name}", fix=fix, tail=tail)
    if returncode == -signal.SIGKILL:
        what = "its process was killed (SIGKILL)."
        fix = "The usual cause is memory: see what `quantize plan` estimates, or use a machine with more of it."
    else:
        what, fix = f"its process ended with status {returncode}.", f"The whole log is {log}."
    return StageFailed(what, where=f"stage {spec.kind} {spec.name}", fix=fix, tail=tail)
