"""A GGUF model that answers: distributions from llama.cpp's library, the rest from its server.

Imported only by functions that open the engine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from quantize.engines._llamacpp_client import Client
from quantize.engines._llamacpp_head import Head
from quantize.engines._llamacpp_native import Native
from quantize.engines._llamacpp_rows import LazyLogits
from quantize.errors import QuantizeError
from quantize.handed import HeadParameters, Host, Top

if TYPE_CHECKING:
    from quantize.engines.llamacpp import LlamaCpp

__all__ = ["LlamaCppSession"]

#: The greatest context where the engine does not name one: a key-value cache of what today's models were trained on
#: would fill the memory before the first question.
_CONTEXT = 4096
#: Sequences that a batch may have; llama.cpp has room for no more.
_SEQUENCES = 256
#: Logits that are held at a time.
_OUTPUT_BYTES = 1 << 28
#: `general.file_type` of files whose matrices are not quantized -> dtype of computation.
_UNQUANTIZED = {0: "float32", 1: "float16", 32: "bfloat16"}


class LlamaCppSession:
    """See `handed.Session`."""

    distributions: ClassVar[Literal["full", "top"]] = "full"

    def __init__(self, engine: LlamaCpp, checkpoint: Path, device: str, host: Host) -> None:
        from transformers import AutoTokenizer

        self._checkpoint = checkpoint
        self._on_gpu = device != "cpu"
        self._lm: Any = None
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        self._options = {
            "model": str(checkpoint / "model.gguf"),
            "n_ctx": engine.n_ctx or 0,
            "n_ctx_most": _CONTEXT,
            "n_ubatch": engine.n_ubatch,
            "sequences": _SEQUENCES,
            "outputs_bytes": _OUTPUT_BYTES,
            "cache": engine.kv_cache,
            "flash_attention": self._on_gpu if engine.flash_attention is None else engine.flash_attention,
            "gpu_layers": engine.gpu_layers if self._on_gpu else 0,
            "threads": host.threads or len(os.sched_getaffinity(0)),
        }
        self._engine, self._host = engine, host
        python = host.interpreters["llamacpp"]
        self._client = Client(
            python, self._options, host.log / "llamacpp.log", engine.load_seconds, engine.request_seconds
        )
        self._facts = self._client.facts
        self._lazy: LazyLogits | None = None  # see `hidden`

    @property
    def device(self) -> str:
        """Device class and name."""
        if self._on_gpu and torch.cuda.is_available():
            return f"cuda {torch.cuda.get_device_name()}"
        return f"{'cuda' if self._on_gpu else 'cpu'} {platform.processor() or platform.machine()}"

    @property
    def arithmetic(self) -> str:
        """The dtype of computation: float16 where weights are quantized, whose products llama.cpp rounds further."""
        return _UNQUANTIZED.get(self._facts["file_type"], "float16")

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        return int(self._facts["n_vocab"])

    def lm(self) -> Any:
        """The model as lm-eval sees it; requests that begin alike pay for that once."""
        if self._lm is None:
            from quantize.engines._asked import AskedLM
            from quantize.engines._llamacpp_asked import LlamaCppAsked

            asked = LlamaCppAsked(self._client, self._tokenizer, self._engine.n_ubatch)
            self._lm = AskedLM(asked, self._tokenizer)
        return self._lm

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without special tokens, by the checkpoint's tokenizer."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def log_probabilities(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """See `handed.Session`."""
        logits = next(self._client.read([self._fitting(ids)], last=len(kept))).double()
        lost = ~logits.isfinite().all(1)
        chosen = logits.log_softmax(1).gather(1, kept)
        chosen[lost] = torch.nan
        return chosen

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Float32 logits (rows, tokens, vocabulary)."""
        return torch.stack(list(self._client.read([self._fitting(row) for row in batch])))

    def hidden(self, windows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What `head` is given: final hidden states, of a model whose matrices are not quantized.

        llama.cpp rounds what a quantized head is given, in a way of its own, so there the answer is what llama.cpp
        itself says: a "hidden state" is the number of a position, and `head` asks for its logits. The numbers hold
        until the next call.
        """
        ids = [self._fitting(window) for window in windows]
        if self._facts["file_type"] in _UNQUANTIZED:
            states = list(self._client.read(ids, embeddings=True))
            self._head.check(states[0][-1:], next(self._client.read(ids[:1], last=1)), self.arithmetic)
            return states
        self._lazy = LazyLogits(self._client, ids)
        return self._lazy.numbers()

    def head(self, hidden: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """See `handed.Session` and `hidden`."""
        if self._lazy is None:
            return self._head.logits(hidden, start, stop)
        return self._lazy.logits(hidden, start, stop)

    def head_parameters(self) -> HeadParameters:
        """See `handed.Session`. The names are those under which Hugging Face checkpoints hold the matrix."""
        return self._head.parameters

    def top(self, windows: Sequence[torch.Tensor], k: int) -> list[Top]:
        """See `handed.Session`. A row whose logits are not finite is NaN."""
        found = []
        for ids, block in zip(windows, self._client.read([self._fitting(window) for window in windows]), strict=True):
            exact = block[:-1].double()
            exact[~exact.isfinite().all(1)] = torch.nan
            exact = exact.log_softmax(1)
            best = exact.topk(k)
            found.append(Top(exact.gather(1, ids[1:].unsqueeze(1))[:, 0], best.indices, best.values))
        return found

    @cached_property
    def _head(self) -> Head:
        return Head(self._checkpoint, self.vocabulary)

    def _fitting(self, window: torch.Tensor) -> list[int]:
        """A window's ids. Raises QuantizeError when the context is too short for them."""
        if len(window) > self._facts["n_ctx"]:
            raise QuantizeError(
                f"a text of {len(window)} tokens is asked for, and the context has {self._facts['n_ctx']}.",
                fix="Set the engine's n_ctx, or let the text eval have a shorter window.",
            )
        ids: list[int] = window.tolist()
        return ids

    def tokenize(self, text: str) -> list[int]:
        """The ids that the server makes of a prompt."""
        return self._native.tokenize(text)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids that the server makes of a conversation."""
        return self._native.chat(messages)

    def stops(self, ids: list[int], token: int) -> bool:
        """Whether the server ends its answer to `ids` where the model says `token`."""
        return self._native.stops(ids, token)

    @cached_property
    def _native(self) -> Native:
        python = self._host.interpreters["llamacpp"] if self._engine.server == "xllamacpp" else None
        return Native(python, {**self._options, "n_ctx": self._facts["n_ctx"]}, self._host.log, self._engine)

    def memory(self) -> dict[str, int]:
        """Bytes: the weights, and the peak of the process that has them, resident or on the GPU."""
        pid = self._facts["pid"]
        found = {"weights": int(self._facts["size"])}
        peak = _gpu_bytes(pid) if self._on_gpu else _peak_bytes(pid)
        return found if peak is None else {**found, "peak": peak}

    def close(self) -> None:
        """End the processes."""
        self._lm = self._lazy = None
        self._client.close()
        if "_native" in self.__dict__:
            self._native.close()


def _peak_bytes(pid: int) -> int | None:
    """The most memory that a process had resident, where the system says."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) * 1024 if peak else None


def _gpu_bytes(pid: int) -> int | None:
    """The GPU memory of a process, where the driver says. llama.cpp allocates at the start, so now is the peak."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            processes = [one for device in devices for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return sum(one.usedGpuMemory or 0 for one in processes if one.pid == pid) or None
