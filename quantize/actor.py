"""Who decides: the name that decisions are signed with."""

from __future__ import annotations

import getpass
import os

__all__ = ["actor"]


def actor() -> str:
    """The user's name, or the number where a container gives a user no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
