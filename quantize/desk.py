"""Waiting for one's turn at a machine's slots, for threads.

Nothing is granted in the moment in which something is freed: whoever has just ended a stage asks for the next one of
the same variant at once, and must be in the queue by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from quantize.errors import Interrupted
from quantize.slots import Capacity, Request, Slots

__all__ = ["Desk"]

#: How long requests are gathered before one is chosen. A stage takes seconds at least.
_SETTLE_SECONDS = 0.1


class Desk:
    """`Slots` behind a lock."""

    def __init__(self, capacity: Capacity) -> None:
        self._slots = Slots(capacity)
        self._changed = threading.Condition()
        self._granted: dict[int, tuple[str, ...]] = {}
        self._settled: float | None = None
        self._closed = False

    def check(self, request: Request) -> None:
        """See Slots."""
        self._slots.check(request)

    @contextmanager
    def holding(self, request: Request) -> Iterator[tuple[str, ...]]:
        """Wait until the request is granted; yields the devices. Raises QuantizeError, or Interrupted once closed."""
        with self._changed:
            ticket = self._slots.submit(request)
            self._unsettle()
        try:
            yield self._wait(ticket, request.who)
        finally:
            with self._changed:
                self._granted.pop(ticket, None)
                self._slots.release(ticket)
                self._unsettle()

    def close(self) -> None:
        """Grant nothing any more: whoever waits is told that it was interrupted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, ticket: int, who: str) -> tuple[str, ...]:
        with self._changed:
            while ticket not in self._granted:
                if self._closed:
                    raise Interrupted(f"{who} was not started.", fix="Run the same command to resume.")
                left = None if self._settled is None else self._settled - time.monotonic()
                if left is not None and left <= 0:
                    self._settled = None
                    self._granted |= dict(self._slots.granted())
                    self._changed.notify_all()
                else:
                    self._changed.wait(left)
            return self._granted[ticket]

    def _unsettle(self) -> None:
        """Let what is free be granted in a moment; what changes within it does not put that off."""
        if not self._slots.waiting:
            self._settled = None
        elif self._settled is None:
            self._settled = time.monotonic() + _SETTLE_SECONDS
        self._changed.notify_all()
