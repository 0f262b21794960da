"""A TCP proxy before a server, which a test cuts at a chosen request: before it arrives, or after it was done.

A registry makes hundreds of requests, some of them again and again from one place of the program. `places` finds the
different ones: a request is known by the lines of the program that lead to it and by what it asks for, and of several
alike the first is cut. Of those that change nothing, an answer that is lost and a request that is are the same.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import requests

import quantize

VERBS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")
_PROGRAM = str(Path(quantize.__file__).parent)
#: What differs between two requests of one kind: names, numbers, digests.
_NAMES = re.compile(r"mlflow-artifacts/artifacts/.*|[0-9a-f]{32}|\d+")


class Proxy:
    """Counts requests in `seen`, and keeps how each begins in `requests`.

    At request `at` it goes away (`how` "before" or "after"), or loses one answer.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.seen = 0
        self.requests: list[bytes] = []
        self.at: int | None = None
        self.how = ""
        self.down = False

    def fail(self, at: int, how: str) -> None:
        """From request `at` on be away, counted from now; `how` "once" loses its answer and stays."""
        self.seen, self.requests = 0, []
        self.at, self.how, self.down = at, how, False

    def back(self) -> None:
        self.at, self.down = None, False

    def relay(self, client: socket.socket) -> None:
        """Pass bytes on, until either side closes or we go away."""
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            lose = False
            for one in (client, server):
                # Requests come in several pieces, each of which would wait 40 ms for the other's word that it arrived.
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self.down:
                ready, _, _ = select.select([client, server], [], [], 0.05)
                for one in ready:
                    data = one.recv(1 << 16)
                    if not data or self.down:
                        return
                    if one is client and data.partition(b" ")[0] in VERBS:
                        self.seen += 1
                        self.requests.append(data[:100])
                        lose = self.seen == self.at
                        if lose and self.how == "before":
                            self.down = True
                            return
                    elif one is server and lose:
                        self.down = self.how == "after"
                        return
                    (server if one is client else client).sendall(data)


@contextmanager
def proxied(port: int):
    """A proxy before the server on `port`, for the time of a `with`: (its port, the proxy)."""
    proxy = Proxy(port)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                if not proxy.down:
                    proxy.relay(self.request)
            except OSError:
                pass  # the client is gone

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Listener(("127.0.0.1", 0), Handler) as listener:
        thread = Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield listener.server_address[1], proxy
        finally:
            proxy.down = True
            listener.shutdown()
            thread.join()


def places(proxy: Proxy, work: Callable[[], None], *, changing: bool = False) -> list[int]:
    """Do a piece of work, and give the numbers of its requests that are the first of their kind, in order.

    `changing`: of those alone that may change something.
    """
    kinds: list[tuple[object, ...]] = []
    request = requests.Session.request

    def noted(session, method, url, *arguments, **settings):
        kinds.append((*_lines(), method, _NAMES.sub("", urlsplit(url).path)))
        return request(session, method, url, *arguments, **settings)

    proxy.fail(-1, "before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "request", noted)
        work()
    assert len(kinds) == proxy.seen, "every request is one of MLflow's client"
    first = {kind: number for number, kind in reversed(list(enumerate(kinds, start=1)))}
    return sorted(number for kind, number in first.items() if not changing or kind[-2] != "GET")


def _lines() -> Iterator[tuple[str, int]]:
    """The lines of the program that lead to where this is called."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PROGRAM):
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
