"""`python -m quantize.forkserver FD`: a process that has imported the libraries, and forks a worker for each stage.

Importing torch and transformers takes longer than many a stage, and every stage is a process of its own. So a run's
driver starts one such process, which imports them once and then waits; a worker forked from it begins at once, shares
the libraries' memory, and in everything else is the process that `python -m quantize.worker` is: its own session, its
own device, its own memory, gone when it ends.

A fork of a process that has talked to a GPU cannot use it. What was imported must therefore not have loaded the GPU
driver's library nor left a Python thread behind; this is looked at after the imports, and where it has happened the
run's driver is told so and starts workers in the plain way.

The driver sends a message per worker: the path of its STAGE.json and variables of its own (which GPUs it may see), with
the descriptors of its output, its events and its status, and those that it only has to hold (locks). To the status go
the worker's process id and, when it has ended, its exit status, a line each. When the driver is gone this process ends;
its workers go on and commit what they make.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantize import worker

__all__ = ["CANNOT", "READY", "main"]

READY, CANNOT = b"ready", b"cannot"
#: What nearly every stage imports. llm-compressor is not among it: it changes transformers when it is imported.
_IMPORTED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "safetensors.torch",
    "pyarrow.parquet",
    "quantize.stages",
)
_MESSAGE_BYTES, _DESCRIPTORS = 64 * 1024, 64
_MAPS = Path("/proc/self/maps")
_GPU_DRIVERS = ("libcuda.so", "libamdhip64.so")


class Server:
    """Forks workers on request and tells how they ended."""

    def __init__(self, driver: socket.socket) -> None:
        self._driver = driver
        self._ends = selectors.DefaultSelector()
        self._ends.register(driver, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Until the driver is gone."""
        while True:
            for key, _ in self._ends.select():
                if key.data is not None:
                    self._tell_end(key.fd, *key.data)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._driver, _MESSAGE_BYTES, _DESCRIPTORS)
        if not message:
            return False
        output, events, status, *_held = descriptors
        pid = os.fork()
        if pid == 0:
            self._become(json.loads(message), output, events, status)
        for descriptor in descriptors:
            if descriptor != status:
                os.close(descriptor)
        _write(status, f"{pid}\n")
        self._ends.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
        return True

    def _become(self, asked: dict[str, Any], output: int, events: int, status: int) -> None:
        """In the child: leave everything of the server's behind, run the stage, exit as its process would."""
        os.setsid()
        for key in list(self._ends.get_map().values()):
            os.close(key.fd)
            if key.data is not None:
                os.close(key.data[1])
        self._ends.close()
        os.close(status)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(asked["variables"])
        raise SystemExit(worker.main([asked["job"]], events=events))

    def _tell_end(self, pidfd: int, pid: int, status: int) -> None:
        self._ends.unregister(pidfd)
        os.close(pidfd)
        _, ended = os.waitpid(pid, 0)
        _write(status, f"{os.waitstatus_to_exitcode(ended)}\n")
        os.close(status)


def _write(status: int, line: str) -> None:
    """A driver that is gone is no reason to stop."""
    with suppress(OSError):
        os.write(status, line.encode())


def _may_fork() -> bool:
    """Whether a fork of this process is as good as a new one."""
    mapped = _MAPS.read_text(encoding="utf-8", errors="replace")
    return threading.active_count() == 1 and not any(library in mapped for library in _GPU_DRIVERS)


def main(arguments: list[str]) -> int:
    """Entry point: import, say whether this process may fork, serve."""
    driver = socket.socket(fileno=int(arguments[0]))
    # A Ctrl-C is the driver's, which asks the worker to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _IMPORTED:
        # A worker that needs what is missing says so in its own words.
        with suppress(ImportError):
            importlib.import_module(name)
    if not _may_fork():
        driver.send(CANNOT)
        return 0
    # What lives now lives on: not looked at by workers' collectors, it stays shared.
    gc.collect()
    gc.freeze()
    driver.send(READY)
    Server(driver).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
