"""`python -I _llamacpp_server.py ADDRESS OPTIONS`: llama.cpp's own server, as the package xllamacpp carries it.

Runs in the environment `llamacpp`, as a file. Writes the address that it listens on into the file ADDRESS, once it
does, and serves until it is ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

#: How much the server says: what it reserved and chose, and nothing that comes with every token.
_VERBOSITY = 4


def main(address: Path, options: dict[str, Any]) -> None:
    """`options`: model, n_ctx (of one request), parallel, gpu_layers, threads, port; `traffic` as `_prepare` has it."""
    import xllamacpp  # type: ignore[import-not-found, unused-ignore]

    wanted = xllamacpp.CommonParams()
    wanted.model.path = options["model"]
    wanted.n_ctx = options["n_ctx"] * options["parallel"]
    wanted.n_parallel = options["parallel"]
    wanted.n_gpu_layers = options["gpu_layers"]
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = options["threads"]
    wanted.no_extra_bufts = True  # as the library is asked
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = options["port"]
    if "traffic" in options:
        print(f"xllamacpp {xllamacpp.__version__}", flush=True)  # noqa: T201  into the log
        _prepare(xllamacpp, wanted, options["traffic"], options)
    server = xllamacpp.Server(wanted)
    written = address.with_suffix(".new")
    written.write_text(server.listening_address, encoding="utf-8")
    written.replace(address)
    while True:
        time.sleep(3600)


def _prepare(xllamacpp: Any, wanted: Any, traffic: dict[str, Any], options: dict[str, Any]) -> None:
    """Serve as the engine says. `traffic`: name, n_ubatch, cache, flash_attention, and draft with how far `ahead`.

    Nothing is kept from one request for the next, and what was asked for is not fitted to what there is.
    """
    cache = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{traffic['cache'].upper()}")
    flash = "ENABLED" if traffic["flash_attention"] else "DISABLED"
    wanted.model_alias = {traffic["name"]}
    wanted.api_keys = [os.environ["LLAMA_API_KEY"]]
    wanted.n_ubatch = traffic["n_ubatch"]
    wanted.n_batch = max(wanted.n_batch, traffic["n_ubatch"])
    wanted.cache_type_k = wanted.cache_type_v = cache
    wanted.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    wanted.ctx_shift = wanted.fit_params = False
    wanted.cache_ram_mib = 0
    wanted.cont_batching = wanted.endpoint_metrics = True
    wanted.verbosity = _VERBOSITY
    if traffic["draft"] is not None:
        wanted.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft = wanted.speculative.draft
        draft.mparams.path = traffic["draft"]
        draft.n_max = traffic["ahead"]
        draft.n_gpu_layers = options["gpu_layers"]
        draft.cache_type_k = draft.cache_type_v = cache
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = options["threads"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
