"""Which module names a pattern means, as llm-compressor reads it; what groups and `ignore` make of a list of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantize.scheme import Group

__all__ = ["Hits", "hits", "matching", "named", "pattern_problem"]


@dataclass(frozen=True, slots=True)
class Hits:
    """`groups` maps a module to the groups that hit it; `ignored` are those that are left alone, hit or not."""

    groups: dict[str, tuple[str, ...]]
    ignored: frozenset[str]


def named(name: str, pattern: str) -> bool:
    """Whether `pattern` means the Linear `name`: its full name, the class, or `re:` and what the name begins with."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern in {name, "Linear"}


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that one of the patterns means, in their order."""
    return [name for name in names if any(named(name, pattern) for pattern in patterns)]


def pattern_problem(pattern: str) -> str | None:
    """Why no name can be held against a pattern; None where it can."""
    try:
        re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern!r} is no regular expression: {error}"
    return None


def hits(names: Sequence[str], groups: Sequence[Group], ignore: Sequence[str]) -> Hits:
    """What becomes of each of `names`."""
    ignored = frozenset(matching(names, ignore))
    found = {
        name: tuple(group.name for group in groups if any(named(name, pattern) for pattern in group.targets))
        for name in names
        if name not in ignored
    }
    return Hits(found, ignored)
