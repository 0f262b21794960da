"""A real `mlflow server` on this machine, which a test may kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Server:
    """A real `mlflow server` that keeps and serves the artifacts itself. `files` is where it keeps them.

    With `password` it asks everybody who they are, and that is the one of `admin`.
    """

    folder: Path
    port: int
    password: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> str:
        """Its database, for who looks at it from beside."""
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def start(self) -> None:
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, and do not wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.files)]
        # Without job execution: it would start eight more processes that nothing here uses.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.password:
            command += ["--app-name", "basic-auth"]
            (self.folder / "accounts.ini").write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self.folder}/accounts.db\n"
                f"admin_username = admin\nadmin_password = {self.password}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
                "auth_cache_ttl_seconds = 600\n"  # to check a password takes longer than anything else
            )
            quiet |= {"MLFLOW_AUTH_CONFIG_PATH": f"{self.folder}/accounts.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "s"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self.process is not None
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.2)
        pytest.fail((self.folder / "log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


@contextmanager
def serving(folder: Path, database: Path, password: str = ""):
    """A server in `folder` with a copy of `database`, for the time of a `with`; with `password`, one with accounts."""
    shutil.copy(database, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(folder, port, password)
    try:
        server.start()
        yield server
    finally:
        server.kill()
