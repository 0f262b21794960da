"""A socket between a stage and its child, for those whose own output is a library's to write into."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from quantize.child import Child

__all__ = ["ChildSocket"]

_POLL_SECONDS = 0.05
#: Bytes that an address of a socket may have on every system, the file's name included.
_LONGEST_ADDRESS = 100


class ChildSocket:
    """A Unix socket at `address`, in a folder of its own, that one child connects to. Close it when it has."""

    def __init__(self) -> None:
        self._folder = _short_folder()
        self.address = self._folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self.address))
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    def accept(self, child: Child, seconds: float) -> socket.socket | None:
        """The child's connection; None where it ended before, or `seconds` are over."""
        self._listener.settimeout(_POLL_SECONDS)
        deadline = time.monotonic() + seconds
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if not child.running or time.monotonic() > deadline:
                    return None
            else:
                return connection

    def close(self) -> None:
        """Listen no more, and leave nothing on disk."""
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _short_folder() -> Path:
    """A new private folder for a socket; the system's own place where TMPDIR is too deep for a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="quantize-"))
    if len(os.fsencode(folder / "socket")) <= _LONGEST_ADDRESS:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="quantize-", dir=Path("/tmp")))  # noqa: S108 (mkdtemp makes it private)
