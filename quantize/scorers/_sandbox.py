"""Running a command on one answer: its own empty folder, no environment, limits, a deadline; `_box` shuts it in."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quantize.errors import QuantizeError
from quantize.scorers import _box

__all__ = ["Ended", "Sandbox", "sandbox"]

#: Bytes of a file that the command writes, and of its output that are read.
_FILE_BYTES, _OUTPUT_BYTES = 64 << 20, 1 << 20
_OPEN_FILES, _PROCESSES = 256, 64
#: What a command gets of its own, in words.
_OWN = {
    "network": "no network",
    "processes": "processes of its own",
    "sight": "no sight of others",
    "files": "writes in its folder alone",
}
#: What is tried, the strictest first.
_APART = (tuple(_OWN), ("network", "processes", "files"), ("network", "processes"), ("network",), ("processes",), ())
#: How long a probe of what the machine allows may take.
_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its status (a signal as its negative number; None: at its deadline), and what it wrote."""

    status: int | None
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What commands are held in. `apart` is what they get of their own; memory in bytes, `seconds` to the deadline."""

    apart: tuple[str, ...]
    memory: int
    seconds: float

    def enforced(self) -> str:
        """What is enforced on this machine, in words."""
        own = [_OWN[name] for name in self.apart]
        if self._counted:
            own.append(f"{_PROCESSES} processes at most")
        limits = f"{self.memory / 2**30:g} GB of memory each, {self.seconds:g} s, files of {_FILE_BYTES >> 20} MB"
        return ", ".join([*own, limits])

    def run(self, command: Sequence[str], given: bytes) -> Ended:
        """Run it in an empty folder with `given` on its standard input, and end all of it at the deadline."""
        with tempfile.TemporaryDirectory(prefix="quantize-score-", ignore_cleanup_errors=True) as place:
            outside, inside = Path(place), Path(place) / "work"
            inside.mkdir()
            (outside / "in").write_bytes(given)
            spec = json.dumps({"run": list(command), "limits": self._limits(), "apart": list(self.apart)})
            with (
                (outside / "in").open("rb") as stdin,
                (outside / "out").open("w+b") as stdout,
                (outside / "err").open("w+b") as stderr,
            ):
                process = subprocess.Popen(
                    [sys.executable, "-I", _box.__file__, spec],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=inside,
                    env=_environment(inside),
                    start_new_session=True,
                )
                try:
                    status: int | None = process.wait(self.seconds)
                except subprocess.TimeoutExpired:
                    status = None
                finally:
                    # What is left of it, too: a command that has ended may have left processes behind.
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                return Ended(_signed(status), _head(outside / "out"), _head(outside / "err"))

    @property
    def whole(self) -> bool:
        """Whether nothing of what there is to enforce is missing."""
        return set(self.apart) == set(_OWN)

    @property
    def _counted(self) -> bool:
        """Whether the number of processes is limited: the kernel counts those of a user, and never root's."""
        return bool(self.apart) and os.getuid() != 0

    def _limits(self) -> dict[str, int]:
        limits = {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_FSIZE": _FILE_BYTES,
            "RLIMIT_NOFILE": _OPEN_FILES,
            "RLIMIT_CORE": 0,
        }
        return {**limits, "RLIMIT_NPROC": _PROCESSES} if self._counted else limits


def sandbox(memory: int, seconds: float) -> Sandbox:
    """The strictest sandbox that this machine allows."""
    return Sandbox(_allowed(), memory, seconds)


@cache
def _allowed() -> tuple[str, ...]:
    for apart in _APART:
        ended = Sandbox(apart, 1 << 30, _PROBE_SECONDS).run([sys.executable, "-I", "-S", "-c", "print(1)"], b"")
        if ended.status == 0 and ended.output.strip() == "1":
            return apart
    raise QuantizeError(
        f"this machine runs no command: {ended.errors.strip() or f'status {ended.status}'}.",
        fix="Score these answers with another scorer, or elsewhere.",
    )


def _environment(place: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(place),
        "TMPDIR": str(place),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _signed(status: int | None) -> int | None:
    return 128 - status if status is not None and status > 128 else status


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_OUTPUT_BYTES).decode("utf-8", errors="replace")
