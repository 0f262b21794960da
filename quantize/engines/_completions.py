"""OpenAI's completions protocol, as much of it as greedy answers need: what is asked for, and how answers are written.

Knows nothing of models: who answers takes `Asked` from the server's queue and writes tokens into its `reply`.
"""

from __future__ import annotations

import hmac
import json
import queue
import select
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Asked", "Refused", "Reply", "Server", "Wanted", "wanted"]

#: Fields that would change an answer and are not followed, with the values that change nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "temperature": (0, None),
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "stop": (None, [], ""),
    "logprobs": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
}
_DEFAULT_TOKENS = 16
_LONGEST_BODY = 64 * 2**20
#: How long a client may take to send a request, to take a token, or to say something new on a connection it keeps.
_SILENCE_SECONDS = 900.0


class Refused(Exception):
    """A request that gets no answer: an HTTP status, and OpenAI's body that says why."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for, by a prompt: a text, token ids, or the messages of a chat."""

    prompt: str | list[int] | None
    messages: list[dict[str, str]] | None
    max_tokens: int
    ignore_eos: bool
    stream: bool
    usage: bool
    usage_always: bool


@dataclass(slots=True)
class Asked:
    """A request that waits for its answer, of token ids `prompt`."""

    wanted: Wanted
    prompt: list[int]
    reply: Reply
    done: threading.Event = field(default_factory=threading.Event)


def wanted(body: Any, *, chat: bool) -> Wanted:
    """Read a request's body. Raises Refused for what is malformed or cannot be followed."""
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object.")
    for name, harmless in _NOTHING.items():
        if name in body and not any(type(body[name]) is type(one) and body[name] == one for one in harmless):
            if name == "temperature" and body[name] == 0.0:
                continue
            raise Refused(400, f"{name!r} is not supported: this server answers greedily, once, as far as it is asked.")
    tokens = body.get("max_completion_tokens") if chat else None
    tokens = body.get("max_tokens") if tokens is None else tokens
    tokens = _DEFAULT_TOKENS if tokens is None else tokens
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise Refused(400, "'max_tokens' must be a whole number of at least 1.")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "'stream_options' must be an object.")
    return Wanted(
        prompt=None if chat else _prompt(body.get("prompt")),
        messages=_messages(body.get("messages")) if chat else None,
        max_tokens=tokens,
        ignore_eos=bool(body.get("ignore_eos", False)),
        stream=bool(body.get("stream", False)),
        usage=bool(options.get("include_usage", False)),
        usage_always=bool(options.get("continuous_usage_stats", False)),
    )


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(token, int) and token >= 0 for token in value):
        return value
    raise Refused(400, "'prompt' must be one text or one list of token ids, and not empty.")


def _messages(value: Any) -> list[dict[str, str]]:
    """Messages whose contents are texts; the text parts of one are joined."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise Refused(400, "'messages' must be a list of messages, and not empty.")
    found = []
    for message in value:
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                raise Refused(400, "only texts are understood in 'messages'.")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise Refused(400, "a message has a 'role' and a 'content' of text.")
        found.append({"role": message["role"], "content": content})
    return found


class Reply:
    """Writes one answer to a client as its tokens come. Raises OSError where the client has gone."""

    def __init__(self, handler: _Handler, asked: Wanted, prompt_tokens: int) -> None:
        self._handler, self._asked = handler, asked
        self._input, self._output = prompt_tokens, 0
        self._began = False
        self._texts: list[str] = []
        self._finish: str | None = None
        #: Whether the client has all that it will get.
        self.ended = False
        self._chat = asked.messages is not None
        name = "chat.completion" if self._chat else "text_completion"
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": f"{name}.chunk" if self._chat and asked.stream else name,
            "created": int(time.time()),
            "model": handler.server.name,
        }
        self._poll = select.poll()
        self._poll.register(handler.connection, select.POLLRDHUP)

    def gone(self) -> bool:
        """Whether the client has hung up."""
        return bool(self._poll.poll(0))

    def token(self, text: str, finish: str | None) -> None:
        """One token more; `finish` with the last."""
        self._output += 1
        self._finish = finish
        if not self._asked.stream:
            self._texts.append(text)
            return
        said = {"delta": {"content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        usage = {"usage": self._usage()} if self._asked.usage_always else {}
        self._event({**self._head, "choices": [choice], **usage})

    def end(self) -> None:
        """The end of the answer."""
        self.ended = True
        if not self._asked.stream:
            text = "".join(self._texts)
            said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": self._finish}
            self._handler.whole(200, {**self._head, "choices": [choice], "usage": self._usage()})
            return
        if self._asked.usage:
            self._event({**self._head, "choices": [], "usage": self._usage()})
        self._handler.wfile.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def fail(self, message: str) -> None:
        """Say that there will be no answer, or no more of it."""
        refused = Refused(500, message)
        self.ended = self._handler.close_connection = True
        if self._began:
            self._event(refused.body)
        else:
            self._handler.whole(500, refused.body)

    def _event(self, data: dict[str, Any]) -> None:
        if not self._began:
            self._began = True
            self._handler.begin_stream()
        self._handler.wfile.write(_chunk(b"data: " + json.dumps(data).encode() + b"\n\n"))

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._input,
            "completion_tokens": self._output,
            "total_tokens": self._input + self._output,
        }


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Server(ThreadingHTTPServer):
    """Reads requests and puts them into `asked`, in the order in which they came.

    `encode` makes token ids of what a request has as its prompt, or raises Refused; `state` is what the owner of the
    key may see of the server.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        name: str,
        key: str,
        context: int,
        encode: Callable[[Wanted], list[int]],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.context = name, context
        self.encode, self.state = encode, state
        self.header = f"Bearer {key}".encode()
        self.asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; what else a handler raises goes to the log."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _SILENCE_SECONDS

    def log_message(self, *_: object) -> None:
        """Requests are not logged: they are the benchmark's own."""

    def do_GET(self) -> None:
        """`/health` for all; `/v1/models` and `/state` for who has the key."""
        if self.path == "/health":
            self.whole(200, {"status": "ok"})
        else:
            self._answer(self._look)

    def do_POST(self) -> None:
        """`/v1/completions` and `/v1/chat/completions`."""
        self._answer(self._complete)

    def _answer(self, how: Callable[[bytes], None]) -> None:
        """Read the body first: what is left of it would be taken for the next request."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= _LONGEST_BODY:
                self.close_connection = True
                raise Refused(413, "the body is too long.")
            body = self.rfile.read(length)
            if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), self.server.header):
                raise Refused(401, "the key is not this server's.", "invalid_api_key")
            how(body)
        except Refused as refused:
            self.whole(refused.status, refused.body)
        except ValueError:
            self.close_connection = True
            self.whole(400, Refused(400, "'Content-Length' is no number.").body)

    def _look(self, _: bytes) -> None:
        if self.path == "/v1/models":
            self.whole(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        elif self.path == "/state":
            self.whole(200, self.server.state())
        else:
            raise Refused(404, f"there is nothing at {self.path}.")

    def _complete(self, body: bytes) -> None:
        if self.path not in {"/v1/completions", "/v1/chat/completions"}:
            raise Refused(404, f"there is nothing at {self.path}.")
        try:
            said = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        want = wanted(said, chat="chat" in self.path)
        if said.get("model") not in {None, self.server.name}:
            raise Refused(404, f"the model {said['model']!r} is not served here.", "model_not_found")
        prompt = self.server.encode(want)
        if len(prompt) + want.max_tokens > self.server.context:
            raise Refused(
                400,
                f"the prompt has {len(prompt)} tokens and its answer up to {want.max_tokens}, which exceeds the "
                f"context of {self.server.context} tokens.",
                "context_length_exceeded",
            )
        asked = Asked(want, prompt, Reply(self, want, len(prompt)))
        self.server.asked.put(asked)
        asked.done.wait()
        if not asked.reply.ended:  # a client that is still there must not wait for more
            self.close_connection = True

    def begin_stream(self) -> None:
        """The head of a streamed answer, which goes out with its first token."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def whole(self, status: int, body: dict[str, Any]) -> None:
        """An answer in one piece."""
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)
