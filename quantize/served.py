"""What a benchmark passes around: requests, when they arrive, who answers them, and what became of each.

Times are in seconds. Token ids are int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantize.handed import Session

if TYPE_CHECKING:
    import torch

__all__ = ["Arrivals", "Request", "Sent", "Service", "Timed", "TimedSession"]


@dataclass(frozen=True, slots=True)
class Timed:
    """How long one batch took, in seconds on the device's own clock: the prompt, then every step of one token each."""

    prefill: float
    steps: tuple[float, ...]


class TimedSession(Session, Protocol):
    """A session that can be timed without a server in between."""

    def timed(self, ids: torch.Tensor, new_tokens: int) -> Timed:
        """Answer the prompts `ids` (batch, tokens) greedily with exactly `new_tokens` tokens each, timing every step.

        By CUDA events on GPUs, the monotonic clock elsewhere. The first token comes of the prefill.
        """
        ...

    def facts(self) -> dict[str, str]:
        """What times depend on: dtype of the arithmetic, attention, threads, graphs."""
        ...

    def work(self) -> dict[str, int]:
        """What a token takes: `parameters` that multiply, `read` bytes of them, `kv_token` bytes of the cache."""
        ...


class Service(Protocol):
    """An artifact behind a server that speaks OpenAI's completions protocol. Close it to give the memory back."""

    @property
    def address(self) -> str:
        """Where it listens, without a path: `http://127.0.0.1:8000`."""
        ...

    @property
    def model(self) -> str:
        """The model's name in requests."""
        ...

    @property
    def key(self) -> str | None:
        """The bearer token that requests must have."""
        ...

    @property
    def body(self) -> Mapping[str, Any]:
        """What every request says besides, so that no prompt's work is taken from one before it."""
        ...

    @property
    def slots(self) -> int:
        """How many requests are answered at the same time; more wait."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a request may have, its answer included."""
        ...

    def processes(self) -> set[int]:
        """Its processes."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` where known, `peak` of the process or on the GPU, `kv` reserved; `kv_tokens` that fit in."""
        ...

    def facts(self) -> dict[str, str]:
        """What it chose itself, as far as it says so: kernels, attention, dtype of the key-value cache, graphs."""
        ...

    def check(self) -> None:
        """Raises QuantizeError, with the reason and the log's tail, where it has ended."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a benchmark: a prompt of `input_tokens`, and exactly how many tokens its answer must have."""

    id: str
    prompt: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests are sent: `concurrent` keeps `streams` of them going, the others start `rate` a second.

    Whether anything has been answered or not: at even intervals (`constant`) or those of a Poisson process, drawn by
    `seed`.
    """

    kind: Literal["concurrent", "constant", "poisson"]
    streams: int = 0
    rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request, in seconds since its load began; None where it did not come to that.

    `scheduled` is when it was to start: by the arrivals or, in a closed loop, when its stream became free. `tokens` are
    the times at which each token came. Token counts are the server's. `error` is a class: `timeout`, `connection`,
    `http 500`, `cut` (the stream ended early), `short` (fewer tokens than were asked for), `empty` (no token
    was seen), `impossible times` (they do not follow each other).
    """

    request: str
    scheduled: float
    dispatched: float | None
    tokens: tuple[float, ...]
    end: float | None
    input_tokens: int | None
    output_tokens: int | None
    error: str | None = None
