"""Parts of a long stage, committed as they come: the looks of an evaluation.

A part is an artifact of its own, keyed by what its stage measures and by its number, and not by the rules that decide
how many parts are wanted. So a stage that was killed goes on after its last part, and one whose rules were changed
starts from the parts that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quantize import faults
from quantize.artifact import Provenance
from quantize.errors import LeaseLost
from quantize.leases import Lease
from quantize.record import digest
from quantize.store import Store, writing

__all__ = ["LOOK", "StoreParts"]

LOOK = "look"


@dataclass
class StoreParts:
    """The parts of one stage in a store; see `handed.Parts`. `used` are the keys that were found or kept.

    `provenance` is called when a part is committed, with the seconds since the one before it.
    """

    store: Store
    base: str
    name: str
    provenance: Callable[[float], Provenance]
    used: list[str] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def find(self, number: int) -> Path | None:
        """See `handed.Parts`."""
        key = self._key(number)
        if self.store.find(LOOK, key) is None:
            return None
        self.used.append(key)
        return self.store.path(LOOK, key)

    def keep(self, number: int, write: Callable[[Path], None]) -> Path:
        """See `handed.Parts`. A part that another node took over while this one slept is waited for, and taken."""
        key = self._key(number)
        while not self._kept(key, number, write):
            pass
        self.since = time.monotonic()
        faults.point("worker.look_kept")
        self.used.append(key)
        return self.store.path(LOOK, key)

    def _kept(self, key: str, number: int, write: Callable[[Path], None]) -> bool:
        """Commit a part, if it is not there; False where another node took it over meanwhile."""
        # Its own lease beside the stage's: by it `gc` knows that the draft is in use.
        with self.store.lease(LOOK, key, lambda _owner: None) as lease:
            if self.store.find(LOOK, key) is not None:
                return True
            try:
                self._commit(key, number, write, lease)
            except (LeaseLost, OSError) as error:
                # That the stage was taken over is said of another folder. Who takes a part over removes its draft.
                if isinstance(error, LeaseLost) and error.where != str(lease.folder):
                    raise
                if not _is_lost(lease):
                    raise
                return False
        return True

    def _commit(self, key: str, number: int, write: Callable[[Path], None], lease: Lease) -> None:
        draft = self.store.draft(LOOK, key, lease)
        with writing(draft):
            write(draft)
        self.store.commit(
            draft,
            kind=LOOK,
            name=f"{self.name} {number}",
            key=key,
            inputs={},
            summary={"number": number},
            provenance=self.provenance(time.monotonic() - self.since),
            lease=lease,
        )

    def _key(self, number: int) -> str:
        return digest({"parts of": self.base, "number": number})


def _is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except LeaseLost:
        return True
    return False
