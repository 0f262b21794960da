"""Where an environment's interpreter is: named by the recipe or by a variable, or made by `quantize env create`.

An environment that the program makes lies in a folder named after it and its pins' digest, so that another version of
the pins is another folder. `environment.json`, written last, makes it one: a folder without it exists for nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from quantize.environments.interpreter import installed
from quantize.environments.pins import SHIPPED, Pins, known, read
from quantize.errors import QuantizeError, UsageError
from quantize.record import Record, digest

__all__ = [
    "KEY_LETTERS",
    "RECORD",
    "Environment",
    "Made",
    "created",
    "directory",
    "locate",
    "made",
    "read_made",
    "root",
    "variable",
]

RECORD = "environment.json"
#: Letters of the pins' digest in a folder's name.
KEY_LETTERS = 12


#: What installs packages is none of them.
_TOOLS = ("pip", "setuptools", "wheel")


class Made(Record):
    """What is written down about an environment once it works. `pins` is the digest of the pins it was made from.

    `options` are the variables by which what is compiled here was told how.
    """

    name: str
    pins: str
    packages: dict[str, str]
    python: str
    created: str
    seconds: float
    bytes: int
    options: dict[str, str] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What stands for it in keys: all that is installed, whatever the pins left open, and how it was compiled."""
        packages = {name: version for name, version in self.packages.items() if name not in _TOOLS}
        return {"pins": self.pins, "packages": digest(packages), "python": self.python, "options": self.options}


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter of its own with pinned packages, or the place where it would be (`python` None: it is missing).

    `identity` is what stands for it in keys. `place` says where it is from: the folder, the variable, or the recipe's
    key that names it.
    """

    name: str
    python: Path | None
    identity: dict[str, Any]
    source: Literal["created", "recipe", "variable"]
    place: str

    @property
    def command(self) -> str:
        """What makes it."""
        return f"quantize env create {self.name}"


def locate(name: str, named: Mapping[str, str] = MappingProxyType({}), *, pins: Path = SHIPPED) -> Environment:
    """Find an environment: named by the recipe (`named`: environment -> interpreter), by its variable, or made here.

    Raises UsageError for an unknown name, and for a named interpreter that is not there or is no Python.
    """
    known(name, pins)
    if name in named:
        place = f"environments.{name}"
        return _named(name, named[name], "recipe", place, f"Correct the path, or remove `{place}` from the recipe.")
    value = os.environ.get(variable(name))
    if value:
        mend = f"Correct the variable, or unset it and run: quantize env create {name}"
        return _named(name, value, "variable", variable(name), mend)
    return created(read(name, pins))


def created(what: Pins) -> Environment:
    """The environment of these pins that was made here, or the place where it would be."""
    place = directory(what)
    found = read_made(place)
    if found is None:
        return Environment(what.name, None, {"pins": what.key}, "created", str(place))
    return Environment(what.name, place / "bin" / "python", found.identity(), "created", str(place))


def variable(name: str) -> str:
    """The variable that names an existing interpreter: `QUANTIZE_ENV_VLLM_CPU` for `vllm-cpu`."""
    return f"QUANTIZE_ENV_{name.upper().replace('-', '_')}"


def root() -> Path:
    """The folder of the environments that are made: $QUANTIZE_ENVS, or quantize/envs in the user's data folder."""
    if own := os.environ.get("QUANTIZE_ENVS"):
        return Path(own).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        base = Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError:
        raise UsageError(
            "there is no home directory to make environments in.", fix="Set QUANTIZE_ENVS to a folder."
        ) from None
    return base / "quantize" / "envs"


def directory(what: Pins) -> Path:
    """Where an environment of these pins lies once it is made."""
    return root() / f"{what.name}-{what.key[:KEY_LETTERS]}"


def read_made(place: Path) -> Made | None:
    """What is written about the environment in `place`; None where there is none, or its interpreter is gone.

    The interpreter is a link to the Python that made it: an upgrade of the system may have removed that.
    """
    try:
        record = Made.model_validate_json((place / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise QuantizeError(
            "this is no description of an environment.", where=str(place / RECORD), fix=f"Remove {place}."
        ) from error
    return record if os.access(place / "bin" / "python", os.X_OK) else None


def made() -> Iterator[tuple[Path, Made]]:
    """Every environment that was made and works, of whatever version of the pins."""
    for record in sorted(root().glob(f"*/{RECORD}")):
        found = read_made(record.parent)
        if found is not None:
            yield record.parent, found


def _named(name: str, value: str, source: Literal["recipe", "variable"], called: str, fix: str) -> Environment:
    """An interpreter that somebody names by its path, or by that of its folder (`/opt/venv`)."""
    path = Path(value).expanduser().absolute()  # not resolved: a link is what makes a venv's interpreter
    if path.is_dir():
        path = path / "bin" / "python"
    if not path.exists():
        raise UsageError(f"there is no interpreter at {path}.", where=called, fix=fix)
    return Environment(name, path, {"packages": installed(path, called, fix).key}, source, called)
