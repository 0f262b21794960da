"""Greedy answers of a model in this process, token by token, and how long each step took.

On a CPU the key-value cache grows with the answer, as that of `generate` does: a static one would make every step pay
for the longest answer. On a GPU a step of a small batch is shorter than starting its kernels one by one, so it is
captured as a CUDA graph, which needs a cache that never moves; where that cannot be had the step runs as on a CPU, and
`Greedy.graphs` says why.

Imported only by functions that have a model loaded.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from quantize.errors import DataError
from quantize.served import Timed

__all__ = ["Greedy", "answer", "context", "kv_bytes"]

#: A graph is of one length of the cache, rounded up to this many tokens, so that answers of like lengths share it.
_ROUND = 256
#: Graphs kept at a time, each with a cache of its own.
_KEPT = 4
#: Steps before a capture, in which libraries choose their kernels; as many compare the graph with what it stands for.
_WARM = 3


class Greedy:
    """One model's greedy answers: `prepare`, then `begin` with the prompts, then `step` for each further token.

    Token ids are int64 (rows, 1), on the model's device. What `begin` and `step` return may be overwritten by the next
    step.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        #: `cuda graphs`, or `eager` with the reason on a GPU.
        self.graphs = "eager"
        self._kept: dict[tuple[int, int], _Graph | None] = {}
        self._graph: _Graph | None = None
        self._cache: Any = None
        self._token: Any = None
        last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last: dict[str, Any] = {"logits_to_keep": 1} if last_only else {}

    def prepare(self, rows: int, tokens: int) -> None:
        """Get ready for prompts and answers of `tokens` together: on a GPU take the graph of this size, or capture it.

        Raises DataError where the model has no such positions.
        """
        most = context(self.model)
        if most is not None and tokens > most:
            raise DataError(
                f"a prompt and its answer have {tokens} tokens together, and the model has {most} positions.",
                fix="Ask for shorter prompts or answers.",
            )
        self._graph = None
        if self.model.device.type != "cuda":
            return
        try:
            self._graph = self._captured(rows, tokens)
        except torch.OutOfMemoryError:
            self._kept.clear()  # it may be their memory that is lacking
            torch.cuda.empty_cache()
            self._graph = self._captured(rows, tokens)

    def begin(self, ids: torch.Tensor) -> torch.Tensor:
        """The first token of every answer: prompts (rows, tokens) of one length, without padding."""
        if self._graph is not None:
            return self._graph.begin(ids)
        out = self.model(input_ids=ids, use_cache=True, **self._last)
        return self._next(out)

    def step(self) -> torch.Tensor:
        """The next token of every answer."""
        if self._graph is not None:
            return self._graph.step()
        out = self.model(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        return self._next(out)

    def _next(self, out: Any) -> torch.Tensor:
        self._cache = out.past_key_values
        self._token = out.logits[:, -1].argmax(-1, keepdim=True)
        return self._token  # type: ignore[no-any-return]

    def end(self) -> None:
        """Give the growing cache back."""
        self._cache = self._token = None

    def _captured(self, rows: int, tokens: int) -> _Graph | None:
        """The graph of this size, the most lately used last; None where there can be none."""
        size = (rows, -(-tokens // _ROUND) * _ROUND)
        if size in self._kept:
            self._kept[size] = self._kept.pop(size)
            return self._kept[size]
        reason = _hindrance(self.model)
        graph = None
        if reason is None:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            try:
                graph = _Graph(self.model, self._last, *size)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001  kernels that cannot be captured raise what they like
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self.graphs = "cuda graphs" if graph is not None else f"eager ({reason})"
        self._kept[size] = graph
        return graph


class _Graph:
    """One decoding step as a CUDA graph, for `rows` answers in a cache of `length` tokens."""

    def __init__(self, model: Any, last: dict[str, Any], rows: int, length: int) -> None:
        from transformers import StaticCache

        self._model, self._last = model, last
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        self._token = torch.zeros((rows, 1), dtype=torch.int64, device=model.device)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        prompt = (torch.arange(rows * 8, device=model.device) % vocabulary).reshape(rows, 8)
        with torch.inference_mode():
            eager = _aside(model.device, lambda: [self.begin(prompt), *(self._eager().clone() for _ in range(_WARM))])
            self._replay = _capture(model.device, self._eager)
            self.begin(prompt)
            replayed = [self.step().clone() for _ in range(_WARM)]
        if not all(torch.equal(one, other) for one, other in zip(eager[1:], replayed, strict=True)):
            raise RuntimeError("the captured step answers otherwise")

    def begin(self, ids: torch.Tensor) -> torch.Tensor:
        """Not captured: prompts have many lengths."""
        self._cache.reset()
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._last)
        return self._token.copy_(out.logits[:, -1].argmax(-1, keepdim=True))

    def step(self) -> torch.Tensor:
        """Run the captured step."""
        self._replay()
        return self._token

    def _eager(self) -> torch.Tensor:
        """What is captured: it reads its token where it writes the next one."""
        out = self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        return self._token.copy_(out.logits[:, -1].argmax(-1, keepdim=True))


def _aside(device: torch.device, warm: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    """Run what comes before a capture on a stream beside, as CUDA wants it."""
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            found = warm()
        torch.cuda.current_stream().wait_stream(beside)
        return found


def _capture(device: torch.device, step: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """`step` as a CUDA graph: what runs it again. It is not run by being captured."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay


def answer(greedy: Greedy, ids: torch.Tensor, new_tokens: int) -> tuple[Timed, torch.Tensor]:
    """Answers of exactly `new_tokens` tokens (rows, new_tokens) to prompts (rows, tokens), with their times in seconds.

    The end of a text ends nothing. Raises DataError where the model has too few positions, ValueError for no tokens.
    """
    if new_tokens < 1:
        raise ValueError("an answer has a token at least")
    with torch.inference_mode():
        greedy.prepare(ids.shape[0], ids.shape[1] + new_tokens - 1)
        ids = ids.to(greedy.model.device)
        try:
            if ids.device.type == "cuda":
                with torch.cuda.device(ids.device):
                    return _by_events(greedy, ids, new_tokens)
            return _by_clock(greedy, ids, new_tokens)
        finally:
            greedy.end()


def _by_clock(greedy: Greedy, ids: torch.Tensor, new_tokens: int) -> tuple[Timed, torch.Tensor]:
    """A step reaches from the end of the one before it to its own, so that nothing in between is left out."""
    clock, step = time.perf_counter, greedy.step
    times = [clock()]
    tokens = [greedy.begin(ids)]
    times.append(clock())
    for _ in range(new_tokens - 1):
        tokens.append(step())
        times.append(clock())
    prefill, *steps = (after - before for before, after in pairwise(times))
    return Timed(prefill, tuple(steps)), torch.cat(tokens, 1)


def _by_events(greedy: Greedy, ids: torch.Tensor, new_tokens: int) -> tuple[Timed, torch.Tensor]:
    """Events on the device's own stream; the host waits once, at the end."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens + 1)]  # type: ignore[no-untyped-call]
    tokens = torch.empty((ids.shape[0], new_tokens), dtype=torch.int64, device=ids.device)
    torch.cuda.synchronize()
    events[0].record()
    tokens[:, :1].copy_(greedy.begin(ids))
    events[1].record()
    for place in range(1, new_tokens):
        tokens[:, place : place + 1].copy_(greedy.step())
        events[place + 1].record()
    torch.cuda.synchronize()
    prefill, *steps = (before.elapsed_time(after) / 1000 for before, after in pairwise(events))
    return Timed(prefill, tuple(steps)), tokens


def _hindrance(model: Any) -> str | None:
    """Why a step of this model cannot be a graph; None where it may."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    if len({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}) > 1:
        return "the model lies on several devices"
    try:
        cache = StaticCache(config=model.config, max_cache_len=_ROUND)
    except Exception as error:  # noqa: BLE001  an architecture without such a cache says so in its own way
        return f"there is no static cache for it: {type(error).__name__}"
    # Sliding windows and recurrent states count their tokens on the host, where a replayed graph does not count.
    if any(type(layer) is not StaticLayer for layer in cache.layers):
        return "its cache is not of full attention alone"
    return None


def context(model: Any) -> int | None:
    """How many positions the model has; None where its config does not say."""
    config = model.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    return int(most) if isinstance(most, int) and most > 0 else None


def kv_bytes(model: Any) -> int:
    """Bytes of the key-value cache that one token takes, as measured on a prompt of two; 0 for models without one."""
    with torch.inference_mode():
        prompt = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
        layers = getattr(model(input_ids=prompt, use_cache=True).past_key_values, "layers", [])
    held = [part for layer in layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(int(part.numel()) * int(part.element_size()) for part in held if part is not None) // 2
