"""Servers that answer as asked, and one GuideLLM for all tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from program import TINY

from quantize.handed import Host
from quantize.protocols import Sender
from quantize.traffic import GuideLLM


@dataclass
class Scripted:
    """A `Service` as far as a sender looks at it, and what it was asked."""

    address: str
    asked_file: Path
    process: subprocess.Popen[bytes]
    model: str = "scripted"
    key: str | None = None
    body: dict[str, Any] = field(default_factory=dict)

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.asked_file.read_text().splitlines()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    """Starts servers with the options of `servers.py`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**options: Any) -> Scripted:
        place = tmp_path / f"server-{len(started)}"
        script = Path(__file__).with_name("servers.py")
        process = subprocess.Popen([sys.executable, script, place, json.dumps(options)])
        started.append(process)
        deadline = time.monotonic() + 30
        while not place.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return Scripted(place.read_text(), Path(f"{place}.asked"), process)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def guidellm_host(environment: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host({"guidellm": environment("guidellm")}, tmp_path_factory.mktemp("guidellm"))


@pytest.fixture(scope="session")
def sender(guidellm_host: Host) -> Iterator[Sender]:
    """A GuideLLM that all tests of a session share, as all loads of a benchmark do."""
    sender = GuideLLM().open(TINY / "checkpoint", guidellm_host)
    yield sender
    sender.close()
