"""Loads for GuideLLM, and what it says of them as `Sent`, every request accounted for."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from quantize.errors import ClockMoved
from quantize.served import Arrivals, Request, Sent, Service, TimedSession
from quantize.traffic._guidellm_client import Client

__all__ = ["GuideLLMSender", "arrival_times", "sent"]

#: A system clock that is set forward or back while a load runs makes its times worthless. Smaller steps than this are
#: below what is measured, and the two clocks cannot be read at the very same time.
_CLOCK_SECONDS = 0.005
#: What GuideLLM takes around a load, on a busy machine.
_AROUND_SECONDS = 120.0
#: A closed loop that waits for nobody but a dead server: so many deadlines missed in a row, and it is given up.
_GIVE_UP = 3


class GuideLLMSender:
    """Sends loads through one GuideLLM process."""

    def __init__(self, python: Path, tokenizer: Path, log: Path, request_format: str) -> None:
        self._tokenizer = tokenizer
        self._request_format = request_format
        self._client = Client(python, log)

    def send(
        self, target: Service | TimedSession, arrivals: Arrivals, requests: Sequence[Request], seconds: float
    ) -> list[Sent]:
        """Send every request once, in their order; `Sent`s in the same order. `seconds` is one request's deadline.

        `scheduled` is the arrival in open loops; in closed ones the time at which the request before it in its stream
        ended, the load's begin for the first. Classes of errors beside those of `Sent`: `unsent` (a closed loop was
        given up, as too many requests in a row got no answer in time), `lost` (GuideLLM says nothing of it), `refused
        in the stream`, `unknown` and the exception's name. Raises ClockMoved where the system's clock was set
        meanwhile.
        """
        service = cast("Service", target)
        streams = arrivals.streams if arrivals.kind == "concurrent" else 0
        command = {
            "address": service.address,
            "model": service.model,
            "key": service.key,
            "body": dict(service.body),
            "request_format": self._request_format,
            "tokenizer": str(self._tokenizer),
            "seconds": seconds,
            "give_up": max(_GIVE_UP, streams) if streams else 0,
            "profile": _profile(arrivals),
            "seed": arrivals.seed,
            "prompts": [request.prompt for request in requests],
            "outputs": [request.output_tokens for request in requests],
        }
        reply = self._client.ask(command, _longest(arrivals, len(requests), seconds))
        return sent(reply, arrivals, requests)

    def close(self) -> None:
        """End GuideLLM."""
        self._client.close()


def _profile(arrivals: Arrivals) -> dict[str, Any]:
    if arrivals.kind != "concurrent":
        return {"kind": arrivals.kind, "rate": [arrivals.rate]}
    if arrivals.streams == 1:
        return {"kind": "synchronous"}
    return {"kind": "concurrent", "streams": [arrivals.streams]}


def _longest(arrivals: Arrivals, count: int, seconds: float) -> float:
    """Seconds after which a load must have ended, every request at its deadline."""
    if arrivals.kind == "concurrent":
        return math.ceil(count / arrivals.streams) * seconds + _AROUND_SECONDS
    return arrival_times(arrivals, count)[-1] + seconds + _AROUND_SECONDS


def arrival_times(arrivals: Arrivals, count: int) -> list[float]:
    """When the requests of an open loop arrive, in seconds since its begin: those that GuideLLM draws of its seed."""
    if arrivals.kind == "constant":
        return [number / arrivals.rate for number in range(1, count + 1)]
    draws = random.Random(arrivals.seed)  # noqa: S311 (GuideLLM's own generator)
    return list(accumulate(draws.expovariate(arrivals.rate) for _ in range(count)))


def sent(reply: dict[str, Any], arrivals: Arrivals, requests: Sequence[Request]) -> list[Sent]:
    """`Sent`s from a reply of the process. Raises ClockMoved."""
    before, after = reply["clock"]
    if abs(after - before) > _CLOCK_SECONDS:
        raise ClockMoved(
            f"the system's clock was moved by {after - before:+.3f} s while measuring.",
            fix="Let nothing set the clock meanwhile (a time service may slew it, but not step it).",
        )
    rows = {row["place"]: row for row in reply["rows"]}
    times = arrival_times(arrivals, len(requests)) if arrivals.kind != "concurrent" else None
    return [_sent(request, rows.get(place), times[place] if times else None) for place, request in enumerate(requests)]


def _sent(request: Request, row: dict[str, Any] | None, arrival: float | None) -> Sent:
    if row is None:
        return Sent(request.id, arrival or 0.0, None, (), None, None, None, "lost")
    begin = row["begin"]
    dispatched = _since(begin, row["dispatched"])
    return Sent(
        request=request.id,
        scheduled=_scheduled(row, arrival, dispatched),
        dispatched=dispatched,
        tokens=tuple(time - begin for time in row["tokens"]),
        end=_since(begin, row["end"]),
        input_tokens=row["input"],
        output_tokens=row["output"],
        error=row["error"],
    )


def _since(begin: float, time: float | None) -> float | None:
    return None if time is None else time - begin


def _scheduled(row: dict[str, Any], arrival: float | None, dispatched: float | None) -> float:
    """Seconds since the load's begin.

    GuideLLM's word is taken where it can be: not before the load began, and not after the request was sent. Else an
    open loop's own arithmetic, which is the same, stands in, and for a closed loop the time at which the request was
    taken from the queue.
    """
    begin = row["begin"]
    targeted = _since(begin, row["targeted"])
    latest = math.inf if dispatched is None else dispatched
    if targeted is not None and -_CLOCK_SECONDS <= targeted <= latest + _CLOCK_SECONDS:
        return min(max(0.0, targeted), latest)
    if arrival is not None:
        return arrival
    return _since(begin, row["dequeued"]) or dispatched or 0.0
