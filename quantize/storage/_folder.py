"""A folder that several machines see: a file appears under its name when all of it is there, by a hard link.

A link fails where the name is taken, on local disks and on NFS alike. File systems without links get a rename instead.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantize.errors import StorageError
from quantize.record import file_sha256
from quantize.storage.place import Found, Tick

__all__ = ["Folder"]

_PIECE = 1 << 22
#: How the name of a file ends that is being written.
_PART = ".quantize-part"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Folder:
    """See `Place`. `root` has to be there: a share that is not mounted is not made anew on this machine's own disk."""

    root: Path

    @property
    def uri(self) -> str:
        """See `Place`."""
        return self.root.as_uri()

    def find(self, name: str) -> Found | None:
        """See `Place`. A folder keeps no digests."""
        with self._reached(name):
            try:
                return Found((self.root / name).stat().st_size, None)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        with self._reached(name):
            try:
                return (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def sha256(self, name: str) -> str:
        """See `Place`."""
        with self._reached(name):
            return file_sha256(self.root / name)

    def put(self, name: str, source: Path, sha256: str, tick: Tick) -> bool:
        """See `Place`."""
        return self._written(name, lambda file: _copy(source, file, tick))

    def create(self, name: str, data: bytes) -> bool:
        """See `Place`."""
        return self._written(name, lambda file: file.write(data))

    def get(self, name: str, out: Path, tick: Tick) -> None:
        """See `Place`."""
        with self._reached(name), out.open("wb") as file:
            _copy(self.root / name, file, tick)

    def probe(self, name: str) -> None:
        """See `Place`."""
        with self._reached(name):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"quantize asks whether it may write here\n")
            path.unlink(missing_ok=True)

    def tidy(self, under: str) -> None:
        """See `Place`."""
        with suppress(OSError):
            for part in (self.root / under).rglob(f"*{_PART}"):
                part.unlink(missing_ok=True)

    def _written(self, name: str, write: Callable[[IO[bytes]], object]) -> bool:
        with self._reached(name):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_PART}")
            try:
                with part.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                return _named(part, path)
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """What the system raises as StorageError."""
        if not self.root.is_dir():
            raise StorageError(
                "there is no such folder.", where=self.uri, fix="Make it, or mount the share that it is on."
            )
        try:
            yield
        except OSError as error:
            full = error.errno in _FULL
            raise StorageError(
                f"it cannot be read or written ({error.strerror or error}).",
                where=f"{self.uri}/{name}",
                fix="Free some space there." if full else "Look at who may write there, and whether it is mounted.",
            ) from error


def _named(part: Path, path: Path) -> bool:
    """Give a finished file its name; False where that is taken."""
    try:
        os.link(part, path)
    except OSError as error:
        if path.exists():
            return False
        if error.errno not in _NO_LINKS:
            raise
        part.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _copy(source: Path, file: IO[bytes], tick: Tick) -> None:
    with source.open("rb") as opened:
        while piece := opened.read(_PIECE):
            file.write(piece)
            tick(len(piece))
