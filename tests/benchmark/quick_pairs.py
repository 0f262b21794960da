"""Quick pairs: the tiny Llama timed in this process, and jobs that measure it in seconds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.benchmark.blockfile import REQUESTS_FILE
from quantize.benchmark.blocks import measure
from quantize.benchmark.config import Benchmark, Synchronous
from quantize.benchmark.pair_job import PairJob, needed
from quantize.benchmark.requests import Shape, Synthetic, read
from quantize.engines.transformers import Transformers
from quantize.handed import Host
from quantize.traffic import InProcess

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


class Folder:
    """Parts in a folder, as a store keeps them, without one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, number: int) -> Path | None:
        path = self.folder / str(number)
        return path if path.exists() else None

    def keep(self, number: int, write: Callable[[Path], None]) -> Path:
        draft = self.folder / f"draft-{number}"
        draft.mkdir(parents=True)
        write(draft)
        return draft.rename(self.folder / str(number))


class Seen:
    """What a watch saw: nothing, or what a test says."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons
        self.facts: dict[str, str | float] = {"foreign": 0.0}


class Watch:
    """Sees nothing: for machines that are never quiet."""

    def __init__(self, own: Callable[[], set[int]], reasons: list[str] | None = None) -> None:
        self._reasons = reasons or []

    def begin(self) -> None:
        """It looks at nothing."""

    def end(self) -> Seen:
        return Seen(self._reasons)


@contextmanager
def frozen() -> Iterator[None]:
    """Everything that is loaded now is left alone by the garbage collector, which closing a session runs.

    It takes ten times as long as all else that an arm does here.
    """
    with tiny():
        gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def tiny(longer: float = 0.0, threads: int = 1) -> Iterator[Any]:
    """A fresh session of the tiny Llama. Every step takes `longer` by that share: the clock is waited for, in earnest.

    A step reaches from the end of the one before it to its own, so that what lies between two steps counts.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # two that wait for each other are slower here, and less even
    session = Transformers().open(CHECKPOINT, "cpu")
    if longer:
        stretch(session.model, longer)
    try:
        yield session
    finally:
        session.close()
        torch.set_num_threads(before)


def stretch(model: Any, longer: float) -> None:
    """Let every forward pass of a model end later, by a share of what it took."""
    last = 0.0

    def begin(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal last
        ids = arguments[0] if arguments else keywords["input_ids"]
        if ids.shape[1] > 1:  # a prompt: what lies before it is no step
            last = time.perf_counter()

    def end(_module: Any, _arguments: Any, _output: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        until = now + longer * (now - last)
        while time.perf_counter() < until:
            pass
        last = time.perf_counter()

    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.register_forward_hook(end)


def quick(**changes: Any) -> Benchmark:
    """Six blocks of a few requests of a few tokens. No drift is too much: other tests run beside this one."""
    settings: dict[str, Any] = {
        "requests": Synthetic(shapes=[Shape(input=12, output=4)]),
        "traffic": InProcess(),
        "loads": [Synchronous(name="single", requests=4)],
        "blocks": 6,
        "reruns": 2,
        "warmup": 1,
        "curve": [1],
        "curve_requests": 4,
    }
    any_drift = {} if "drift" in changes else {"drift": math.inf}
    return Benchmark(**{**settings, **changes}).model_copy(update=any_drift)


def pair(folder: Path, benchmark: Benchmark, arms: Mapping[str, Any] | None = None, **changes: Any) -> PairJob:
    """A job in `folder`: parts in `parts`, the artifact in `out`."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / REQUESTS_FILE).exists():
        benchmark.requests.write(out, CHECKPOINT, needed(benchmark), 0, 1024)
    settings: dict[str, Any] = {
        "out": out,
        "arms": arms or {"baseline": tiny, "variant": tiny},
        "benchmark": benchmark,
        "requests": read(out / REQUESTS_FILE),
        "sender": InProcess().open(CHECKPOINT, Host({}, folder)),
        "watch": Watch,
        "parts": Folder(folder / "parts"),
        "seed": 0,
        "progress": lambda what, done, total: None,
        "fingerprint": {"cpu": "this one"},
    }
    return PairJob(**{**settings, **changes})


def measured(folder: Path, benchmark: Benchmark, arms: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """Measure a job and return where its artifact lies."""
    job = pair(folder, benchmark, arms, **changes)
    measure(job)
    return job.out
