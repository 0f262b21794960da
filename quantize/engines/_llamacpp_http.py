"""llama.cpp's own server as a child process: how it is started, when it is ready, and why it was not."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quantize.child import Child, died, without_secrets
from quantize.engines._llamacpp_client import KNOWN_CAUSES
from quantize.engines._processes import started_with
from quantize.errors import EngineLost, MissingDependency, QuantizeError

__all__ = ["HOST", "LlamaServer"]

HOST = "127.0.0.1"

_POLL_SECONDS = 0.05
#: How long a server that stopped answering may take to end, so that its end can be told apart from its silence.
_LAST_SECONDS = 2.0


class LlamaServer:
    """A server on `options["model"]`: xllamacpp's in the interpreter `python`, or `llama-server` where that is None.

    `options` as `_llamacpp_server.main` has them; with `traffic` among them it asks for a key. Waits until it answers.
    Raises QuantizeError when it ends before, EngineLost when it was killed or is not ready after `load_seconds`.
    """

    def __init__(
        self, python: Path | None, options: dict[str, Any], log: Path, load_seconds: float, answer_seconds: float
    ) -> None:
        self._model = str(options["model"])
        self._answer_seconds = answer_seconds
        self.key: str | None = secrets.token_hex(16) if "traffic" in options else None
        address = log.resolve() / f"llamacpp-server-{uuid.uuid4().hex}.address"
        self.port = _free_port()
        options = {**options, "port": self.port}
        if python is not None:
            script = Path(__file__).with_name("_llamacpp_server.py")
            command: list[str | Path] = [python, "-I", script, address, json.dumps(options)]
            self._mark = str(address)
        else:
            command = _llama_server(options)
            self._mark = str(self.port)
        # By the environment, which only we can read, not by the command line, which everybody can.
        own = {} if self.key is None else {"LLAMA_API_KEY": self.key}
        name = "llamacpp-server.log" if self.key is None else f"llamacpp-service-{self.port}.log"
        environment = {**without_secrets(os.environ), **own}
        self.child = Child(command, log / name, env=environment, what="llama.cpp's server")
        try:
            if python is not None:
                self.port = self._listening(address, load_seconds)
            self._until(self._healthy, load_seconds)
        except BaseException:
            self.close()
            raise
        finally:
            address.unlink(missing_ok=True)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises QuantizeError where it is refused, EngineLost where there is none."""
        reply: dict[str, Any] = json.loads(self._answered("POST", path, body))
        return reply

    def get(self, path: str) -> Any:
        """The JSON behind a path."""
        return json.loads(self._answered("GET", path, None))

    def processes(self) -> list[int]:
        """Its processes, the guard among them, as /proc shows them."""
        return started_with(self._mark)

    def check(self) -> None:
        """Raises QuantizeError where it has ended: an EngineLost where it was killed."""
        if not self.child.running:
            raise died(self.child, KNOWN_CAUSES)

    def close(self) -> None:
        """End the server."""
        self.child.close()

    def _listening(self, address: Path, seconds: float) -> int:
        """The port that the server wrote down once it was up."""
        self._until(address.exists, seconds)
        port = urlsplit(address.read_text(encoding="utf-8").strip()).port
        if port is None:
            raise QuantizeError("llama.cpp's server does not say where it listens.", where=str(self.child.log))
        return port

    def _healthy(self) -> bool:
        try:
            return self._request("GET", "/health", None)[0] == 200
        except OSError:
            return False

    def _until(self, ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise EngineLost(
                    f"llama.cpp's server was not ready within {seconds:.0f} seconds.\n{self.child.tail()}",
                    where=self._model,
                    fix="If the disk is that slow, raise the engine's load_seconds.",
                )
            time.sleep(_POLL_SECONDS)

    def _answered(self, method: str, path: str, body: dict[str, Any] | None) -> str:
        try:
            status, text = self._request(method, path, body)
        except OSError as error:
            deadline = time.monotonic() + _LAST_SECONDS
            while self.child.running and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            try:
                self.check()
            except QuantizeError as death:
                raise death from error
            raise EngineLost(f"llama.cpp's server does not answer {path}: {error}.", where=self._model) from error
        if status != 200:
            raise QuantizeError(f"llama.cpp's server answers {path} with {status}: {text[:500]}", where=self._model)
        return text

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=self._answer_seconds)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
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
    parallel = options["parallel"]
    numbers = {"--ctx-size": options["n_ctx"] * parallel, "--parallel": parallel, "--port": options["port"]}
    numbers |= {"--threads": options["threads"], "--n-gpu-layers": options["gpu_layers"]}
    given = [str(part) for pair in numbers.items() for part in pair]
    if "traffic" in options:
        given += _traffic(options["traffic"])
    if options.get("traffic", {}).get("draft") is not None:
        given += _drafting(options)
    return [found, "--model", options["model"], "--host", HOST, *given]


def _traffic(options: dict[str, Any]) -> list[str]:
    """What `_llamacpp_server` sets for traffic, in the command's own words."""
    named = {
        "--alias": options["name"],
        "--ubatch-size": options["n_ubatch"],
        "--cache-type-k": options["cache"],
        "--cache-type-v": options["cache"],
        "--flash-attn": "on" if options["flash_attention"] else "off",
        "--cache-ram": 0,
        "--fit": "off",
        "--verbosity": 4,
    }
    return [*(str(part) for pair in named.items() for part in pair), "--no-repack", "--no-context-shift", "--metrics"]


def _drafting(options: dict[str, Any]) -> list[str]:
    """The draft's own: a build that does not know these words ends with them before it loads anything."""
    traffic = options["traffic"]
    named = {
        "--spec-type": "draft-simple",
        "--spec-draft-model": traffic["draft"],
        "--spec-draft-n-max": traffic["ahead"],
        "--spec-draft-ngl": options["gpu_layers"],
        "--spec-draft-type-k": traffic["cache"],
        "--spec-draft-type-v": traffic["cache"],
        "--spec-draft-threads": options["threads"],
    }
    return [str(part) for pair in named.items() for part in pair]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
