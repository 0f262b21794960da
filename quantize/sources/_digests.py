"""Sha256 of files, remembered by (path, size, modification time, inode), so that planning twice reads weights once.

An edit that keeps all four goes unseen here, but not in `fetch`, which hashes the bytes that it hands on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from quantize.record import file_sha256

__all__ = ["remembered_sha256"]

_SMALL = 1 << 20


def remembered_sha256(path: Path) -> str:
    """Sha256 (hex) of `path`'s bytes; files under 1 MiB are always read."""
    found = path.stat()
    if found.st_size < _SMALL:
        return file_sha256(path)
    signature = [found.st_size, found.st_mtime_ns, found.st_ino]
    memory = _memory()
    entry = _load(memory).get(str(path.resolve()))
    if entry and entry[0] == signature:
        return str(entry[1])
    value = file_sha256(path)
    known = _load(memory)
    known[str(path.resolve())] = [signature, value]
    _save(memory, known)
    return value


def _memory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "quantize" / "digests.json"


def _load(memory: Path) -> dict[str, list[object]]:
    try:
        data = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _save(memory: Path, known: dict[str, list[object]]) -> None:
    """Best effort: without a writable cache the file is hashed again next time."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(memory)
    except OSError:
        return
