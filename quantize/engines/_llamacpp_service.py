"""llama.cpp's own server for traffic: what production runs, with nothing kept from one request to the next.

Imported only by functions that open the engine.
"""

from __future__ import annotations

import re
import secrets
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.engines._llamacpp_http import HOST, LlamaServer
from quantize.engines._processes import gpu_bytes, gpu_total, peak_resident, serving_threads
from quantize.errors import EngineLost, QuantizeError
from quantize.gguf_file import GgufFile, read_gguf
from quantize.handed import Host

if TYPE_CHECKING:
    from quantize.engines.llamacpp import LlamaCpp

__all__ = ["LlamaCppService"]

#: Tokens that a draft guesses ahead.
_AHEAD = 3
#: What makes ids mean the same in two files.
_VOCABULARY = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
)
_FIRST = {"prompt": [0], "n_predict": 2, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
#: A key-value cache in the log: MiB of all slots, type of its numbers. A model may have several, a draft has its own.
_CACHE = re.compile(r"llama_kv_cache\S*\s+size =\s*([\d.]+) MiB.*?K \((\w+)\)")
_DEVICE = re.compile(r"llama_kv_cache\S*\s+(\S+) KV buffer size")


class LlamaCppService:
    """See `served.Service`. Each of the engine's slots has a context of its own."""

    def __init__(self, engine: LlamaCpp, model: Path, device: str, host: Host, draft: Path | None) -> None:
        if draft is not None:
            _check_draft(draft, model)
        self._model, self._draft = model, draft
        self._on_gpu = device != "cpu"
        self.slots = engine.slots
        self.body: dict[str, Any] = {"cache_prompt": False}
        self.model = f"quantize-{secrets.token_hex(4)}"
        options: dict[str, Any] = {
            "model": str(model),
            "n_ctx": engine.room(_trained(model)),
            "parallel": engine.slots,
            "gpu_layers": engine.gpu_layers if self._on_gpu else 0,
            "threads": serving_threads(host),
            "traffic": {
                "name": self.model,
                "n_ubatch": engine.n_ubatch,
                "cache": engine.kv_cache,
                "flash_attention": self._on_gpu if engine.flash_attention is None else engine.flash_attention,
                "draft": None if draft is None else str(draft),
                "ahead": _AHEAD,
            },
        }
        python = host.interpreters["llamacpp"] if engine.server == "xllamacpp" else None
        self._server = LlamaServer(python, options, host.log, engine.load_seconds, engine.request_seconds)
        try:
            self.address = f"http://{HOST}:{self._server.port}"
            self.key = self._server.key
            self._log = self._server.child.tail(20000)
            slots = self._server.get("/slots")
            self.context = min(int(slot["n_ctx"]) for slot in slots)
            self._is_as_asked(slots, gpu_layers=options["gpu_layers"])
            self._server.post("/completion", _FIRST)
        except BaseException:
            self.close()
            raise

    def _is_as_asked(self, slots: list[dict[str, Any]], *, gpu_layers: int) -> None:
        """Raises QuantizeError where the server runs, and runs otherwise than it was asked to."""
        if len(slots) != self.slots:
            raise QuantizeError(f"llama.cpp's server has {len(slots)} slots, not {self.slots}.", where=str(self._model))
        if self._draft is not None and not all(slot.get("speculative") for slot in slots):
            raise QuantizeError(
                "llama.cpp's server does not let this model guess ahead for the other.",
                where=str(self._draft),
                fix=f"Its log says why: {self._server.child.log}",
            )
        if gpu_layers and not re.search(r"offloaded [1-9]\d*/\d+ layers to GPU", self._log):
            raise EngineLost(
                "llama.cpp's server was built without GPU support, or found no GPU, and would run on the CPU.",
                where=str(self._server.child.log),
                fix="Put a llama-server built for this GPU on PATH and set the engine's `server: llama-server`, "
                "or set resources.device to cpu.",
            )

    def processes(self) -> set[int]:
        """See `served.Service`."""
        return set(self._server.processes())

    def memory(self) -> dict[str, int]:
        """See `served.Service`: `weights` as they lie in the file, a draft's not among them; its cache is.

        The cache is divided among the slots: no more requests fit, however short they are.
        """
        processes = self.processes()
        held = (gpu_bytes(processes) or gpu_total()) if self._on_gpu else peak_resident(processes)
        found = {
            "weights": self._model.stat().st_size,
            "peak": held or None,
            "kv": round(sum(float(size) for size, _ in _CACHE.findall(self._log)) * 2**20) or None,
            "kv_tokens": self.slots * self.context,
            "slots": self.slots,
        }
        return {name: value for name, value in found.items() if value is not None}

    def facts(self) -> dict[str, str]:
        """See `served.Service`: of the log."""
        patterns = {
            "version": r"^xllamacpp (\S+)|build_info: (\S+)",
            "attention": r"flash_attn\s+= (\w+)",
            "dtype": r"file type\s+= (.+?)\s*$",
            "kernel": r"system_info: .*?\| (.+?)\s*$",
        }
        said = {name: re.search(pattern, self._log, re.MULTILINE) for name, pattern in patterns.items()}
        found = {name: next(filter(None, match.groups())) for name, match in said.items() if match}
        if "attention" in found:
            found["attention"] = f"flash attention {found['attention']}"
        if "kernel" in found:
            found["kernel"] = " ".join(re.findall(r"(\w+) = 1", found["kernel"]))
        types = {kind for _, kind in _CACHE.findall(self._log)}
        devices = sorted(set(_DEVICE.findall(self._log)))
        more = {"kv_dtype": ", ".join(sorted(types)), "devices": ", ".join(devices)}
        return {**found, **{name: value for name, value in more.items() if value}}

    def check(self) -> None:
        """See `served.Service`."""
        self._server.check()

    def close(self) -> None:
        """End the server."""
        self._server.close()


def _check_draft(draft: Path, model: Path) -> None:
    """Raises QuantizeError where a draft has other tokens than the model: it guesses ids, which must mean the same."""
    own, others = _header(draft).metadata, _header(model).metadata
    differing = [name for name in _VOCABULARY if own.get(name) != others.get(name)]
    if differing:
        raise QuantizeError(
            f"the draft's tokens are not the model's: the files differ in {', '.join(differing)}.",
            where=str(draft),
            fix="Take a draft of the same family, with the same tokenizer.",
        )


def _trained(model: Path) -> int | None:
    """The context that the model was trained on, where it says."""
    context = _header(model).hyperparameter("context_length")
    return None if context is None else int(context)


@cache
def _header(model: Path) -> GgufFile:
    """A benchmark starts a server many times, and reading takes seconds."""
    return read_gguf(model)
