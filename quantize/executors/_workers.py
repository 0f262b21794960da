"""Starting a worker process: forked from one that has the libraries imported (`quantize.forkserver`), or a new one.

Both are the same to who starts them. On Linux every stage in the program's own environment is forked; elsewhere, and
where a fork would not be as good as a new process, workers are new ones.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["GRACE_SECONDS", "Worker", "forked", "started"]

#: How long a worker that was asked to end has for it.
GRACE_SECONDS = 20.0
_READY = b"ready"
#: What is read when a GPU is first used, and not when a library is imported: workers on several GPUs share a server.
_LATE = ("CUDA_VISIBLE_DEVICES",)


class Worker(Protocol):
    """A stage's process, as `subprocess.Popen` has it. `returncode` is the negative signal number after a kill."""

    @property
    def returncode(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def started(
    command: Sequence[str],
    output: int,
    descriptors: Sequence[int],
    environment: Mapping[str, str],
    folder: Path | None,
) -> Worker:
    """A new process in its own session, which keeps `descriptors` under their numbers."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=descriptors,
        start_new_session=True,
        env=environment,
        cwd=folder,
    )


def forked(job: Path, output: int, events: int, held: Sequence[int], environment: Mapping[str, str]) -> Worker | None:
    """A worker forked with the libraries imported, or None where that cannot be."""
    if not hasattr(os, "pidfd_open"):
        return None
    late = {name: value for name, value in environment.items() if name in _LATE}
    with _starting:
        server = _server_for({name: value for name, value in environment.items() if name not in _LATE})
        return server.fork(job, output, events, held, late)


def _server_for(environment: dict[str, str]) -> _Server:
    """The server whose variables these are; libraries read some when they are imported, so others need another.

    The one used last is kept beside a new one: stages of two kinds take turns.
    """
    for server in _servers:
        if server.environment == environment:
            _servers.remove(server)
            _servers.append(server)
            return server
    idle = [server for server in _servers if not server.busy]
    for server in idle[:-1]:
        _servers.remove(server)
        server.close()
    _servers.append(_Server(environment))
    return _servers[-1]


def start_server(driver: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The process of `quantize.forkserver`, which answers on the descriptor `driver`."""
    return subprocess.Popen(
        [sys.executable, "-m", "quantize.forkserver", str(driver)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[driver],
        start_new_session=True,
        env=environment,
    )


class _Server:
    """The process that forks, and the socket on which it is asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = start_server(theirs.fileno(), environment)
        self._usable: bool | None = None
        self._workers: list[_Forked] = []
        atexit.register(self.close)

    @property
    def busy(self) -> bool:
        """Whether a worker has not been seen to end."""
        return any(worker.returncode is None for worker in self._workers)

    def fork(
        self, job: Path, output: int, events: int, held: Sequence[int], variables: Mapping[str, str]
    ) -> Worker | None:
        """A worker with some variables of its own, or None where the server cannot fork or is gone."""
        if self._usable is None:
            self._usable = self._socket.recv(len(_READY)) == _READY
        if not self._usable:
            return None
        read, write = os.pipe()
        try:
            message = json.dumps({"job": str(job), "variables": dict(variables)})
            socket.send_fds(self._socket, [message.encode()], [output, events, write, *held])
        except OSError:
            self._usable = False
        finally:
            os.close(write)
        worker = _Forked(read)
        if not worker.began():
            return None
        self._workers = [one for one in self._workers if one.returncode is None] + [worker]
        return worker

    def close(self) -> None:
        """Let the server go; its workers stay."""
        atexit.unregister(self.close)
        self._socket.close()
        self._process.wait()


_servers: list[_Server] = []
_starting = threading.Lock()


class _Forked:
    """A worker that the server forked: what it is comes by the status pipe."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._read = b""
        self._pid: int | None = None
        self.returncode: int | None = None

    def began(self) -> bool:
        """Wait for the process id. False where there is no process."""
        self._pid = self._line(None)
        if self._pid is None:
            os.close(self._status)
        return self._pid is not None

    def wait(self, timeout: float | None = None) -> int:
        """See `subprocess.Popen.wait`. A worker whose server was killed is killed too: nobody would learn its end."""
        if self.returncode is None:
            code = self._line(timeout)
            if code is None:
                self.kill()
            self.returncode = -signal.SIGKILL if code is None else code
            os.close(self._status)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it, where the process has not ended."""
        if self.returncode is None and self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _line(self, timeout: float | None) -> int | None:
        """The next number; None at the end of the pipe. Raises subprocess.TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            while b"\n" not in self._read:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not selector.select(left):
                    raise subprocess.TimeoutExpired(f"worker {self._pid}", timeout or 0.0)
                more = os.read(self._status, 64)
                if not more:
                    return None
                self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return int(line)
