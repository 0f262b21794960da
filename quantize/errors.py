"""The tree of errors: each says what happened, where, and how to mend it.

    QuantizeError           exit 1
    ├── UsageError          exit 2   the command line or a recipe is wrong
    │   └── RecipeError              one or more problems, each with file:line
    ├── SourceError                  the model given cannot be read, fetched or trusted
    ├── DataError                    an eval set, a calibration text or a row is unusable
    │   └── ClockMoved               the system's clock was set while something was timed by it
    ├── StoreError                   the artifact store: full, read-only, damaged, out of bounds
    │   └── LeaseLost                another node has taken over what this one was doing
    ├── StorageError                 a bucket or a shared folder: out of reach, or it holds other bytes
    ├── MissingDependency            an optional package is absent; names the command that installs it
    ├── EngineLost                   an engine was killed or did not answer in time: of the artifact it says nothing
    ├── StageFailed                  a stage's process ended badly; carries the tail of its log
    ├── RegistryError                MLflow refuses, or its state is not what a decision was made against
    │   └── RegistryAway             nobody answers there now; of a run it leaves the release to be done (exit 75)
    └── Interrupted         exit 75  stopped on request; the same command resumes

A user meets the message, never a traceback. Anything that is not a `QuantizeError` is a bug of ours.
"""

from __future__ import annotations

__all__ = [
    "ClockMoved",
    "DataError",
    "EngineLost",
    "Interrupted",
    "LeaseLost",
    "MissingDependency",
    "QuantizeError",
    "RecipeError",
    "RegistryAway",
    "RegistryError",
    "SourceError",
    "StageFailed",
    "StorageError",
    "StoreError",
    "UsageError",
]


class QuantizeError(Exception):
    """An error that a user can mend.

    `what` happened, `where` (a path, `file:line`, a stage), and `fix`, the sentence that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        mend = f" {self.fix}" if self.fix else ""
        return f"{place}{self.what}{mend}"


class UsageError(QuantizeError):
    """The command line is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong: `problems` holds one line each, already with its place and its mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SourceError(QuantizeError):
    """The model given cannot be read, fetched or trusted."""


class DataError(QuantizeError):
    """An eval set, a calibration text or a measured row is unusable."""


class ClockMoved(DataError):
    """The system's clock was set while something was timed by it: the times are worth nothing."""


class StoreError(QuantizeError):
    """The artifact store cannot be written, read or believed."""


class LeaseLost(StoreError):
    """Another node has taken over what this one was doing: it must not publish it any more."""


class StorageError(QuantizeError):
    """A bucket or a shared folder cannot be reached, or what is there is not what belongs there."""


class MissingDependency(QuantizeError):
    """An optional package is absent."""


class EngineLost(QuantizeError):
    """An engine's process was killed, or did not answer in time. It says nothing about what it had loaded."""


class StageFailed(QuantizeError):
    """A stage's process ended badly; `tail` holds the last lines of its log."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, tail: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.tail = tail


class RegistryError(QuantizeError):
    """The registry cannot be reached, or is not in the state that a decision was made against."""


class RegistryAway(RegistryError):
    """Nobody answers at the registry's address, or a proxy says that nobody does: later somebody may."""


class Interrupted(QuantizeError):
    """Stopped on request. What is committed stays; the same command resumes."""

    exit_code = 75
