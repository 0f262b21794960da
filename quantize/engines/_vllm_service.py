"""vLLM's server for traffic: what production runs, with nothing kept from one request to the next.

Imported only by functions that open the engine.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.engines._processes import gpu_bytes, gpu_total, serving_threads
from quantize.engines._vllm_client import COMPLETIONS, Client
from quantize.engines._vllm_server import HOST
from quantize.engines._vllm_start import start_server
from quantize.handed import Host

if TYPE_CHECKING:
    from quantize.engines.vllm import Vllm

__all__ = ["VllmService"]

#: Tokens that a draft guesses ahead.
_AHEAD = 3
#: One short request that is certain to be answered in full.
_FIRST = {"prompt": [0], "max_tokens": 2, "temperature": 0, "ignore_eos": True}

#: What the server says of itself in its log (a regular expression) -> the fact.
_FACTS = {
    "version": r"Initializing a V1 LLM engine \(v(\S+)\)",
    "dtype": r"\bdtype=torch\.(\w+)",
    "kv_dtype": r"\bkv_cache_dtype=(\w+)",
    "attention": r"Using (\w+) (?:attention )?backend",
    "layout": r"Using (\w+) KV cache layout",
}
_KERNEL = r"(?:Selected|Using) (\w*Kernel) for ([\w-]+)"


class VllmService:
    """See `served.Service`. `config` is the checkpoint's own. Prefixes are not cached, whatever the engine says."""

    def __init__(
        self, engine: Vllm, checkpoint: Path, config: dict[str, Any], device: str, host: Host, draft: Path | None
    ) -> None:
        self.context, _ = engine.context(config)
        self.slots = engine.max_num_seqs
        self.body: dict[str, Any] = {}
        self._on_gpu = device != "cpu"
        self._config = config
        self._kv_gib = engine.kv_cache_gib
        more = ["--no-enable-prefix-caching"]
        if draft is not None:
            guess = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": _AHEAD}
            more += ["--speculative-config", json.dumps(guess)]
        if device == "cpu":
            host = replace(host, threads=serving_threads(host))
        self._server = start_server(engine, checkpoint, config, device, host, length=self.context, more=tuple(more))
        self.address = f"http://{HOST}:{self._server.port}"
        self.model, self.key = self._server.name, self._server.key
        client = Client(self._server, 1, engine.request_seconds)
        try:
            self._server.ready(engine.load_seconds)
            # Ready only says that the weights are loaded. A kernel that this machine lacks shows with the first pass.
            client.ask(COMPLETIONS, _FIRST)
            # Later the log may have grown past its beginning.
            self._log = self._server.child.tail(5000)
        except BaseException:
            self.close()
            raise
        finally:
            client.close()

    def processes(self) -> set[int]:
        """See `served.Service`: the guard, the server, the engine's core and its workers."""
        return set(self._server.processes())

    def memory(self) -> dict[str, int]:
        """See `served.Service`. On CPUs the peak is of the process with the weights; what they take is not said."""
        tokens = _numbers(r"KV cache size: ([\d,]+) tokens", self._log)
        weights = _numbers(r"Model loading took ([\d.]+) GiB", self._log)
        held = (gpu_bytes(self.processes()) or gpu_total()) if self._on_gpu else self._server.peak()
        found = {
            "weights": round(weights[-1] * 2**30) if weights else None,
            "peak": held or None,
            "kv": self._kv_bytes(tokens[-1] if tokens else None),
            "kv_tokens": int(tokens[-1]) if tokens else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _kv_bytes(self, tokens: float | None) -> int | None:
        """Bytes of the key-value cache: as set or said, else of the model's shape."""
        if not self._on_gpu:
            return self._kv_gib * 2**30
        said = _numbers(r"Available KV cache memory: ([\d.]+) GiB", self._log)
        if said:
            return round(sum(said) * 2**30)
        shape = self._config
        heads = shape.get("num_key_value_heads") or shape.get("num_attention_heads")
        if tokens is None or not heads or "num_hidden_layers" not in shape:
            return None
        width = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        wide = {"float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}.get(self.facts().get("kv_dtype", ""), 2)
        return int(tokens) * 2 * int(shape["num_hidden_layers"]) * int(heads) * int(width) * wide

    def facts(self) -> dict[str, str]:
        """See `served.Service`: of the log; the attention's backend is named there on GPUs only."""
        found = {name: said[1] for name, pattern in _FACTS.items() if (said := re.search(pattern, self._log))}
        if found.get("kv_dtype") == "auto":
            found["kv_dtype"] = found.get("dtype", "auto")
        kernels = sorted({f"{kernel} ({layers})" for kernel, layers in re.findall(_KERNEL, self._log)})
        if kernels:
            found["kernel"] = ", ".join(kernels)
        if re.search(r"enforce_eager=True", self._log):
            found["graphs"] = "eager"
        else:
            found["graphs"] = "cuda graphs" if "Graph capturing finished" in self._log else "compiled"
        return found

    def check(self) -> None:
        """See `served.Service`."""
        self._server.check()

    def close(self) -> None:
        """End the server."""
        self._server.close()


def _numbers(pattern: str, text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(pattern, text)]
