"""Requests to vLLM's server, many at a time, over connections that are kept.

Every request here reads and changes nothing, so one that was lost on its way is sent once more while the server lives.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from http.client import HTTPConnection, HTTPException
from typing import Any

from quantize.engines._vllm_server import HOST, Server
from quantize.errors import QuantizeError

__all__ = ["COMPLETIONS", "Client"]

COMPLETIONS = "/v1/completions"

#: What the server says instead of an answer that has NaN in it: JSON has no word for that.
_NOT_FINITE = "Out of range float values are not JSON compliant"


class Client:
    """`connections` requests are under way at the same time; each may take `seconds`."""

    def __init__(self, server: Server, connections: int, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="vllm")
        self._own = threading.local()
        self._opened: list[HTTPConnection] = []

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None where a number in it was not finite.

        Raises QuantizeError that names the request when the server refuses it or dies, EngineLost when it was killed
        or keeps silent.
        """
        what = _name(path, body)
        status, text = self._send("POST", path, json.dumps(body).encode(), what)
        if status != 200:
            if _NOT_FINITE in text:
                return None
            if status >= 500:  # the server outlives its engine for a moment, and then ends
                raise self._server.silence(what, text, refused=True)
            raise QuantizeError(f"vLLM's server refuses {what} (status {status}): {text}")
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise QuantizeError(f"vLLM's server answers {what} with what is no JSON: {error}") from error
        return answer

    def ask_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """The answers to many requests, in their order. The first error ends the rest."""
        under_way = [self._threads.submit(self.ask, path, body) for body in bodies]
        try:
            wait(under_way, return_when=FIRST_EXCEPTION)
            failed = [one for one in under_way if one.done() and one.exception() is not None]
            return [one.result() for one in failed or under_way]
        finally:
            for one in under_way:
                one.cancel()

    def read(self, path: str) -> str:
        """The text behind an address."""
        status, text = self._send("GET", path, None, path)
        if status != 200:
            raise QuantizeError(f"vLLM's server refuses {path} (status {status}): {text}")
        return text

    def close(self) -> None:
        """Forget what is under way; call it when the server is gone, so that nothing is waited for."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._opened:
            connection.close()

    def _send(self, method: str, path: str, body: bytes | None, what: str) -> tuple[int, str]:
        """Status and text; again on a new connection where a kept one fails: the server closes those that are idle."""
        try:
            return self._exchange(method, path, body)
        except TimeoutError as error:
            raise self._server.silence(what, f"none within {self._seconds:.0f} seconds (request_seconds)") from error
        except (OSError, HTTPException):
            try:
                return self._exchange(method, path, body)
            except (OSError, HTTPException) as error:
                raise self._server.silence(what, f"{type(error).__name__}: {error}") from error

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str]:
        connection: HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = HTTPConnection(HOST, self._server.port, timeout=self._seconds)
            self._opened.append(connection)
        try:
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {**self._server.headers, **kind})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", errors="replace")
        except BaseException:
            connection.close()  # opens itself again with the next request
            raise


def _name(path: str, body: dict[str, Any]) -> str:
    """A request in words: where it went and how long its prompt is."""
    prompt = body.get("prompt")
    size = f" for a prompt of {len(prompt)} tokens" if isinstance(prompt, list) else ""
    return f"a request to {path}{size}"
