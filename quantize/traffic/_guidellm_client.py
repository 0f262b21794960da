"""The process that `_guidellm_child.py` runs in: started once, told one load after another."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantize.child import Child, died, without_secrets
from quantize.child_socket import ChildSocket
from quantize.errors import EngineLost, QuantizeError

__all__ = ["Client", "variables"]

#: Importing GuideLLM takes some ten seconds on a busy machine.
_READY_SECONDS = 300.0
_END_SECONDS = 5.0
#: GuideLLM reads its settings from variables of this prefix; the user's own must not change what is measured. Nor must
#: a proxy stand before a server of this machine.
_UNWANTED = re.compile(r"^GUIDELLM__|_proxy$", re.IGNORECASE)
#: One worker, forked from a server that has everything imported, and looked after more often than GuideLLM would.
_SETTINGS = {
    "GUIDELLM__MP_CONTEXT_TYPE": "forkserver",
    "GUIDELLM__MAX_WORKER_PROCESSES": "1",
    "GUIDELLM__MP_POLL_INTERVAL": "0.02",
    "GUIDELLM__SCHEDULER_START_DELAY_NON_DISTRIBUTED": "0.3",
    "GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def variables(own: Mapping[str, str]) -> dict[str, str]:
    """GuideLLM's environment variables: `own` without secrets, settings and proxies, and what it must have."""
    kept = {name: value for name, value in without_secrets(own).items() if not _UNWANTED.search(name)}
    return {**kept, **_SETTINGS}


class Client:
    """GuideLLM in a process of its own. `ask` raises EngineLost or QuantizeError when it ends or does not answer."""

    def __init__(self, python: Path, log: Path) -> None:
        self._log = log
        self._stream: Any = None
        self._connection: socket.socket | None = None
        self._meeting = ChildSocket()
        try:
            script = Path(__file__).with_name("_guidellm_child.py")
            command: list[str | Path] = [python, "-I", script, self._meeting.address]
            self._child = Child(command, log, env=variables(os.environ), what="GuideLLM")
        except BaseException:
            self._meeting.close()
            raise

    def ask(self, command: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a command and return its reply, which must come within `seconds`."""
        if self._connection is None:
            self._connection = self._accept()
            self._stream = self._connection.makefile("rwb")
            self._line(_READY_SECONDS)
        try:
            self._stream.write(json.dumps(command).encode() + b"\n")
            self._stream.flush()
        except OSError:
            raise self._ended(seconds) from None
        return self._line(seconds)

    def _accept(self) -> socket.socket:
        connection = self._meeting.accept(self._child, _READY_SECONDS)
        if connection is None:
            raise self._ended(_READY_SECONDS)
        self._meeting.close()
        return connection

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.settimeout(seconds)
        try:
            line = self._stream.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._ended(seconds)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise QuantizeError(f"GuideLLM failed: {reply['error']}.\n{self._child.tail()}", where=str(self._log))
        return reply

    def _ended(self, seconds: float) -> QuantizeError:
        """The error of a process that is gone, or says nothing."""
        if self._child.gone(_END_SECONDS):
            return died(self._child)
        self._child.close()
        return EngineLost(
            f"GuideLLM did not answer within {seconds:.0f} seconds and was stopped.\n{self._child.tail()}",
            where=str(self._log),
        )

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            with suppress(OSError):  # what was not sent is not sent
                self._stream.close()
            self._connection.close()
        self._child.close()
        self._meeting.close()
