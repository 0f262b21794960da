"""What is to be measured: one or two arms of one engine, their loads, and which requests each load sends.

All arms of a stage get the same requests in the same order with the same arrivals. A server that has answered a prompt
may have kept its work, so none gets a prompt twice: the curve and each load, with their warm-ups, have requests of
their own. The next block's server is a new one, and the same list serves again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantize.benchmark.blockfile import REQUESTS_FILE
from quantize.benchmark.config import Benchmark, LoadConfig, Open
from quantize.benchmark.requests import RequestsConfig, read
from quantize.errors import QuantizeError
from quantize.handed import Parts, Progress
from quantize.protocols import Sender
from quantize.record import digest
from quantize.served import Arrivals, Request, Service, TimedSession

__all__ = ["Allotted", "PairJob", "Target", "Watching", "allot", "arrivals", "needed", "write"]

#: What requests are sent to: a server, or a model in this process.
Target = Service | TimedSession


class _Watched(Protocol):
    """What was seen while an arm was measured: sentences that make its numbers worthless, and plain facts."""

    @property
    def reasons(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Mapping[str, str | float]: ...


class Watching(Protocol):
    """Looks at the machine from `begin` to `end`."""

    def begin(self) -> None:
        """Start looking."""
        ...

    def end(self) -> _Watched:
        """Stop looking, and say what was seen."""
        ...


@dataclass(frozen=True, slots=True)
class PairJob:
    """What `measure` is given.

    `arms` are one or two by name, the baseline first: each call starts a fresh server, or a fresh session where
    `benchmark.traffic` needs none, and leaving the context ends it. Those named in `curves` have their curve measured
    first. `knee` is the rate (requests a second) of which open loads take their share; None where it comes of the curve
    of the first arm in `curves`. `requests` are at least `needed(benchmark)`. `watch` is called for every arm of every
    block with what says which processes are the arm's own; `alone` says who else uses the device, before the first
    block, and is asked again for up to `patience` seconds while somebody does. `fingerprint` describes the machine;
    `ceilings` measures what it can do at most in a dtype (`flops`, `bandwidth`), for models that are timed in process.
    """

    out: Path
    arms: Mapping[str, Callable[[], AbstractContextManager[Target]]]
    benchmark: Benchmark
    requests: Sequence[Request]
    sender: Sender
    watch: Callable[[Callable[[], set[int]]], Watching]
    parts: Parts
    seed: int
    progress: Progress
    fingerprint: Mapping[str, str]
    ceilings: Callable[[str], dict[str, float]] = lambda _dtype: {}
    knee: float | None = None
    curves: tuple[str, ...] = ()
    alone: Callable[[], Sequence[str]] = list
    patience: float = 60.0


@dataclass(frozen=True, slots=True)
class Allotted:
    """The requests of one load: those before it that are not counted, and those that are."""

    warmup: list[Request]
    counted: list[Request]


def needed(benchmark: Benchmark) -> int:
    """How many different requests a stage sends: those of the whole curve and of one block's loads."""
    counted = [benchmark.at_point(streams) for streams in benchmark.curve] + [load.requests for load in benchmark.sent]
    before = [benchmark.before(streams) for streams in (*benchmark.curve, *map(streams_of, benchmark.sent))]
    return sum(before) + sum(counted)


def streams_of(load: LoadConfig) -> int:
    """Requests that a closed loop keeps under way; 1 for an open one, where nobody knows."""
    return 1 if isinstance(load, Open) else load.streams


def write(
    config: RequestsConfig, out: Path, tokenizer: Path, count: int, seed: int, context: int | None
) -> tuple[list[Request], str | None]:
    """Write the requests of a stage into the folder `out`; read them back, with a note that a reader needs.

    Raises DataError for bad prompts and for those that do not fit into `context` tokens with their answers.
    """
    note = config.write(out, tokenizer, count, seed, context).note
    return read(out / REQUESTS_FILE), note


def allot(benchmark: Benchmark, requests: Sequence[Request]) -> tuple[dict[int, Allotted], dict[str, Allotted]]:
    """The requests of each of the curve's points and of each load, in the list's order. No request in two of them.

    Raises QuantizeError where there are too few, or two have one id or prompt.
    """
    if len(requests) < needed(benchmark):
        raise QuantizeError(
            f"the benchmark needs {needed(benchmark)} requests and was given {len(requests)}.",
            fix="Make the list anew: fewer would be sent twice, and a server may remember its prompts.",
        )
    for what in ("id", "prompt"):
        if len({getattr(request, what) for request in requests}) < len(requests):
            raise QuantizeError(f"two of the benchmark's requests have the same {what}.")
    place = 0

    def take(streams: int, count: int) -> Allotted:
        nonlocal place
        start = place + benchmark.before(streams)
        found = Allotted(list(requests[place:start]), list(requests[start : start + count]))
        place = start + count
        return found

    curve = {streams: take(streams, benchmark.at_point(streams)) for streams in benchmark.curve}
    return curve, {load.name: take(streams_of(load), load.requests) for load in benchmark.sent}


def arrivals(load: LoadConfig, knee: float | None, seed: int, block: int) -> Arrivals:
    """How a load's requests arrive in a block: the same for both arms, drawn anew for every block.

    Raises QuantizeError where the rate is a share of a knee that is not known.
    """
    if not isinstance(load, Open):
        return Arrivals("concurrent", streams=load.streams)
    rate = load.rate if load.rate is not None else load.of_knee * knee if knee is not None else None
    if rate is None or rate <= 0:
        raise QuantizeError(
            f"the rate of the load {load.name!r} is a share of what the baseline can keep up with, which is not known.",
            fix="Name its `rate` in requests a second.",
        )
    drawn = int(digest({"arrivals of": load.name, "block": block, "seed": seed})[:8], 16) % 2**31
    return Arrivals(load.kind, rate=rate, seed=drawn)
