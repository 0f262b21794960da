"""How far a model is from what its device can do at most, with both ceilings measured on the device itself.

    compute ceiling    2 n^3 / seconds      FLOP/s   of a product of two (n, n) matrices, in the dtype of computation
    bandwidth ceiling  bytes read / seconds B/s      of summing an array many times larger than any cache

    prefill's share of the compute ceiling  =  2 P T / seconds / FLOP/s
    decode's share of the bandwidth ceiling =  (W + K) / seconds / B/s

P are the parameters that multiply (all but the embedding, which is looked up), T the tokens of all prompts of a batch,
W the bytes of those weights as they lie in memory, K the bytes of the key-value cache that one step reads, for all rows
of the batch. Attention's own products are left out of prefill, which makes its share a little too small for long
prompts. A ceiling is the best of several tries: what disturbs one only makes it slower. Seconds are by CUDA events on a
GPU, by the monotonic clock on a CPU, with as many threads as torch has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Roofline", "Work", "decode_share", "measure", "prefill_share", "work_of"]

#: Tries, of which the best counts, and the seconds for which they go on at least: on a machine that others use too a
#: quiet moment has to be met.
_TRIES, _TRYING_SECONDS = 7, 3.0
#: How long one try takes, in seconds, by repetition: what starting it takes must not count.
_SECONDS = 0.02
#: Sides of the matrices: the larger one keeps a large GPU busy.
_SIDES = {"cpu": 1024, "cuda": 8192}
#: Bytes of the array that is read: beyond the caches of large CPUs and GPUs.
_BYTES = {"cpu": 2**29, "cuda": 2**32}


@dataclass(frozen=True, slots=True)
class Roofline:
    """A device's ceilings: `flops` in FLOP/s in one dtype, `bandwidth` in bytes read a second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a model does for a token: `parameters` that multiply, `weight_bytes` of them as they lie in memory."""

    parameters: int
    weight_bytes: int


def measure(device: str, dtype: str, *, side: int | None = None, size: int | None = None) -> Roofline:
    """Measure both ceilings of a device (`cpu`, `cuda`) in a dtype of torch's (`float32`, `bfloat16`).

    `side` of the matrices and `size` of the array in bytes are as large as the device is fast, where not given.
    """
    import torch

    kind = torch.device(device).type
    side = side or _SIDES[kind]
    # Not zeros: a system may give one page for all of them, and read that from its cache. float32 everywhere, since
    # sums of narrower numbers are bound by arithmetic on some devices.
    array = torch.ones((size or _BYTES[kind]) // 4, dtype=torch.float32, device=device)
    held = array.numel() * array.element_size()
    bandwidth = held / _best(device, array.sum)
    del array
    left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(left)
    return Roofline(2 * side**3 / _best(device, lambda: torch.mm(left, right, out=out)), bandwidth)


def _best(device: str, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several tries at `work`, each of several in a row."""
    once = _timed(device, work, 2)  # the first calls choose their kernels
    once = _timed(device, work, 1)
    count = max(1, round(_SECONDS / max(once, 1e-9)))
    until = time.perf_counter() + _TRYING_SECONDS
    tries: list[float] = []
    while len(tries) < _TRIES or time.perf_counter() < until:
        tries.append(_timed(device, work, count))
    return min(tries)


def _timed(device: str, work: Callable[[], Any], count: int) -> float:
    """Seconds of one call of `work`, in a row of `count`."""
    import torch

    if torch.device(device).type != "cuda":
        begin = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - begin) / count
    with torch.cuda.device(device):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        before.record()
        for _ in range(count):
            work()
        after.record()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1000 / count


def work_of(model: Any) -> Work:
    """Count a loaded transformers model. Packed weights count as the bytes that they take, and as what they stand for.

    A head that shares its matrix with the embedding multiplies too, and counts.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    held = sum(_bytes(part) for part in (*model.parameters(), *model.buffers()))
    looked_up = 0 if tied else _bytes(embedding.weight)
    # What Linears are of, whatever holds their weights: packed ones know their shape too.
    linears = [m for m in model.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]
    return Work(sum(m.in_features * m.out_features for m in linears), held - looked_up)


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


def prefill_share(work: Work, roofline: Roofline, *, tokens: int, seconds: float) -> float:
    """Share of the compute ceiling that a prefill of `tokens` (of all prompts of the batch) reaches."""
    return 2 * work.parameters * tokens / seconds / roofline.flops


def decode_share(work: Work, roofline: Roofline, *, kv_bytes: float, seconds: float) -> float:
    """Share of the bandwidth ceiling that one step reaches which reads `kv_bytes` of the key-value cache."""
    return (work.weight_bytes + kv_bytes) / seconds / roofline.bandwidth
