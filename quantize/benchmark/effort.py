"""What a benchmark costs before it is run: server starts, requests, and roughly how long they take.

A token of an answer takes at least the time to read all weights once, shared by the requests that are under way
together; a token of a prompt 2 P operations. Open loops take as long as their requests at the rate that the baseline
can just keep up with, which is what they take when they are under way one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.benchmark.config import Benchmark, Synchronous
from quantize.benchmark.pair_job import streams_of
from quantize.benchmark.requests import Synthetic

__all__ = ["Effort", "effort", "seconds"]

#: Seconds that a server takes to start, a sender to begin a load, and characters of a token, as round figures.
_START, _LOAD, _CHARACTERS = 15.0, 2.0, 4
#: The same without a server.
_OPEN, _BATCH = 1.0, 0.1
#: How many requests under way together make a token cheaper, at most: beyond, arithmetic counts and not reading.
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Effort:
    """`starts` of a server, `loads` begun, `requests` sent; `alone` of them one after the other."""

    starts: int
    loads: int
    requests: int
    alone: int


def effort(benchmark: Benchmark, arms: int) -> Effort:
    """Of one stage: a curve of one arm, then blocks of `arms` arms. Without the blocks that have to be run again."""
    turns = benchmark.blocks * arms
    sent = [(load, load.requests + benchmark.before(streams_of(load))) for load in benchmark.sent]
    curve = sum(benchmark.at_point(streams) + benchmark.before(streams) for streams in benchmark.curve)
    single = turns * sum(count for load, count in sent if isinstance(load, Synchronous))
    return Effort(
        starts=turns + 1,
        loads=turns * len(benchmark.sent) + len(benchmark.curve),
        requests=turns * sum(count for _, count in sent) + curve,
        alone=single,
    )


def seconds(cost: Effort, benchmark: Benchmark, parameters: int, rate: float, bandwidth: float, width: int) -> float:
    """Roughly, with `rate` operations and `bandwidth` bytes a second, and `width` bytes of a weight."""
    prompt, answer = _lengths(benchmark)
    prefill = 2.0 * parameters * prompt / rate
    step = parameters * width / bandwidth
    each = cost.alone * (prefill + answer * step)
    together = (cost.requests - cost.alone) * (prefill + answer * step / _TOGETHER)
    start, load = (_START, _LOAD) if benchmark.traffic.served else (_OPEN, _BATCH)
    return cost.starts * start + cost.loads * load + each + together


def _lengths(benchmark: Benchmark) -> tuple[float, float]:
    """Mean tokens of a prompt and of its answer."""
    requests = benchmark.requests
    if isinstance(requests, Synthetic):
        shapes = requests.shapes
        return sum(s.input for s in shapes) / len(shapes), sum(s.output for s in shapes) / len(shapes)
    try:
        text = requests.path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 512.0, float(requests.output_tokens)
    return sum(map(len, text)) / max(1, len(text)) / _CHARACTERS, float(requests.output_tokens)
