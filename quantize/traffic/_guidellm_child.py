"""`python -I _guidellm_child.py SOCKET`: GuideLLM, sending the loads that it is asked for over a Unix socket.

Runs in the environment `guidellm`, as a file: it knows the standard library and that environment's packages only.
GuideLLM prints what it likes, into a log; commands and replies, a line of JSON each, have the socket for themselves.
The process ends when the socket does.

GuideLLM schedules the requests and sends them. What it lacks is added by `TimedBackend`, a backend of its own kind, in
GuideLLM's own worker process: the time of every token, a deadline for the request as a whole, and whether the answer
was whole. It writes what became of a request into a file, from where it is read again: GuideLLM's reports are not used,
as 0.8.1 now and then ends without the last answer (it stops waiting between the count of it and its delivery). Worker
processes import this file once more, to know the classes: what is outside functions must stay cheap.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import httpx  # type: ignore[import-not-found, unused-ignore]
from guidellm.backends import Backend  # type: ignore[import-not-found, unused-ignore]
from guidellm.backends.openai.http import OpenAIHTTPBackend  # type: ignore[import-not-found, unused-ignore]
from guidellm.schemas.backends import BackendArgs, OpenAIHTTPBackendArgs  # type: ignore[import-not-found, unused-ignore]
from pydantic import SecretStr

__all__ = ["Answer", "TimedArgs", "TimedBackend", "main"]

_KIND: Any = "timed_http"
#: What GuideLLM's workers need. The fork server imports it once, so that no load need. The last two would be imported
#: by a load's first request, which was 0.2 seconds late for it.
_PRELOADED = [
    "guidellm.benchmark.entrypoints",
    "guidellm.scheduler.worker",
    "guidellm.data",
    "anyio._backends._asyncio",
    "httpcore._backends.anyio",
]
#: What GuideLLM says when the server reports an error in its stream, and httpx when the stream ends before its end.
_SERVER_SAYS = "Streaming response returned an error"
_INCOMPLETE = "without sending complete message body"


class Answer:
    """What is seen of one answer while it streams in.

    A server that counts the tokens in every chunk (vLLM does) is believed: a chunk of several tokens, of a draft that
    was accepted, counts as so many at one time, and one without text may be a token too. Elsewhere a chunk that has
    text is a token. `input` and `output` are the server's counts; where it never says, chunks are counted.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.tokens: list[float] = []
        self.input: int | None = None
        self.output: int | None = None
        self._began = False
        self._refused = False
        self._whole = False
        self._counts: bool | None = None

    def listen(self, handler: Any) -> None:
        """Look at everything that GuideLLM's handler of a stream parses."""
        line_data, choices_and_usage = handler.extract_line_data, handler.extract_choices_and_usage

        def on_line(line: str) -> Any:
            try:
                data = line_data(line)
            except ValueError as error:
                self._refused = str(error).startswith(_SERVER_SAYS)
                raise
            self._whole = self._whole or data is None
            return data

        def on_chunk(chunk: dict[str, Any]) -> Any:
            choices, usage = choices_and_usage(chunk)
            self._chunk(choices[0] if choices else None, usage or {})
            return choices, usage

        handler.extract_line_data, handler.extract_choices_and_usage = on_line, on_chunk

    def _chunk(self, choice: dict[str, Any] | None, usage: dict[str, Any]) -> None:
        now = time.time()
        self._began = True
        counted = usage.get("completion_tokens")
        if counted is not None:
            self.output, self.input = counted, usage.get("prompt_tokens", self.input)
        if choice is None:
            return
        if self._counts is None:
            self._counts = counted is not None
        self._whole = self._whole or choice.get("finish_reason") is not None
        if self._counts:
            self.tokens.extend([now] * ((counted or 0) - len(self.tokens)))
        elif _text(choice):
            self.tokens.append(now)

    def end(self, problem: BaseException | None) -> str | None:
        """The class of what went wrong, as in `Sent`; None for a whole answer."""
        if self._whole and self.output is None:
            self.output = len(self.tokens)
        if isinstance(problem, TimeoutError | httpx.TimeoutException):
            return "timeout"
        if isinstance(problem, httpx.HTTPStatusError):
            return f"http {problem.response.status_code}"
        if isinstance(problem, httpx.TransportError | OSError):
            return "cut" if self._began or _INCOMPLETE in str(problem) else "connection"
        # GuideLLM's own complaint of an empty answer, or half a line at its end, is a ValueError.
        if problem is not None and not isinstance(problem, ValueError):
            return f"unknown {type(problem).__name__}"
        return self._lacks()

    def _lacks(self) -> str | None:
        if self._refused:
            return "refused in the stream"
        if not self._whole:
            return "cut"
        return "short" if (self.output or 0) < self.wanted else None


def _text(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice says anything, in the form of completions or that of chats."""
    said = choice.get("delta") or choice
    return any(said.get(name) for name in ("text", "content", "reasoning", "reasoning_content", "tool_calls"))


@BackendArgs.register(_KIND)  # type: ignore[untyped-decorator, unused-ignore]
class TimedArgs(OpenAIHTTPBackendArgs):  # type: ignore[misc, unused-ignore]
    """As GuideLLM's own; `timeout` is for the whole request. `records` is the file that answers are written into.

    When so many requests in a row as `give_up` says came to nothing by their deadlines, the rest are not sent (0: all
    are).
    """

    kind: Literal["timed_http"] = "timed_http"
    records: str
    give_up: int = 0


@Backend.register(_KIND)  # type: ignore[untyped-decorator, unused-ignore]
class TimedBackend(OpenAIHTTPBackend):  # type: ignore[misc, unused-ignore]
    """GuideLLM's HTTP backend with an `Answer` beside every request."""

    _in_vain = 0

    async def _resolve_streaming(
        self, request: Any, request_info: Any, request_handler: Any, arguments: Any, request_kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        answer = Answer(request.output_metrics.text_tokens or 0)
        if 0 < self._args.give_up <= self._in_vain:
            self._record(answer, request_info, "unsent")
            raise RuntimeError("the server has stopped answering: not sent")
        answer.listen(request_handler)
        problem: BaseException | None = None
        try:
            async with asyncio.timeout(self._args.timeout):
                stream = super()._resolve_streaming(request, request_info, request_handler, arguments, request_kwargs)
                async for item in stream:
                    yield item
        except BaseException as error:
            problem = error
            raise
        finally:
            error_class = answer.end(problem)
            self._in_vain = self._in_vain + 1 if error_class == "timeout" else 0
            self._record(answer, request_info, error_class)
            if error_class is not None:
                sys.stderr.write(f"{error_class}: {problem!r}\n")
                sys.stderr.flush()

    def _record(self, answer: Answer, info: Any, error: str | None) -> None:
        """Add a line to the file of records; times are the system clock's."""
        times = info.timings
        row = {
            "place": int(info.settings.trace_duration),
            "begin": info.scheduler_start_time,
            "targeted": times.targeted_start,
            "dequeued": times.dequeued,
            "dispatched": None if error == "unsent" else times.request_start,
            "tokens": answer.tokens,
            "end": times.request_end or time.time(),
            "input": answer.input,
            "output": answer.output,
            "error": error,
        }
        file = os.open(self._args.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, json.dumps(row).encode() + b"\n")
        finally:
            os.close(file)


def _scenario(command: dict[str, Any], records: Path) -> Any:
    """What GuideLLM is to do. The key is put in last: a complaint of the rest would show it."""
    from guidellm.schemas.benchmark.entrypoints import BenchmarkScenario  # type: ignore[import-not-found, unused-ignore]

    columns = {"text_column": "prompt", "output_tokens_count_column": "output", "request_duration_column": "place"}
    backend = {
        "kind": _KIND,
        "target": command["address"],
        "model": command["model"],
        "request_format": command["request_format"],
        "extras": {"body": command["body"]},
        "timeout": command["seconds"],
        "timeout_connect": command["seconds"],
        "records": str(records),
        "give_up": command["give_up"],
        "validate_backend": False,
        "http2": False,
    }
    spec = {
        "backend": backend,
        "profile": command["profile"],
        "seed": {"kind": "static", "value": command["seed"]},
        "constraints": [{"kind": "max_requests", "count": len(command["prompts"])}],
        "tokenizer": {"kind": "hf_auto", "model": command["tokenizer"]},
        # A number that GuideLLM carries along and, but for replayed traces, never looks at: which request it is.
        "data": [
            {
                "kind": "in_memory_dict",
                "data": {
                    "prompt": command["prompts"],
                    "output": command["outputs"],
                    "place": [float(place) for place in range(len(command["prompts"]))],
                },
            }
        ],
        "data_column_mapper": {"kind": "generative_column_mapper", "column_mappings": columns},
        "metrics": {"kind": "generative", "sample_size": 0, "confidence": None},
        "outputs": [],
    }
    scenario = BenchmarkScenario.model_validate({"spec": spec})
    if command["key"] is not None:
        scenario.spec.backend.api_key = SecretStr(command["key"])
    return scenario


def _begin_in_order() -> None:
    """Let a Poisson process have its begin before anybody is told to start.

    GuideLLM 0.8.1 tells its workers first: one that is quick reads -1 as the begin and sends all requests at once.
    """
    from guidellm.scheduler.strategies import (  # type: ignore[import-not-found, unused-ignore]
        AsyncPoissonStrategy,
        ThroughputStrategy,
    )

    def init_processes_start(self: Any, start_time: float) -> None:
        with self._offset.get_lock():
            self._offset.value = start_time
        ThroughputStrategy.init_processes_start(self, start_time)

    AsyncPoissonStrategy.init_processes_start = init_processes_start


def load(command: dict[str, Any]) -> dict[str, Any]:
    """Send a load. Times in the reply are seconds of the system's clock; `clock` is how far it was ahead of the other.

    Once before the load and once after it: the clock that does not step, that is, the monotonic one.
    """
    from guidellm.benchmark.entrypoints import (  # type: ignore[import-not-found, unused-ignore]
        benchmark_generative_text,
    )

    with tempfile.TemporaryDirectory(prefix="quantize-") as folder:
        records = Path(folder) / "records.jsonl"
        records.touch()
        scenario = _scenario(command, records)
        before = time.time() - time.monotonic()
        try:
            asyncio.run(benchmark_generative_text(scenario, progress=False))
        except Exception:
            # What it makes of the answers does not matter, if they are all there.
            if len(records.read_bytes().splitlines()) < len(command["prompts"]):
                raise
            traceback.print_exc()
        after = time.time() - time.monotonic()
        return {"clock": [before, after], "rows": [json.loads(line) for line in records.read_bytes().splitlines()]}


def _nothing() -> None:
    """What the first process of the fork server does."""


def main(arguments: list[str]) -> int:
    """Answer commands until the socket ends."""
    (address,) = arguments
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    stream = connection.makefile("rwb")

    def say(reply: dict[str, Any]) -> None:
        stream.write(json.dumps(reply).encode() + b"\n")
        stream.flush()

    multiprocessing.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    import guidellm.benchmark.entrypoints  # type: ignore[import-not-found, unused-ignore] # noqa: F401

    _begin_in_order()
    first = multiprocessing.get_context("forkserver").Process(target=_nothing)
    first.start()
    first.join()
    say({"ready": True})
    for line in stream:
        try:
            reply = load(json.loads(line))
        except Exception as error:  # noqa: BLE001 (the other side is told, and the log)
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        say(reply)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
