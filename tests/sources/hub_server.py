"""A server on loopback that speaks as much of the hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Serves `folder` as repository `repo`; `revisions` maps branches to commits; `requests` is what was asked."""

    daemon_threads = True

    def __init__(self, repo: str, folder: Path, revisions: dict[str, str], *, gated: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.folder, self.revisions, self.gated = repo, folder, revisions, gated
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        known = {**hub.revisions, **{commit: commit for commit in hub.revisions.values()}}
        if path.startswith(f"/api/models/{hub.repo}"):
            parts = path.removeprefix(f"/api/models/{hub.repo}").strip("/").split("/")
            revision = parts[1] if len(parts) > 1 else "main"
            if revision not in known:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
                return
            names = sorted(p.relative_to(hub.folder).as_posix() for p in hub.folder.rglob("*") if p.is_file())
            if parts[0] == "tree":
                tree = [
                    {"type": "file", "path": n, "size": (hub.folder / n).stat().st_size, "oid": "0" * 40} for n in names
                ]
                self._send(200, json.dumps(tree).encode(), {}, body=body)
                return
            info = {"id": hub.repo, "sha": known[revision], "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(info).encode(), {}, body=body)
            return
        prefix = f"/{hub.repo}/resolve/"
        if path.startswith(prefix):
            revision, _, name = path.removeprefix(prefix).partition("/")
            file = hub.folder / name
            if hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body=body)
            elif revision not in known:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
            elif not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": known[revision]}, body=body)
            else:
                data = file.read_bytes()
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                self._send(200, data, {"ETag": tag, "X-Repo-Commit": known[revision]}, body=body)
            return
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(repo: str, folder: Path, revisions: dict[str, str], *, gated: bool = False):
    """The hub, up for the time of a `with`."""
    hub = Hub(repo, folder, revisions, gated=gated)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
