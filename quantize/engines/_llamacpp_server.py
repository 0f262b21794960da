"""`python -I _llamacpp_server.py ADDRESS OPTIONS`: llama.cpp's own server, as the package xllamacpp carries it.

Runs in the environment `llamacpp`, as a file. Writes the address that it listens on into the file ADDRESS, once it
does, and serves until it is ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(address: Path, options: dict[str, Any]) -> None:
    """`options`: model, n_ctx (of one request), parallel, gpu_layers, threads, port."""
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
    server = xllamacpp.Server(wanted)
    written = address.with_suffix(".new")
    written.write_text(server.listening_address, encoding="utf-8")
    written.replace(address)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
