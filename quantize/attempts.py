"""How often a variant has been tried on one eval set.

Trying again and again on the same items finds a false pass in the end. So the k-th artifact of a variant that is shown
one eval set, against one baseline, is judged at alpha * 6 / (pi^2 k^2): over all attempts together these add up to
alpha. An artifact keeps its number: judging it again, by whatever gates, is no new attempt. Where a recipe has several
evals, each counts for itself, and the greatest number holds for all.

The ledger is what the registry's versions say of themselves, and a file in the store, which is written before an
artifact is shown its first item: runs that release nothing, and those that are killed, are attempts too. What it cannot
see are attempts under another variant's name, and those in another store that were never released.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantize.errors import StoreError
from quantize.record import digest
from quantize.registry import VersionState
from quantize.store import Store, sync, writing

__all__ = ["ATTEMPT", "Ledger", "basis", "note", "tags_of"]

#: A version's tag, before the first sixteen digits of the basis: which attempt its artifact was.
ATTEMPT = "attempt."
FILE = "attempts.jsonl"
_DIGITS = 16


def basis(baseline: str, evals: str, variant: str) -> str:
    """The digest of what attempts have in common: the baseline's bytes, one eval's items and the variant's name."""
    return digest({"baseline": baseline, "evals": evals, "variant": variant})


@dataclass
class Ledger:
    """Attempt numbers by basis and artifact digest."""

    known: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, versions: Iterable[VersionState]) -> Ledger:
        """What the store and the registry's versions tell. Raises StoreError for a ledger that cannot be read."""
        ledger = cls.of_versions(versions)
        path = store.root / FILE
        if path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if line.strip():
                    ledger.add(*_entry(line, path, number))
        return ledger

    @classmethod
    def of_versions(cls, versions: Iterable[VersionState]) -> Ledger:
        """What the registry's versions tell."""
        ledger = cls()
        for version in versions:
            for tag, number in version.tags.items():
                if tag.startswith(ATTEMPT) and number.isdecimal():
                    ledger.add(tag.removeprefix(ATTEMPT), version.artifact_digest, int(number))
        return ledger

    def add(self, basis: str, artifact: str, attempt: int) -> None:
        """Note an attempt; where two sources disagree, the later number counts."""
        key = (basis[:_DIGITS], artifact)
        self.known[key] = max(attempt, self.known.get(key, 0))

    def knows(self, basis: str, artifact: str) -> bool:
        """Whether the artifact has a number on this basis."""
        return (basis[:_DIGITS], artifact) in self.known

    def attempt(self, bases: Sequence[str], artifact: str) -> int:
        """The number of this artifact: the one it had, or the next; the greatest over all bases, 1 where none is."""
        return max((self._attempt(basis[:_DIGITS], artifact) for basis in bases), default=1)

    def _attempt(self, ground: str, artifact: str) -> int:
        before = [number for (one, _), number in self.known.items() if one == ground]
        return self.known.get((ground, artifact), max(before, default=0) + 1)


def note(store: Store, bases: Sequence[str], artifact: str, attempt: int) -> None:
    """Write down, before it happens, that an artifact is shown an eval set.

    A line that a full disk has cut off spoils itself and not the next one.
    """
    path = store.root / FILE
    entries = [{"basis": basis[:_DIGITS], "artifact": artifact, "attempt": attempt} for basis in bases]
    with writing(path):
        store.root.mkdir(parents=True, exist_ok=True)
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(f"{json.dumps(entry)}\n" for entry in entries))
        sync(path)


def tags_of(bases: Sequence[str], attempt: int) -> dict[str, str]:
    """The tags under which a version keeps its attempt number."""
    return {f"{ATTEMPT}{basis[:_DIGITS]}": str(attempt) for basis in bases}


def _entry(line: str, path: Path, number: int) -> tuple[str, str, int]:
    try:
        entry = json.loads(line)
        return str(entry["basis"]), str(entry["artifact"]), int(entry["attempt"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "this line is no attempt of this program.",
            where=f"{path}:{number}",
            fix="Remove the line if a crash cut it off; it counts how often variants were tried.",
        ) from error
