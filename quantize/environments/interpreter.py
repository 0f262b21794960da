"""What is installed for an interpreter that somebody names: asked of itself, once.

Asking costs 0.2 s and more, and `plan` asks for every environment, so the answer is kept in the user's cache under the
interpreter's path. It is believed as long as none of the folders that the interpreter imports from has changed:
installing or removing a package renames an entry of one.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from quantize.errors import UsageError
from quantize.record import Record, digest

__all__ = ["OLDEST", "Installed", "ask", "installed"]

#: The oldest Python that the program's own modules run in.
OLDEST = (3, 11)
_SECONDS = 60.0

# Old enough syntax for any Python 3, so that one that is too old can say which it is.
_QUESTION = """
import json, sys
try:
    from importlib import metadata
    found = {}
    for one in metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-"), one.version)
except ImportError:
    found = {}
print(json.dumps({"python": list(sys.version_info[:3]), "paths": sys.path, "packages": found}))
"""


class Installed(Record):
    """An interpreter's own answer: its version, the folders it imports from, and the packages there with versions."""

    python: tuple[int, int, int]
    paths: tuple[str, ...]
    packages: dict[str, str]

    @property
    def version(self) -> str:
        """As in `3.11.7`."""
        return ".".join(map(str, self.python))

    @property
    def key(self) -> str:
        """Sha256 (hex) of all packages with their versions."""
        return digest(sorted(f"{name}=={version}" for name, version in self.packages.items()))


class _Remembered(Record):
    answer: Installed
    stamp: dict[str, int]


def ask(python: Path, called: str, fix: str) -> Installed:
    """Start `python` and ask it. `called` and `fix` name the setting that it comes from, and its mend, in errors.

    Raises UsageError where it cannot be started, is not a Python, or is older than `OLDEST`.
    """
    try:
        result = subprocess.run(
            [str(python), "-I", "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        answer = Installed.model_validate_json(result.stdout)
    except (OSError, subprocess.TimeoutExpired, ValidationError, UnicodeDecodeError) as error:
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise UsageError(f"{python} is not a Python interpreter{reason}.", where=called, fix=fix) from error
    if answer.python[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"{python} is Python {answer.version}; {oldest} is needed.", where=called, fix=fix)
    return answer


def installed(python: Path, called: str, fix: str) -> Installed:
    """As `ask`, from the cache where nothing has changed since."""
    place = _cache() / f"{digest(str(python))[:24]}.json"
    with suppress(OSError, ValueError):
        kept = _Remembered.model_validate_json(place.read_bytes())
        if kept.stamp == _stamp(python, kept.answer.paths):
            return kept.answer
    answer = ask(python, called, fix)
    _keep(place, _Remembered(answer=answer, stamp=_stamp(python, answer.paths)))
    return answer


def _stamp(python: Path, paths: tuple[str, ...]) -> dict[str, int]:
    """When the interpreter and the folders it imports from were changed last, in ns; 0 for what is not there."""
    return {path: _changed(Path(path)) for path in (str(python), *paths)}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path("~/.cache").expanduser()) / "quantize" / "interpreters"


def _keep(place: Path, what: _Remembered) -> None:
    """Write for the next time. Where that cannot be, the next time asks again."""
    part = place.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(what.model_dump_json(), encoding="utf-8")
        part.replace(place)
