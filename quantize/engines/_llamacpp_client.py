"""The other end of `_llamacpp_process`: starts it, asks it, and says what became of it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import child
from quantize.child import Child, died, without_secrets
from quantize.child_socket import ChildSocket
from quantize.errors import EngineLost, QuantizeError

if TYPE_CHECKING:
    import torch

__all__ = ["KNOWN_CAUSES", "Client"]

_NO_GPU = r"without GPU support"

#: What llama.cpp's log shows -> what it means. See `child.died`.
KNOWN_CAUSES = {
    r"unknown model architecture": (
        "this llama.cpp does not know the model's architecture: quantize it with another method, or let the "
        "environment have a newer llama.cpp"
    ),
    r"not within the file bounds|corrupted or incomplete|failed to read tensor|unexpectedly reached end": (
        "the file is cut short or damaged: make it again, or copy it again"
    ),
    r"invalid magic|gguf_init_from|key not found in model|error loading model hyperparameters": (
        "the file is no complete GGUF model: make it again"
    ),
    r"unknown pre-tokenizer type": (
        "this llama.cpp does not know the model's tokenizer: let the environment have a newer llama.cpp"
    ),
    _NO_GPU: (
        "set resources.device to cpu, or let the environment have a llama-cpp-python that was built with CUDA "
        "(CMAKE_ARGS=-DGGML_CUDA=on)"
    ),
}

_END_SECONDS = 10.0


class Client:
    """A loaded model in a process of its own; `facts` are what `Model.facts` says.

    Raises QuantizeError when it does not load, EngineLost when it does not within `seconds`; and when the process ends
    while it is asked.
    """

    def __init__(self, python: Path, options: dict[str, Any], log: Path, seconds: float, answer_seconds: float) -> None:
        self._answer_seconds = answer_seconds
        self._where = str(options["model"])
        self._connection: socket.socket | None = None
        script = Path(__file__).with_name("_llamacpp_process.py")
        with closing(ChildSocket()) as meeting:
            command: list[str | Path] = [python, "-I", script, meeting.address, json.dumps(options)]
            self._child = Child(command, log, env=without_secrets(os.environ), what="llama.cpp")
            try:
                self._connection = self._accept(meeting, seconds)
                self._stream: Any = self._connection.makefile("rwb", buffering=1 << 20)
                self.facts: dict[str, Any] = self._line()["facts"]
            except BaseException:
                self.close()
                raise

    def _accept(self, meeting: ChildSocket, seconds: float) -> socket.socket:
        connection = meeting.accept(self._child, seconds)
        if connection is not None:
            connection.settimeout(self._answer_seconds)
            return connection
        if not self._child.running:
            raise died(self._child, KNOWN_CAUSES)
        raise EngineLost(
            f"llama.cpp did not load the model within {seconds:.0f} seconds and was stopped.\n{self._child.tail()}",
            where=self._where,
            fix="If the disk is that slow, raise the engine's load_seconds.",
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its reply."""
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
        except OSError:
            raise self._ended() from None
        return self._line()

    def read(self, windows: list[list[int]], *, embeddings: bool = False, last: int = 0) -> Iterator[torch.Tensor]:
        """Float32 outputs (tokens, vocabulary or embedding) of each window's last `last` tokens (0: all)."""
        import numpy as np
        import torch

        reply = self.ask({"do": "read", "windows": windows, "embeddings": embeddings, "last": last})
        for shape in reply["blocks"]:
            block = np.empty(shape, np.float32)
            view = memoryview(block.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
            done = 0
            while done < len(view):
                try:
                    count = self._stream.readinto(view[done:])
                except OSError:
                    count = 0
                if not count:
                    raise self._ended()
                done += count
            yield torch.from_numpy(block)

    def _line(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            text = f"{self._child.tail(400)}\n{reply['error']}"
            causes = {**KNOWN_CAUSES, **child.KNOWN_CAUSES}
            pattern = next((pattern for pattern in causes if re.search(pattern, text)), "")
            sentence = f"{reply['error']}{': ' + causes[pattern] if pattern else ''}."
            # Of memory, or a build without GPUs, the file is not to blame.
            kind = EngineLost if pattern in child.KNOWN_CAUSES or pattern == _NO_GPU else QuantizeError
            raise kind(f"{sentence}\n{self._child.tail()}", where=self._where)
        return reply

    def _ended(self) -> QuantizeError:
        """The error of a process that is gone in the middle of an answer."""
        if not self._child.gone(_END_SECONDS):
            self._child.close()
            return EngineLost(
                f"llama.cpp did not answer within {self._answer_seconds:.0f} seconds and was stopped.",
                where=self._where,
                fix="If the machine is that slow, raise the engine's request_seconds.",
            )
        return died(self._child, KNOWN_CAUSES)

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            with suppress(OSError):  # what was not sent is not sent
                self._stream.close()
            self._connection.close()
        self._child.close()
