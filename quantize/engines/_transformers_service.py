"""The server over transformers (`_streaming`) as a child process: how it is started, when it is ready, why it was not.

Imported only by functions that open the engine.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.child import Child, died, link_to_package, without_secrets
from quantize.engines._processes import serving_threads, started_with
from quantize.errors import EngineLost, QuantizeError
from quantize.handed import Host

if TYPE_CHECKING:
    from quantize.engines.transformers import Transformers

__all__ = ["TransformersService"]

_HOST = "127.0.0.1"
#: Where `_streaming` looks for its key. It is not imported from there: that would import torch.
_KEY_VARIABLE = "QUANTIZE_SERVER_KEY"
_POLL_SECONDS = 0.05
#: How long the server may take to say what it holds.
_STATE_SECONDS = 30.0


class TransformersService:
    """See `served.Service`. It compares variants and promises nothing: no engine that somebody serves with."""

    slots = 1

    def __init__(self, engine: Transformers, checkpoint: Path, device: str, host: Host) -> None:
        # Nobody else's server has this name and key.
        self.model, self.key = f"quantize-{secrets.token_hex(4)}", secrets.token_hex(16)
        self.body: dict[str, Any] = {}
        if device == "cpu":
            host = replace(host, threads=serving_threads(host))
        folder = host.log.resolve()
        self._ready = folder / f"transformers-{secrets.token_hex(8)}.ready"
        options = {
            "checkpoint": str(checkpoint.absolute()),
            "device": device,
            "engine": engine.model_dump(mode="json", by_alias=True),
            "threads": host.threads,
            "name": self.model,
        }
        # This interpreter: where the engine has an environment of its own, the stage itself runs in it.
        command: list[str | Path] = [
            sys.executable,
            "-P",
            "-m",
            "quantize.engines._streaming",
            self._ready,
            json.dumps(options),
        ]
        log = folder / f"{self._ready.stem}.log"
        self._child = Child(command, log, env=self._environment(folder, host), what="the server over transformers")
        try:
            said = self._said(engine.load_seconds)
            self.address, self.context = f"http://{_HOST}:{said['port']}", int(said["context"])
            self._port = int(said["port"])
        except BaseException:
            self.close()
            raise

    def _environment(self, folder: Path, host: Host) -> dict[str, str]:
        """Ours without what lets its holder in somewhere; the package is found there, whatever the folder."""
        threads = {} if host.threads is None else {"OMP_NUM_THREADS": str(host.threads)}
        own = {"PYTHONPATH": str(link_to_package(folder)), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        return {**without_secrets(os.environ), **own, **threads, _KEY_VARIABLE: str(self.key)}

    def _said(self, seconds: float) -> dict[str, Any]:
        """What the server wrote when it was ready. Raises its own error where it never will be."""
        deadline = time.monotonic() + seconds
        try:
            while not self._ready.exists():
                if not self._child.running and not self._ready.exists():
                    raise died(self._child)
                if time.monotonic() > deadline:
                    self._child.close()
                    raise EngineLost(
                        f"the server over transformers was not ready within {seconds:.0f} seconds and was stopped.\n"
                        f"{self._child.tail()}",
                        where=str(self._child.log),
                        fix="If it was still loading, raise the engine's load_seconds.",
                    )
                time.sleep(_POLL_SECONDS)
            said: dict[str, Any] = json.loads(self._ready.read_text(encoding="utf-8"))
        finally:
            self._ready.unlink(missing_ok=True)
        if "error" in said:
            kind = EngineLost if said["lost"] else QuantizeError
            raise kind(said["error"], where=said["where"], fix=said["fix"])
        return said

    def processes(self) -> set[int]:
        """See `served.Service`: the guard and the server."""
        return set(started_with(str(self._ready)))

    def memory(self) -> dict[str, int]:
        """See `served.Service`. No cache is reserved: it grows with each answer, and is counted in the peak."""
        return {name: int(size) for name, size in self._state()["memory"].items()}

    def facts(self) -> dict[str, str]:
        """See `served.Service`."""
        return {name: str(fact) for name, fact in self._state()["facts"].items()}

    def _state(self) -> dict[str, Any]:
        """What the server says of itself. Raises QuantizeError where it has ended, EngineLost where it is silent."""
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_STATE_SECONDS)
        try:
            connection.request("GET", "/state", headers={"Authorization": f"Bearer {self.key}"})
            state: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise EngineLost(
                f"the server over transformers does not answer: {error}\n{self._child.tail()}",
                where=str(self._child.log),
            ) from error
        finally:
            connection.close()
        return state

    def check(self) -> None:
        """See `served.Service`: an EngineLost where it was killed."""
        if not self._child.running:
            raise died(self._child)

    def close(self) -> None:
        """End the server."""
        self._child.close()
