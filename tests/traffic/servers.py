"""`python servers.py ADDRESS_FILE OPTIONS`: answers OpenAI's completions as slowly or as badly as it is told to.

Options (JSON): `first` and `gap`, seconds before the first token and between tokens; `slots`, how many requests are
answered at the same time; `usage`: "last" (one chunk at the end), "every" (in all chunks) or "none"; `context`, tokens
that fit; `at_once`, tokens in a chunk. `bad` is what it does wrong: "500", "cut", "cut at once", "half a line", "ends
early", "silent", "silent midway", "short", "die", "refuse" (in the stream); to the requests numbered `which` (in the
order of coming, from 0), else to all. What it was asked is written, a line of JSON each, into `ADDRESS_FILE.asked`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {}
ASKED = Path()
SLOTS = threading.Semaphore()
LOCK = threading.Lock()
COUNT = iter(range(10**9))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            number = next(COUNT)
            entry = {"path": self.path, "body": body, "time": time.time(), "key": self.headers.get("Authorization")}
            with ASKED.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        which = OPTIONS.get("which")
        bad = OPTIONS.get("bad") if which is None or number in which else None
        tokens = len(prompt_of(body).split())
        if bad == "500":
            self.whole(500, {"error": {"message": "no"}})
        elif tokens + wanted_of(body) > OPTIONS.get("context", 10**9):
            self.whole(400, {"error": {"message": "the prompt is too long"}})
        else:
            with SLOTS:
                self.stream(body, tokens, bad)

    def whole(self, status: int, reply: dict[str, Any]) -> None:
        text = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, body: dict[str, Any], prompt_tokens: int, bad: str | None) -> None:
        wanted = wanted_of(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        middle = wanted // 2
        if bad == "refuse":
            self.event({"error": {"message": "the engine failed", "code": 500}})
            return self.end()
        said = middle if bad == "short" else wanted
        begin = time.monotonic() + OPTIONS.get("first", 0.0)
        step = OPTIONS.get("at_once", 1)
        for number in range(step - 1, said, step):
            time.sleep(max(0.0, begin + number * OPTIONS.get("gap", 0.0) - time.monotonic()))
            if self.goes_wrong(bad, number, middle):
                return None
            usage = {"usage": counts(prompt_tokens, number + 1)} if OPTIONS.get("usage") == "every" else {}
            finish = None if number < said - 1 else "length"
            self.event({"id": "a", "choices": [{**spoken(self.path, f" t{number}"), "finish_reason": finish}], **usage})
        if OPTIONS.get("usage", "last") == "last":
            self.event({"id": "a", "choices": [], "usage": counts(prompt_tokens, said)})
        self.line(b"data: [DONE]\n\n")
        return self.end()

    def goes_wrong(self, bad: str | None, number: int, middle: int) -> bool:
        """Do what is to go wrong at this token; True where nothing more is to be sent."""
        if bad == "die" and number == middle:
            os._exit(1)
        if bad in {"silent", "silent midway"} and number == (0 if bad == "silent" else middle):
            time.sleep(3600)
        if bad == "half a line" and number == middle:
            self.line(b'data: {"id": "a", "choi')
        if bad in {"cut", "cut at once", "half a line"} and number == (0 if bad == "cut at once" else middle):
            self.close_connection = True
            return True
        if bad == "ends early" and number == middle:
            self.end()
            return True
        return False

    def event(self, data: dict[str, Any]) -> None:
        self.line(f"data: {json.dumps(data)}\n\n".encode())

    def line(self, text: bytes) -> None:
        self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt of either form of request."""
    if "prompt" in body:
        return str(body["prompt"])
    return " ".join(part["text"] for message in body["messages"] for part in message["content"])


def wanted_of(body: dict[str, Any]) -> int:
    return int(body.get("max_tokens") or body["max_completion_tokens"])


def spoken(path: str, text: str) -> dict[str, Any]:
    return {"delta": {"content": text}} if "chat" in path else {"text": text}


def counts(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Server(ThreadingHTTPServer):
    """Threads that end with the process, and no complaint of clients that hang up."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    OPTIONS = json.loads(sys.argv[2])
    ASKED = Path(f"{place}.asked")
    ASKED.touch()
    SLOTS = threading.Semaphore(OPTIONS.get("slots", 10**6))
    server = Server(("127.0.0.1", 0), Handler)
    part = Path(f"{place}.part")
    part.write_text(f"http://127.0.0.1:{server.server_address[1]}")
    part.replace(place)
    server.serve_forever()
