"""What a client of a served model sees, for the tests of the engines that serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from quantize.served import Service


def send(service: Service, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, str]:
    """Status and text of one request, with the service's key or another."""
    headers = {"Authorization": f"Bearer {key or service.key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps({"model": service.model, **service.body, **body}).encode()
    try:
        with urlopen(Request(service.address + path, data, headers), timeout=120) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def stream(service: Service, prompt: str, tokens: int, **more: Any) -> tuple[list[str], dict[str, Any]]:
    """The texts of a streamed completion's events, the last one's included, and what it counted."""
    asked = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    status, text = send(service, "/v1/completions", {**asked, "stream_options": {"include_usage": True}, **more})
    assert status == 200, text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    return [event["choices"][0]["text"] for event in events if event["choices"]], events[-1]["usage"]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
