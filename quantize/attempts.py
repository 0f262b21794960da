"""How often a variant has been tried on one eval set.

Trying again and again on the same items finds a false pass in the end. So the k-th artifact of a variant that is judged
on one eval set, against one baseline, is judged at alpha * 6 / (pi^2 k^2): over all attempts together these add up to
alpha. The ledger is what the registry's versions say of themselves, and what this store has judged (runs that release
nothing are attempts too). An artifact keeps its number: judging it again is no new attempt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quantize.protocols import VersionState
from quantize.store import Store

__all__ = ["ATTEMPT", "Ledger", "tag_of"]

#: A version's tag, before the first sixteen digits of the basis: which attempt its artifact was.
ATTEMPT = "attempt."
_DIGITS = 16


@dataclass
class Ledger:
    """Attempt numbers by basis (baseline, eval set, variant) and artifact digest."""

    known: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, versions: Iterable[VersionState]) -> Ledger:
        """What the store's judgements and the registry's versions tell."""
        ledger = cls.of_versions(versions)
        for _, manifest in store.manifests("judge"):
            said = manifest.summary
            if said.get("basis") and said.get("counted"):
                ledger.add(said["basis"], said["artifact"], int(said["attempt"]))
        return ledger

    @classmethod
    def of_versions(cls, versions: Iterable[VersionState]) -> Ledger:
        """What the registry's versions tell."""
        ledger = cls()
        for version in versions:
            for tag, number in version.tags.items():
                if tag.startswith(ATTEMPT):
                    ledger.add(tag.removeprefix(ATTEMPT), version.artifact_digest, int(number))
        return ledger

    def add(self, basis: str, artifact: str, attempt: int) -> None:
        """Note an attempt; where two sources disagree, the later number counts."""
        key = (basis[:_DIGITS], artifact)
        self.known[key] = max(attempt, self.known.get(key, 0))

    def attempt(self, basis: str, artifact: str) -> int:
        """The number of this artifact: the one it had, or the next."""
        key = (basis[:_DIGITS], artifact)
        before = [number for (one, _), number in self.known.items() if one == key[0]]
        return self.known.get(key, max(before, default=0) + 1)


def tag_of(basis: str) -> str:
    """The tag under which a version keeps its attempt number."""
    return f"{ATTEMPT}{basis[:_DIGITS]}"
