"""llama.cpp's own server, asked what it makes of texts, conversations and ends of answers.

What the evals ask of the library goes past the server's tokenizer, template and stopping rules. Those are what
production meets, so they are asked of the server itself.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from quantize.child import Child, died, without_secrets
from quantize.engines._llamacpp_client import KNOWN_CAUSES
from quantize.errors import EngineLost, MissingDependency, QuantizeError

if TYPE_CHECKING:
    from quantize.engines.llamacpp import LlamaCpp

__all__ = ["Native"]

_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 300.0
#: Added to a token's logit so that it is the likeliest.
_BIAS = 1e5


class Native:
    """A server on `options["model"]`: xllamacpp's in the interpreter `python`, or `llama-server` where that is None."""

    def __init__(self, python: Path | None, options: dict[str, Any], log: Path, engine: LlamaCpp) -> None:
        self._model = str(options["model"])
        address = log.resolve() / f"llamacpp-server-{uuid.uuid4().hex}.address"
        port = _free_port()
        # Of numbers it is asked none, and the GPU has the model already.
        serving = {**options, "gpu_layers": 0, "parallel": 1, "port": port}
        if python is not None:
            script = Path(__file__).with_name("_llamacpp_server.py")
            command: list[str | Path] = [python, "-I", script, address, json.dumps(serving)]
        else:
            command = _llama_server(serving)
        self._child = Child(
            command, log / "llamacpp-server.log", env=without_secrets(os.environ), what="llama.cpp's server"
        )
        try:
            self._port = port if python is None else self._listening(address, engine.load_seconds)
            self._wait(engine.load_seconds)
        except BaseException:
            self.close()
            raise
        finally:
            address.unlink(missing_ok=True)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a completion's prompt."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", asked)["tokens"]]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation, up to where the answer begins."""
        return self.tokenize(self._post("/apply-template", {"messages": messages})["prompt"])

    def stops(self, ids: list[int], token: int) -> bool:
        """Whether an answer ends where its first token is `token`."""
        asked = {
            "prompt": ids,
            "n_predict": 2,
            "temperature": 0.0,
            "logit_bias": [[token, _BIAS]],
            "cache_prompt": False,
        }
        reply = self._post("/completion", asked)
        return bool(reply["stop_type"] == "eos" and reply["tokens_predicted"] == 1)

    def close(self) -> None:
        """End the server."""
        self._child.close()

    def _listening(self, address: Path, seconds: float) -> int:
        """The port that the server wrote down once it was up."""
        self._until(address.exists, seconds)
        port = urlsplit(address.read_text(encoding="utf-8").strip()).port
        if port is None:
            raise QuantizeError("llama.cpp's server does not say where it listens.", where=str(self._child.log))
        return port

    def _wait(self, seconds: float) -> None:
        def healthy() -> bool:
            try:
                return self._request("GET", "/health", None)[0] == 200
            except OSError:
                return False

        self._until(healthy, seconds)

    def _until(self, ready: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if not self._child.running:
                raise died(self._child, KNOWN_CAUSES)
            if time.monotonic() > deadline:
                raise EngineLost(
                    f"llama.cpp's server was not ready within {seconds:.0f} seconds.\n{self._child.tail()}",
                    where=self._model,
                    fix="If the disk is that slow, raise the engine's load_seconds.",
                )
            time.sleep(_POLL_SECONDS)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            status, text = self._request("POST", path, body)
        except OSError as error:
            if not self._child.running:
                raise died(self._child, KNOWN_CAUSES) from error
            raise EngineLost(f"llama.cpp's server does not answer {path}: {error}.", where=self._model) from error
        if status != 200:
            raise QuantizeError(f"llama.cpp's server answers {path} with {status}: {text[:500]}", where=self._model)
        reply: dict[str, Any] = json.loads(text)
        return reply

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()


def _llama_server(options: dict[str, Any]) -> list[str | Path]:
    """The command of llama.cpp's own build."""
    found = shutil.which("llama-server")
    if found is None:
        raise MissingDependency(
            "there is no llama-server on PATH.", fix="Install llama.cpp, or leave `server` at xllamacpp."
        )
    numbers = {"--ctx-size": options["n_ctx"], "--parallel": 1, "--port": options["port"]}
    numbers |= {"--threads": options["threads"], "--n-gpu-layers": options["gpu_layers"]}
    given = [str(part) for pair in numbers.items() for part in pair]
    return [found, "--model", options["model"], "--host", "127.0.0.1", *given]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
