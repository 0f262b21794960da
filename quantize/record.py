"""Values that cross a file: frozen, closed, and with one digest each.

A key in the store is the digest of a record's canonical JSON, so the form must be the same on every machine and in
every process: sorted keys, no white space, UTF-8, floats as Python's shortest round-trip text. What has no such form (a
path, a set, an object, NaN) is refused instead of being taken by its `repr`.
"""

from __future__ import annotations

import hashlib
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Record", "canonical_json", "digest", "file_sha256"]

_CHUNK = 1 << 22


class Record(BaseModel):
    """The parent of everything that is written to a file or read from one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Sha256 (hex) of the canonical JSON, defaults included: spelling out a default changes no key."""
        return digest(self.model_dump(mode="json"))


def canonical_json(value: Any) -> bytes:
    """The one byte form of `value`. Raises TypeError or ValueError for what has no stable form."""
    return json.dumps(
        _stable(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Any) -> str:
    """Sha256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Sha256 (hex) of a file's bytes, read in 4 MiB pieces."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            state.update(piece)
    return state.hexdigest()


def _stable(value: Any, place: str) -> Any:
    if isinstance(value, BaseModel):
        return _stable(value.model_dump(mode="json"), place)
    if isinstance(value, Enum):
        return _stable(value.value, place)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: a digest needs a finite number")
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}: a digest needs text keys")
        return {key: _stable(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{place} is a {type(value).__name__}: it has no stable form, so it cannot be part of a digest")
