"""What a notice can be about."""

from __future__ import annotations

from typing import Literal

__all__ = ["DEFAULT", "What"]

#: `waiting` is a version that passed and waits for a person; `held` one that did not show enough.
What = Literal["promoted", "waiting", "held", "rejected", "stale", "rolled_back"]

#: All but `stale`, which the next run decides anew.
DEFAULT: tuple[What, ...] = ("promoted", "waiting", "held", "rejected", "rolled_back")
