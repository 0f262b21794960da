"""Loads without a server: the model is timed in this process, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal, cast

from quantize.errors import QuantizeError
from quantize.handed import Host
from quantize.protocols import Sender
from quantize.record import Record
from quantize.served import Arrivals, Request, Sent, Service, Timed, TimedSession

__all__ = ["InProcess"]


class InProcess(Record):
    """Closed loops only, each as batches of as many prompts as it has streams.

    A batch answers requests of one shape: those of other lengths have batches of their own. Padding would time tokens
    that nobody asked for, and takes a mask, with which attention runs by other kernels than without.
    """

    kind: Literal["in_process"] = "in_process"
    served: ClassVar[bool] = False
    environment: ClassVar[str | None] = None

    def open(self, tokenizer: Path, host: Host) -> Sender:
        """Nothing to get ready: the session has its own tokenizer."""
        return _Batches()


class _Batches:
    """Sends requests to a session in batches.

    Its clock is `time.perf_counter`, which nothing sets or slews: a system clock that steps changes no time here.
    """

    def send(
        self, target: Service | TimedSession, arrivals: Arrivals, requests: Sequence[Request], seconds: float
    ) -> list[Sent]:
        """See `protocols.Sender`. The times of a batch are those of each of its requests.

        A batch that takes longer than `seconds` is answered to its end all the same, and its requests have failed, by
        `timeout`. Where the model raises, they have failed by `out of memory` or `unknown` and the exception's name.
        """
        if arrivals.kind != "concurrent":
            raise QuantizeError(
                f"a model in this process has no queue, in which the requests of a {arrivals.kind} load could wait.",
                fix="Take `traffic: {kind: guidellm}`, or loads of kind synchronous and concurrent.",
            )
        session = cast("TimedSession", target)
        prompts = [session.tokenize(request.prompt) for request in requests]
        shapes = [(len(ids), request.output_tokens) for ids, request in zip(prompts, requests, strict=True)]
        found: dict[int, Sent] = {}
        began = time.perf_counter()
        for batch in _batches(shapes, arrivals.streams):
            tokens, new = shapes[batch[0]]
            begin = time.perf_counter() - began
            timed = _answered(session, [prompts[place] for place in batch], new)
            end = time.perf_counter() - began
            for place in batch:
                found[place] = _sent(requests[place].id, tokens, timed, begin, end, seconds)
        return [found[place] for place in range(len(requests))]

    def close(self) -> None:
        """It holds nothing."""


def _batches(shapes: Sequence[tuple[int, int]], streams: int) -> list[list[int]]:
    """Places in `shapes` that are answered together: up to `streams` of one shape, in the order of their first."""
    open_batches: dict[tuple[int, int], list[int]] = {}
    found: list[list[int]] = []
    for place, shape in enumerate(shapes):
        if len(open_batches.get(shape, [])) in {0, streams}:
            open_batches[shape] = []
            found.append(open_batches[shape])
        open_batches[shape].append(place)
    return found


def _answered(session: TimedSession, prompts: list[list[int]], new_tokens: int) -> Timed | str:
    """How long a batch took, or the class of what went wrong. A QuantizeError is nobody's answer: it goes on."""
    import torch

    try:
        return session.timed(torch.tensor(prompts), new_tokens)
    except QuantizeError:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        problem = "out of memory"
    except Exception as error:  # noqa: BLE001  whatever a kernel raises is what became of the request
        problem = "out of memory" if "can't allocate memory" in str(error) else f"unknown {type(error).__name__}"
    # Here the exception is gone, and with it the frames that held its tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return problem


def _sent(request: str, input_tokens: int, timed: Timed | str, begin: float, end: float, seconds: float) -> Sent:
    """`begin` and `end` are this process's, in seconds of the load.

    An answer's times are counted back from its end: what a batch of a new size takes before it is answered (a graph
    is captured) belongs to no request.
    """
    if isinstance(timed, str):
        return Sent(request, begin, begin, (), end, input_tokens, None, timed)
    took = timed.prefill + sum(timed.steps)
    start = max(begin, end - took)
    tokens = tuple(accumulate(timed.steps, initial=start + timed.prefill))
    if took <= seconds:
        return Sent(request, start, start, tokens, tokens[-1], input_tokens, len(tokens))
    in_time = tuple(token for token in tokens if token <= start + seconds)
    return Sent(request, start, start, in_time, start + seconds, input_tokens, len(in_time), "timeout")
