"""What a place can do: primitives that a bucket and a shared folder have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Found", "Place", "Tick"]

#: Called with the bytes that went over since it was called last, from any thread. What it raises ends the transfer.
Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its bytes, and the sha256 that whoever put it gave along; None where the place keeps no such thing."""

    size: int
    sha256: str | None


class Place(Protocol):
    """Files under one address. Names are POSIX paths below it. What cannot be done raises StorageError."""

    @property
    def uri(self) -> str:
        """The address, which holds no secrets."""
        ...

    def find(self, name: str) -> Found | None:
        """The object of that name, or None."""
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes of a small object, or None where there is none."""
        ...

    def sha256(self, name: str) -> str:
        """The sha256 (hex) of an object, by reading all of it."""
        ...

    def put(self, name: str, source: Path, sha256: str, tick: Tick) -> bool:
        """Make an object of a file, whole or not at all; False, and nothing done, where there is one."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a small object, whole or not at all; False, and nothing done, where there is one."""
        ...

    def get(self, name: str, out: Path, tick: Tick) -> None:
        """Copy an object to the file `out`, whose folder exists."""
        ...

    def probe(self, name: str) -> None:
        """Write an object of a few bytes, find it and delete it."""
        ...

    def tidy(self, under: str) -> None:
        """Remove what killed transfers left under a folder, as far as that is allowed. It was never visible."""
        ...
