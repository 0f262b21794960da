"""A TCP proxy before a server, which a test cuts at a chosen request: before it arrives, or after it was done."""

from __future__ import annotations

import select
import socket
import socketserver
from contextlib import contextmanager
from threading import Thread

VERBS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")


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
