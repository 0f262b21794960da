"""How many GPUs an artifact needs, and how many requests fit beside it.

With W bytes of weights (a draft model's included), tensor parallelism t and a card of M bytes:

    KV bytes of a token on one GPU    k = 2 * layers * max(1, kv_heads / t) * head_size * bytes per number
    tokens in the cache               n = (0.9 * M - W / t - 2 GB) / k
    requests at once                  n / (context / 4), 256 at most

0.9 is the share of memory that engines take; 2 GB are the runtime, CUDA graphs and activations. t is the smallest of
1, 2, 4, 8 for which two requests of full length fit and which divides the model: the heads; the KV heads, or t is a
multiple of them (they are then copied); and, where weights are quantized in groups, each GPU's share of the input
channels into whole groups. A request is taken to fill a quarter of its context: more of them than fit are preempted.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.serving.model import Limits, Served, Shape

__all__ = ["CARDS", "MOST_GPUS", "SHARE", "Size", "kv_bytes_per_token", "size_for"]

#: Memory in GB (10^9 bytes) -> cards that have it.
CARDS = {
    24: "L4, A10, RTX 4090",
    40: "A100",
    48: "L40S, A40, RTX 6000 Ada",
    80: "A100, H100",
    141: "H200",
    192: "B200",
}

#: Of a card's memory, what an engine takes.
SHARE = 0.9
_RUNTIME = 2e9
_DEGREES = (1, 2, 4, 8)
MOST_GPUS = _DEGREES[-1]
_LEAST_REQUESTS = 2
_MOST_REQUESTS = 256
_FILLED = 4


@dataclass(frozen=True, slots=True)
class Size:
    """`gpus` is the tensor-parallel size, `tokens` the KV cache's, `requests` those that run at once."""

    gpus: int
    tokens: int
    requests: int


def kv_bytes_per_token(shape: Shape, bits: int, gpus: int = 1) -> int:
    """Bytes of one token's keys and values in all layers, on one of `gpus`; `bits` per number (16, or 8 for FP8)."""
    return 2 * shape.layers * max(1, shape.kv_heads // gpus) * shape.head_size * bits // 8


def size_for(
    served: Served, memory: float, limits: Limits, *, bits: int = 16, draft: Served | None = None
) -> Size | None:
    """The fewest GPUs of `memory` bytes that serve it; None where 8 do not, or the model's shape is not known."""
    if served.shape is None:
        return None
    models = [served, draft] if draft is not None else [served]
    for gpus in _DEGREES:
        if not _divides(served.shape, served.scheme.group_size if served.scheme is not None else None, gpus):
            continue
        free = SHARE * memory - _RUNTIME - sum(model.weights for model in models) / gpus
        each = sum(kv_bytes_per_token(model.shape or served.shape, bits, gpus) for model in models)
        tokens = int(free / each)
        if tokens >= _LEAST_REQUESTS * limits.context:
            return Size(gpus, tokens, min(_MOST_REQUESTS, _FILLED * tokens // limits.context))
    return None


def _divides(shape: Shape, group_size: int | None, gpus: int) -> bool:
    if shape.heads % gpus or (shape.kv_heads % gpus and gpus % shape.kv_heads):
        return False
    # What is split along its input channels: the attention's output and the MLP's down projection.
    inputs = [shape.heads * shape.head_size, shape.intermediate_size or 0]
    return all(size % gpus == 0 and (not group_size or size // gpus % group_size == 0) for size in inputs)
