"""What a registry can do, and its words: versions, aliases, the lines of a journal, rules for targets.

Primitives only: `transaction.py` moves aliases with them, `release.py` and `operate.py` decide which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantize.handed import Progress, silent
from quantize.verdict import Decision

__all__ = ["MANIFEST_FILE", "DatasetUse", "JournalLine", "Registry", "TargetRule", "Trade", "VersionState"]

#: The list of a version's files with their sha256, logged beside them.
MANIFEST_FILE = "quantize-manifest.json"


@dataclass(frozen=True, slots=True)
class VersionState:
    """A model version as the registry holds it: `tags` without the `quantize.` prefix, `aliases` pointing at it."""

    version: str
    variant: str
    state: str
    artifact_digest: str
    run_id: str | None
    created: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str = ""


@dataclass(frozen=True, slots=True)
class JournalLine:
    """An entry of a model's journal as the registry holds it: its number, its text, and the digest written beside it.

    `renewed` is the one thing about it that changes: the holder of a lock shows by it that it lives.
    """

    number: int
    text: str
    digest: str
    renewed: str = ""


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A dataset that a run read, and what for (`context`): evaluation or calibration.

    `source` says where it is from in the words of its `source_type`; `schema` and `profile` are JSON.
    """

    name: str
    digest: str
    context: str
    source_type: str
    source: str
    schema: str | None
    profile: str


class TargetRule(Protocol):
    """Which variants an alias that consumers load may draw from, and which of them it prefers."""

    @property
    def from_(self) -> list[str]: ...

    @property
    def prefer(self) -> str:
        """`bytes`: the fewest; `quality`: the least loss in the first blocking test on a whole eval."""
        ...


class Trade(Protocol):
    """A candidate that is smaller by the share `smaller_by` may be worse than the champion by up to `margin`."""

    @property
    def smaller_by(self) -> float: ...

    @property
    def margin(self) -> float: ...


class Registry(Protocol):
    """Versions, aliases, the journal of their moves, and the record of runs."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> Mapping[str, TargetRule]:
        """Deployment targets by alias."""
        ...

    @property
    def trade(self) -> Trade | None:
        """How much quality a smaller candidate may cost the champion that it replaces; None: no more than a gate."""
        ...

    def versions(self) -> list[VersionState]:
        """All versions of the registered model, oldest first; empty where it does not exist yet."""
        ...

    def aliases(self) -> dict[str, str]:
        """Alias -> version."""
        ...

    def publish(
        self,
        checkpoint: Path,
        manifest: str,
        variant: str,
        run_id: str,
        tags: dict[str, str],
        progress: Progress = silent,
    ) -> VersionState:
        """Create a version from a checkpoint's files and, beside them, `manifest` as MANIFEST_FILE.

        Where the weights go to a storage, only the list is logged; `progress` is told how far the files are.
        """
        ...

    def problems(self) -> list[str]:
        """What would keep versions from being published, asked before any time is spent; each with its mend."""
        ...

    def set_alias(self, alias: str, version: str | None) -> None:
        """Move an alias and read it back; None removes it. Raises RegistryError when the read-back differs."""
        ...

    def tag(self, version: str, tags: dict[str, str]) -> None:
        """Set tags (without prefix) on a version."""
        ...

    def prepare(self) -> None:
        """Create the registered model and its journal where they are not there yet; several processes may at once."""
        ...

    def append(self, text: str, digest: str) -> int:
        """Add an entry to the journal, whole or not at all; returns its number, which nobody else gets.

        Where the answer was lost and the question asked again, there may be two of it.
        """
        ...

    def entries(self, after: int) -> list[JournalLine]:
        """The journal's entries with a greater number, in their order; none where there is no journal."""
        ...

    def renew(self, number: int, value: str) -> None:
        """Set what changes about an entry."""
        ...

    def head(self) -> str:
        """What `set_head` wrote into the model's own tag; "" where nobody has."""
        ...

    def set_head(self, mark: str) -> None:
        """Write down, outside the journal, how far it went."""
        ...

    def listing(self, version: str) -> str:
        """The text of a version's MANIFEST_FILE. Raises RegistryError where it has none."""
        ...

    def description(self) -> str:
        """What the page of the registered model says; "" where nobody wrote anything."""
        ...

    def describe(self, version: str | None, text: str) -> None:
        """Write what the page of a version says, in Markdown; None: that of the registered model."""
        ...

    @property
    def lock_file(self) -> Path | None:
        """A file whose `flock` all users of this registry share; None where they are on several machines."""
        ...

    def start_run(self, name: str, parent: str | None, tags: dict[str, str]) -> str:
        """Open a run in the base model's experiment; returns its id."""
        ...

    def log(
        self, run_id: str, params: dict[str, str], metrics: dict[str, float], files: Mapping[str, Sequence[Path]]
    ) -> None:
        """Log to a run. `files` maps a directory of the run's artifacts to the files that go there."""
        ...

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetUse]) -> None:
        """Log which datasets a run read."""
        ...

    def log_decision(self, run_id: str, decision: Decision) -> None:
        """Log `decision.json` and the tags that reviewers filter by."""
        ...

    def end_run(self, run_id: str, status: str) -> None:
        """Close a run: `FINISHED` or `FAILED`."""
        ...

    def fetch(self, run_id: str, path: str, out: Path) -> Path:
        """Fetch one logged file of a run, or a folder of them, into the folder `out`; returns where it lies.

        Raises DataError where the run holds no such thing, RegistryError where nobody answers.
        """
        ...

    def download(self, version: str, out: Path, progress: Progress = silent) -> None:
        """Fetch exactly the files of a version into `out`, from where it says that they are."""
        ...
