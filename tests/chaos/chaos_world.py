"""Nodes that start one run again and again, as a scheduler does, on one shared store and beside one MLflow server.

A node is a name here (`QUANTIZE_NODE`): two share no flock, so they know of each other by the store alone. All that a
node started, and what was orphaned since, is found by the variables that it was started with, as the kernel tells them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_server import Server
from program import state

from quantize import leases
from quantize.store import MANIFEST

#: How long a node may be silent before the other takes over what it was doing.
LEASE_SECONDS = 2.0
#: How long a scheduler may take until it starts a job again: longer than a lease, or shorter.
_AGAIN_SECONDS = 2 * LEASE_SECONDS
#: The variable by which the processes of a world are found.
_WORLD = "QUANTIZE_CHAOS_WORLD"
_DECIDED = (0, 3, 4)
#: What the program says where it met what chaos is about, and what that is.
_MET = {
    "is at it; waiting": "waited for the other node",
    "another node has taken this work over": "were overtaken asleep",
    "after it had committed": "lost a worker after its commit",
    "the MLflow server does not answer": "found the server away",
    "who had not given it back": "took a dead holder's lock",
    "Finished what": "finished a dead holder's promotion",
}
_RESUME, _ERROR = 75, 1


@dataclass
class Node:
    """One job on one node: started, and started again until it ends decided. `document` is what it then printed.

    `killed`: a process of the node was, since the job was started last.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    draw: random.Random
    ends: Counter[int] = field(default_factory=Counter)
    driver: subprocess.Popen[bytes] | None = None
    killed: bool = False
    document: dict[str, Any] | None = None
    _due: float = 0.0

    def look(self) -> None:
        """Start the job where it is due, and see how it ended where it has."""
        if self.document is not None:
            return
        if self.driver is None:
            if time.monotonic() >= self._due:
                self._start()
        elif self.driver.poll() is not None:
            self._ended(self.driver.returncode)

    @property
    def said(self) -> Path:
        """What the job's present life, or its last one, writes to standard error."""
        return self.folder / f"{self.name}.{self.ends.total()}.err"

    def met(self) -> Counter[str]:
        """In how many of its lives the job said that it met something, by what it was."""
        lives = [path.read_text(encoding="utf-8") for path in self.folder.glob("*.err")]
        return Counter({what: sum(text in life for life in lives) for text, what in _MET.items()})

    def _start(self) -> None:
        self.killed = False
        with self.said.open("wb") as error, self.said.with_suffix(".out").open("wb") as output:
            self.driver = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=error, env=self.environment
            )

    def _ended(self, code: int) -> None:
        """Decided, or to be started again; any other end, and an error that no kill explains, is the program's.

        Who only slept, or found the server away, has no reason for an error.
        """
        told = self.said.read_text(encoding="utf-8")
        assert not [line for line in told.splitlines() if line.startswith("Traceback")], told
        if code in _DECIDED:
            self.document = json.loads(self.said.with_suffix(".out").read_text(encoding="utf-8"))
        else:
            explained = code == _RESUME or (self.killed and code in (_ERROR, -signal.SIGKILL))
            assert explained, f"node {self.name} ended with {code}, and nothing of it was killed:\n{told}"
            self._due = time.monotonic() + self.draw.uniform(0, _AGAIN_SECONDS)
            self.driver = None
        self.ends[code] += 1


@dataclass
class World:
    """A store, a server, and the nodes that use them, until each has decided everything."""

    folder: Path
    server: Server
    nodes: list[Node]
    commits: Commits

    @staticmethod
    def of(folder: Path, server: Server, recipe: Path, nodes: Iterable[str], draw: random.Random) -> World:
        """A world with nodes of these names, none of which has begun, and an empty store."""
        store = folder / "store"
        command = [sys.executable, "-m", "quantize", "run", str(recipe), "--store", str(store), "--json"]
        made = []
        for name in nodes:
            own = folder / name
            (own / "tmp").mkdir(parents=True)
            environment = {
                **os.environ,
                leases.NODE: name,
                leases.SECONDS: str(LEASE_SECONDS),
                "MLFLOW_TRACKING_URI": server.address,
                "QUANTIZE_RUNTIME_DIR": str(own),
                "TMPDIR": str(own / "tmp"),
                _WORLD: str(folder),
            }
            made.append(Node(name, command, environment, own, draw))
        return World(folder, server, made, Commits(store))

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def decided(self) -> bool:
        return all(node.document is not None for node in self.nodes)

    def look(self) -> None:
        """Let everything go on by a step, and watch what it does."""
        for node in self.nodes:
            node.look()
        self.commits.look()

    def processes(self) -> dict[int, str]:
        """Every process of a node that lives, asleep or not, with the node's name."""
        mark = f"{_WORLD}={self.folder}".encode()
        found = {}
        for place in Path("/proc").iterdir():
            if not place.name.isdecimal():
                continue
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                variables = (place / "environ").read_bytes().split(b"\0")
                if mark in variables and state(int(place.name)) not in ("", "Z"):
                    found[int(place.name)] = _value(variables, leases.NODE)
        return found

    def drivers(self) -> list[int]:
        """The processes that were started by a scheduler and have not ended."""
        return [node.driver.pid for node in self.nodes if node.driver is not None and node.driver.poll() is None]

    def end(self) -> None:
        """Kill what is left, where a test ends early."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in self.nodes:
            if node.driver is not None:
                node.driver.wait()


def _value(variables: list[bytes], name: str) -> str:
    """The value of one of a process's variables, which it has."""
    return next(text.decode().partition("=")[2] for text in variables if text.startswith(f"{name}=".encode()))


@dataclass
class Commits:
    """Which artifacts were seen in a store. What was seen once must stay the very same file for ever."""

    store: Path
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self) -> None:
        found = {path: path.stat() for path in self.store.glob(f"*/*/{MANIFEST}") if path.parts[-3] != "drafts"}
        now = {path: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}
        again = {path for path, file in self.seen.items() if now.get(path) != file}
        assert not again, f"committed twice, or gone: {sorted(again)}"
        self.seen = now
