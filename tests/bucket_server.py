"""A real S3 server in a process of its own (moto's), which counts what clients send, and may be made to misbehave.

Run as a script, it serves; imported, `bucket_server` starts it and hands out a client's view of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "test-key", "very-secret-value"


@dataclass
class BucketServer:
    """`control` is the file by which a test says how the server behaves, `log` what clients asked for."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.port), str(self.folder)]
        with (self.folder / "output").open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{self.address}/moto-api/", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "output").read_text()
                time.sleep(0.1)
        pytest.fail((self.folder / "output").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None

    def behave(self, **how: Any) -> None:
        (self.folder / "control").write_text(json.dumps(how), encoding="utf-8")

    def clear(self) -> None:
        (self.folder / "log").unlink(missing_ok=True)

    def requests(self, method: str) -> list[tuple[str, int]]:
        """Path and bytes of the body of every request with this method since the log was cleared."""
        log = self.folder / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [(path, int(size)) for verb, path, size in map(str.split, lines) if verb == method]

    def client(self) -> Any:
        """A client of another library than the one under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def objects(self, bucket: str) -> dict[str, int]:
        return {o["Key"]: o["Size"] for o in self.client().list_objects_v2(Bucket=bucket).get("Contents", [])}


@contextmanager
def bucket_server(folder: Path):
    """A server with nothing in it, for the time of a `with`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = BucketServer(folder, port)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def serve(port: int, folder: Path) -> None:
    """Serve until killed. `control` may hold `status`, the answer to every PUT, or `unconditional`: true."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    inner = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with (folder / "log").open("a") as log:
            log.write(f"{method} {path.replace(' ', '%20')} {environ.get('CONTENT_LENGTH') or 0}\n")
        control = folder / "control"
        how = json.loads(control.read_text()) if control.exists() else {}
        refused = how.get("unconditional") and "HTTP_IF_NONE_MATCH" in environ
        if method == "PUT" and (refused or "status" in how):
            status, code = ("501 no", "NotImplemented") if refused else how["status"]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
        return inner(environ, start_response)

    run_simple("127.0.0.1", port, application, threaded=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
