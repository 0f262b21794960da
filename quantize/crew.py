"""Tasks of a run: one after the other, or each in a thread of its own.

Either way a task that raises ends them all, and whoever leaves the block has seen the end of every task.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Crew", "InTurn", "SideBySide", "Task"]

Task = Callable[[], None]

#: Seconds that threads have to see that they were stopped. One that waits for another process's lock does not look.
_LEAVING_SECONDS = 2.0


class Crew(AbstractContextManager["Crew"], Protocol):
    """Who does tasks."""

    def spawn(self, task: Task) -> None:
        """Do a task, now or side by side with others."""
        ...


class InTurn:
    """Each task is done when it is given, by who gives it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def spawn(self, task: Task) -> None:
        """See Crew."""
        task()


class SideBySide:
    """A thread for each task. `stop` makes all that are at work end soon; it is called when one raised, or who waits.

    Signals reach the main thread, which waits in the end of the block: what they raise there ends the tasks too.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._open = 0
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
        except BaseException:
            self._end()
            raise
        if error is not None:
            self._end()

    def spawn(self, task: Task) -> None:
        """See Crew."""
        with self._changed:
            self._open += 1
        # A thread that waits for another process must not keep this one.
        thread = threading.Thread(target=self._do, args=(task,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _do(self, task: Task) -> None:
        error: BaseException | None = None
        try:
            task()
        except BaseException as raised:  # noqa: BLE001 (it is raised again by who waits)
            error = raised
        with self._changed:
            self._open -= 1
            self._error = self._error or error
            self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._open == 0)
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self._stop()
        deadline = time.monotonic() + _LEAVING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
