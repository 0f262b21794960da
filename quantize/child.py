"""Child processes of a stage: the engines and tools that run in an interpreter of their own.

A child writes into a log, ends when its starter ends (`guard`), has a deadline, and is spoken of in one sentence with
the cause, when the log shows a known one, and the log's tail.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from quantize import guard
from quantize.errors import EngineLost, QuantizeError

__all__ = ["KNOWN_CAUSES", "Child", "died", "link_to_package", "run", "without_secrets"]

_POLL_SECONDS = 0.1
_SIGNALS = {int(number) for number in signal.Signals}
_TAIL_LINES = 15
_SECRET = re.compile("TOKEN|PASSWORD|SECRET|CREDENTIAL|API_KEY|ACCESS_KEY", re.IGNORECASE)

#: What a log shows (a regular expression) -> what it means, and what would mend it. The first that is found counts. All
#: of these are the machine's, not the artifact's: another time it may go well.
KNOWN_CAUSES: dict[str, str] = {
    r"CUDA out of memory|OutOfMemoryError|Cannot allocate memory|MemoryError|std::bad_alloc|failed to allocate": (
        "there is not enough memory: use a larger device, a smaller context length, or fewer sequences at once"
    ),
    r"No space left on device": "the disk is full: free some space (`quantize gc` shows what can go)",
    r"[Aa]ddress already in use": "its port was taken meanwhile: run again",
    r"No module named": "its environment lacks a package: make it again (`quantize env create NAME --force`)",
}


class Child:
    """A command under a guard, started at once. `what` names it in errors; its output goes to the file `log`."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None, what: str
    ) -> None:
        self.what = what
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # By its path and isolated: neither our directory nor our libraries are to be found by the command.
        guarded = [sys.executable, "-I", guard.__file__, *map(str, command)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                guarded,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                # `python -m` looks for modules in the current directory first.
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The command's status, a signal as its negative number; None while it runs."""
        status = self._process.poll()
        return 128 - status if status is not None and status - 128 in _SIGNALS else status

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of what it wrote."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as text:
                return "".join(deque(text, lines)).rstrip()
        except OSError:
            return ""

    def wait(self, seconds: float | None) -> int:
        """Wait for the end and return the status. Raises EngineLost after `seconds`, when the command is ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (status := self.returncode) is None:
            if deadline is not None and time.monotonic() > deadline:
                self.close()
                raise EngineLost(
                    f"{self.what} did not end within {seconds:.0f} seconds and was stopped.\n{self.tail()}",
                    where=str(self.log),
                )
            time.sleep(_POLL_SECONDS)
        return status

    def gone(self, seconds: float) -> bool:
        """Whether it has ended, or does within `seconds`: one that closed its connection may need a moment."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return not self.running

    def close(self) -> None:
        """End the command and everything that it has started."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # the guard's sign
        try:
            self._process.wait(2 * guard.GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    what: str,
    seconds: float | None = None,
) -> None:
    """Run a command to its end. Raises QuantizeError when it fails or takes longer than `seconds`."""
    with Child(command, log, env=env, what=what) as child:
        if child.wait(seconds) != 0:
            raise died(child)


def died(child: Child, known: Mapping[str, str] | None = None) -> QuantizeError:
    """Why a child ended: its signal or status, the known cause that its log shows, and the log's tail.

    An EngineLost where a signal ended it, or the cause is the machine's: that says nothing of what it was given.

    `known` are causes of one engine, looked for before the general ones.
    """
    status = child.returncode
    if status == -signal.SIGKILL:
        how = "was killed (SIGKILL); the usual cause is memory: see what `quantize plan` estimates"
    elif status is not None and status < 0:
        how = f"ended by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}"
    text = child.tail(400)
    causes = {**(known or {}), **KNOWN_CAUSES}
    pattern = next((pattern for pattern in causes if re.search(pattern, text)), None)
    hint = causes[pattern] if pattern is not None else None
    sentence = f"{child.what} {how}" + (f": {hint}." if hint else ".")
    lost = (status is not None and status < 0) or pattern in KNOWN_CAUSES
    kind = EngineLost if lost else QuantizeError
    return kind(f"{sentence}\n{child.tail()}" if text else sentence, where=str(child.log))


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment without what lets its holder in somewhere: an engine that is offline needs no token."""
    return {name: value for name, value in variables.items() if not _SECRET.search(name)}


def link_to_package(folder: Path) -> Path:
    """A directory for PYTHONPATH that holds this package and nothing else, made in `folder`.

    Another interpreter must find the package without finding the libraries that are installed beside it.
    """
    place = folder / "package"
    place.mkdir(parents=True, exist_ok=True)
    link = place / "quantize"
    if not link.exists():
        link.symlink_to(Path(__file__).parent)
    return place
