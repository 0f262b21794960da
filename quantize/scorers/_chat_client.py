"""OpenAI's chat completions, one after another: deadlines, pauses between tries, and no key in any message."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from quantize.errors import DataError, EngineLost

__all__ = ["ChatClient", "RequestRefused"]

#: The first pause between two tries, which doubles, and the longest.
_PAUSE_SECONDS, _LONGEST_PAUSE = 1.0, 60.0
_LONGEST_REPLY = 8 << 20
_PIECE = 1 << 16
#: What a server says that may pass.
_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
#: What a server says of the one request: too long for its context, filtered, too large.
_OF_THE_REQUEST = frozenset({400, 413, 422})


class RequestRefused(DataError):
    """The server refuses what it was asked, and not whoever asks: it may answer another request."""


class _Refused(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place: it is an answer like any other that is not 200."""

    def redirect_request(self, *_: Any) -> None:
        return None


class ChatClient:
    """Asks `url`, `timeout` seconds each time, and again `retries` times where that may help. Threads may share it."""

    def __init__(self, url: str, key: str | None, timeout: float, retries: int) -> None:
        self._url = url
        self._key = key
        self._timeout = timeout
        self._retries = retries
        self._stopped = threading.Event()
        self._opener = urllib.request.build_opener(_Refused)

    def stop(self) -> None:
        """Let no thread try again."""
        self._stopped.set()

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply's body.

        Raises EngineLost where none came in all tries, RequestRefused for what it does not answer, DataError where no
        request can help.
        """
        said = ""
        for attempt in range(self._retries + 1):
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                said, pause = self._refusal(error), _asked_to_wait(error)
            except (OSError, http.client.HTTPException, _Cut) as error:
                reason = getattr(error, "reason", error)
                late = isinstance(reason, TimeoutError | socket.timeout)
                said, pause = f"no answer in {self._timeout:g} seconds" if late else _plain(reason), 0.0
            pause = max(pause, min(_LONGEST_PAUSE, _PAUSE_SECONDS * 2**attempt))
            if attempt == self._retries or self._stopped.wait(pause):
                break
        raise EngineLost(
            f"the judge did not answer in {attempt + 1} tries: {said}.",
            where=self._url,
            fix="Run again when it does: what it has judged is kept.",
        )

    def _once(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")  # noqa: S310 (checked)
        deadline = time.monotonic() + self._timeout
        with self._opener.open(request, timeout=self._timeout) as response:
            text = b""
            # A server that sends a byte at a time never runs into the socket's own timeout.
            while piece := response.read1(_PIECE):
                text += piece
                if len(text) > _LONGEST_REPLY:
                    raise _Cut("its reply does not end")
                if time.monotonic() > deadline:
                    raise TimeoutError
        try:
            reply = json.loads(text)
        except ValueError:
            raise _Cut("its reply is not JSON") from None
        if not isinstance(reply, dict):
            raise _Cut("its reply is no JSON object")
        return reply

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What a server says that may pass. Raises DataError for what does not."""
        said = f"{error.code} {error.reason}"
        try:
            text = error.read(2000).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        finally:
            error.close()
        if error.code in _MAY_PASS:
            return said
        detail = " ".join(text.split())[:300]
        if self._key:
            detail = detail.replace(self._key, "***")
        kind = RequestRefused if error.code in _OF_THE_REQUEST else DataError
        raise kind(
            f"the judge refuses: {said}{f': {detail}' if detail else ''}.",
            where=self._url,
            fix="Check the scorer's url, model and api_key_env.",
        )


class _Cut(Exception):
    """A reply that is no reply."""


def _plain(reason: object) -> str:
    if isinstance(reason, http.client.IncompleteRead):
        return "its reply was cut off"
    return str(reason) or type(reason).__name__


def _asked_to_wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait, as far as it says it in seconds."""
    asked = (error.headers.get("Retry-After") or "").strip() if error.headers else ""
    return min(_LONGEST_PAUSE, float(asked)) if asked.isdecimal() else 0.0
