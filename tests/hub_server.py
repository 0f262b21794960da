"""A server on loopback that speaks as much of the hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Serves `folder` as repository `repo`; `revisions` maps branches to commits; `requests` is what was asked.

    `datasets`: as one of datasets, of which parts of files may be asked for; `token` is what it then wants to be told.
    A `gated` one lets nobody read files; one with `tokens` lets in who shows a token that it maps to True, tells the
    others that they have not been let in, and does not know any other token. `status` is what every request gets.
    """

    daemon_threads = True

    def __init__(
        self,
        repo: str,
        folder: Path,
        revisions: dict[str, str],
        *,
        gated: bool = False,
        datasets: bool = False,
        token: str | None = None,
        tokens: dict[str, bool] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.folder, self.revisions, self.gated = repo, folder, revisions, gated
        self.api, self.files = (
            (f"/api/datasets/{repo}", f"/datasets/{repo}") if datasets else (f"/api/models/{repo}", f"/{repo}")
        )
        self.token, self.tokens, self.status = token, tokens, status
        self.requests: list[str] = []

    def described(self, path: str) -> dict[str, object]:
        """A file or a folder as the hub lists it."""
        place = self.folder / path
        size = place.stat().st_size if place.is_file() else 0
        return {"type": "file" if place.is_file() else "directory", "path": path, "size": size, "oid": "0" * 40}

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

    def do_POST(self) -> None:
        """What is known of some paths."""
        hub = self.server
        asked = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        hub.requests.append(urlsplit(self.path).path)
        found = [path for path in asked.get("paths", []) if (hub.folder / path).exists()]
        self._send(200, json.dumps([hub.described(path) for path in found]).encode(), {}, body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        known = {**hub.revisions, **{commit: commit for commit in hub.revisions.values()}}
        if refused := self._refused():
            self._send(refused[0], b"{}", refused[1], body=body)
        elif path.startswith(hub.api):
            self._describe(path.removeprefix(hub.api).strip("/").split("/"), known, body=body)
        elif path.startswith(prefix := f"{hub.files}/resolve/"):
            revision, _, name = path.removeprefix(prefix).partition("/")
            self._file(revision, name, known, body=body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    @property
    def _shown(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _refused(self) -> tuple[int, dict[str, str]] | None:
        """What everybody, or a stranger, is told whatever they ask for."""
        hub = self.server
        if hub.status is not None:
            return hub.status, {}
        if hub.tokens is not None and self._shown and self._shown not in hub.tokens:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if hub.token is not None and self._shown != hub.token:
            return 401, {"X-Error-Code": "RepoNotFound"}
        return None

    def _describe(self, parts: list[str], known: dict[str, str], *, body: bool) -> None:
        """A revision's commit and files, or its tree."""
        hub = self.server
        revision = parts[1] if len(parts) > 1 else "main"
        if revision not in known:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif parts[0] == "tree":
            below = hub.folder.joinpath(*parts[2:])
            deep = parse_qs(urlsplit(self.path).query).get("recursive") in (["True"], ["true"])
            found = sorted((below.rglob if deep else below.glob)("*"))
            tree = [hub.described(place.relative_to(hub.folder).as_posix()) for place in found]
            self._send(200, json.dumps(tree).encode(), {}, body=body)
        else:
            names = sorted(p.relative_to(hub.folder).as_posix() for p in hub.folder.rglob("*") if p.is_file())
            info = {"id": hub.repo, "sha": known[revision], "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(info).encode(), {}, body=body)

    def _file(self, revision: str, name: str, known: dict[str, str], *, body: bool) -> None:
        """A file, or the part of it that is asked for."""
        hub = self.server
        file = hub.folder / name
        if hub.gated or (hub.tokens is not None and not hub.tokens.get(self._shown, False)):
            self._send(403 if self._shown else 401, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        elif revision not in known:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": known[revision]}, body=body)
        else:
            data = file.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            headers = {"ETag": tag, "X-Repo-Commit": known[revision], "Accept-Ranges": "bytes"}
            start, _, end = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
            if start:
                last = min(int(end or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
                self._send(206, data[int(start) : last + 1], headers, body=body)
            else:
                self._send(200, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(repo: str, folder: Path, revisions: dict[str, str], **options: object):
    """The hub, up for the time of a `with`."""
    hub = Hub(repo, folder, revisions, **options)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
