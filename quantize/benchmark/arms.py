"""One arm's turn: start it, send it loads, ask what it took, end it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import cast

from quantize.benchmark.pair_job import Allotted, PairJob, Target
from quantize.benchmark.rowfile import SLACK
from quantize.errors import QuantizeError, UsageError
from quantize.handed import Row
from quantize.served import Arrivals, Request, Sent, Service, TimedSession

__all__ = ["Started", "request_rows", "send", "started"]


class Started:
    """An arm that is up: `target`, and `seconds` that it took to start."""

    def __init__(self, target: Target, seconds: float, *, served: bool) -> None:
        self.target = target
        self.seconds = seconds
        self._service = cast("Service", target) if served else None

    @property
    def slots(self) -> int | None:
        """How many requests a server answers at a time; None in process, where a batch is as large as it is asked."""
        return self._service.slots if self._service is not None else None

    def check(self) -> None:
        """Raises QuantizeError, with the reason, where a server has ended."""
        if self._service is not None:
            self._service.check()

    def takes(self, longest: int) -> None:
        """Raises UsageError where a server's context is shorter than the longest request with its answer."""
        if self._service is not None and self._service.context < longest:
            raise UsageError(
                f"the longest request with its answer has {longest:,} tokens, over the {self._service.context:,} that "
                "the server takes.",
                where="benchmark.requests",
                fix="Take shorter requests, or give the engine a longer context.",
            )

    def processes(self) -> set[int]:
        """The process that is here, whose children send, and the server's."""
        return {os.getpid(), *(self._service.processes() if self._service is not None else ())}

    def memory(self) -> dict[str, int]:
        """Bytes, as the arm counts them.

        A model in this process on a CPU has no peak of its own: the system only knows the highest that the process ever
        had, whichever arm it was for.
        """
        memory = dict(self.target.memory())
        if self._service is None:
            session = cast("TimedSession", self.target)
            memory |= session.work()
            if not session.device.startswith("cuda"):
                memory.pop("peak", None)
        return memory

    def ceilings(self, job: PairJob) -> dict[str, float]:
        """What the device can do at most in this arithmetic; nothing where a server is asked, which chooses its own."""
        return {} if self._service is not None else job.ceilings(cast("TimedSession", self.target).arithmetic)

    def facts(self) -> dict[str, str]:
        """What it says of itself."""
        if self._service is not None:
            return dict(self._service.facts())
        session = cast("TimedSession", self.target)
        return {"device": session.device, **session.facts()}


@contextmanager
def started(job: PairJob, arm: str) -> Iterator[Started]:
    """A fresh server or session of an arm. Raises what starting it raises: the stage cannot go on without."""
    if not job.benchmark.traffic.served:
        _forget_peak()
    begin = time.monotonic()
    with job.arms[arm]() as target:
        up = Started(target, time.monotonic() - begin, served=job.benchmark.traffic.served)
        up.check()
        up.takes(max(request.input_tokens + request.output_tokens for request in job.requests))
        yield up


def send(job: PairJob, up: Started, how: Arrivals, what: Allotted) -> list[tuple[bool, Sent]]:
    """Send the warm-up, wait until it is answered, then send the load: (whether it is warm-up, what became of it).

    Requests that fail are an outcome. Raises QuantizeError with the server's own reason where it has ended, ClockMoved
    where the clock was.
    """
    found: list[tuple[bool, Sent]] = []
    if what.warmup:
        # As many at a time as there will be: engines prepare for each size of batch when they first meet it.
        most = how.streams or up.slots or 1
        closed = Arrivals("concurrent", streams=max(1, min(most, len(what.warmup))))
        found += [(True, sent) for sent in _send(job, up, closed, what.warmup)]
    return found + [(False, sent) for sent in _send(job, up, how, what.counted)]


def _send(job: PairJob, up: Started, how: Arrivals, requests: Sequence[Request]) -> list[Sent]:
    """What became of each request, in the order of `requests`."""
    try:
        sent = job.sender.send(up.target, how, requests, job.benchmark.request_seconds)
    except QuantizeError:
        up.check()  # a server that has ended is the better reason
        raise
    up.check()
    by_id = {one.request: one for one in sent}
    asked = [request.id for request in requests]
    if len(sent) != len(asked) or set(by_id) != set(asked):
        raise QuantizeError(
            f"of {len(asked)} requests the sender accounted for {len(set(by_id) & set(asked))}, in {len(sent)} answers."
        )
    return [by_id[name] for name in asked]


def request_rows(block: int, attempt: int, arm: str, load: str, sent: Sequence[tuple[bool, Sent]]) -> list[Row]:
    """Rows of `REQUEST_ROWS`, one a request."""
    return [
        {
            "block": block,
            "attempt": attempt,
            "arm": arm,
            "load": load,
            "place": place,
            "warmup": warmup,
            "request": one.request,
            "scheduled": one.scheduled,
            "dispatched": one.dispatched,
            "tokens": list(one.tokens),
            "end": one.end,
            "gen_ai.usage.input_tokens": one.input_tokens,
            "gen_ai.usage.output_tokens": one.output_tokens,
            "error.type": one.error,
        }
        for place, (warmup, one) in enumerate((warmup, _possible(one)) for warmup, one in sent)
    ]


def _possible(one: Sent) -> Sent:
    """What became of a request; a failure without times where those that were told cannot be."""
    times = [one.scheduled, one.dispatched, *one.tokens, one.end]
    known = [time for time in times if time is not None]
    if all(earlier <= later + SLACK for earlier, later in pairwise(known)) and all(map(math.isfinite, known)):
        whole = one.error is not None or (one.tokens and None not in times and (one.output_tokens or 0) > 1)
        return one if whole else replace(one, error="empty")
    sys.stderr.write(f"these times cannot be: {one}\n")  # for whoever asks the log why
    scheduled = one.scheduled if math.isfinite(one.scheduled) else 0.0
    return replace(one, scheduled=scheduled, dispatched=None, tokens=(), end=None, error="impossible times")


def _forget_peak() -> None:
    """Let a GPU's peak be counted from now on: it is otherwise that of all arms so far."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
