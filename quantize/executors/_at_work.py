"""The workers that threads of one driver follow, so that another thread can end them all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantize.errors import Interrupted
from quantize.executors._workers import GRACE_SECONDS, Worker

__all__ = ["AtWork"]


class AtWork:
    """Workers from their start to their end. It is no part of an executor's settings: two of the same are equal."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        #: How long a worker that was asked to end has for it.
        self.grace = grace
        self._changed = threading.Condition()
        self._workers: list[Worker] = []
        self._starting = 0
        self._stopped = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AtWork)

    def __hash__(self) -> int:
        return hash(AtWork)

    @property
    def stopped(self) -> bool:
        """Whether they were: what ends badly then has not failed."""
        return self._stopped

    @contextmanager
    def following(self, start: Callable[[], Worker]) -> Iterator[Worker]:
        """Start a worker; it must have ended where the block ends. Raises Interrupted once they were stopped."""
        with self._changed:
            if self._stopped:
                raise Interrupted("the stage was not started.", fix="Run the same command to resume.")
            self._starting += 1
        worker: Worker | None = None
        try:
            worker = start()
        finally:
            # A worker that starts while all are stopped is waited for as the others are.
            with self._changed:
                self._starting -= 1
                self._workers += [worker] if worker is not None else []
                if worker is not None and self._stopped:
                    worker.send_signal(signal.SIGTERM)
                self._changed.notify_all()
        try:
            yield worker
        finally:
            with self._changed:
                self._workers.remove(worker)
                self._changed.notify_all()

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not end in time; returns when none is left."""
        with self._changed:
            self._stopped = True
            self._signal(signal.SIGTERM)
            if not self._changed.wait_for(self._none, self.grace):
                self._signal(signal.SIGKILL)
                self._changed.wait_for(self._none, self.grace)

    def _signal(self, which: signal.Signals) -> None:
        for worker in self._workers:
            worker.send_signal(which)

    def _none(self) -> bool:
        return not self._workers and not self._starting
