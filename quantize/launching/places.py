"""What in a recipe names a file or folder: a job elsewhere needs it there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantize.including import PATH_KEYS
from quantize.recipe import Recipe

__all__ = ["Named", "elsewhere", "places_of"]

_LISTS = ("run", "files")


@dataclass(frozen=True, slots=True)
class Named:
    """A path of a recipe, absolute, and the key that `--set` replaces it by."""

    key: str
    path: str


def places_of(recipe: Recipe) -> list[Named]:
    """Every path that a recipe names, in its order."""
    return list(_walk(recipe.model_dump(mode="json", by_alias=True), ()))


def elsewhere(recipe: Recipe, claim: str) -> list[str]:
    """One sentence a path that is not below `claim`, where the job's volume is mounted."""
    found = []
    for place in places_of(recipe):
        if PurePosixPath(place.path).is_relative_to(claim):
            continue
        lies = "lies on this machine" if Path(place.path).exists() else "does not lie on this machine"
        mend = f"the job reads it from the image, or from the claim with --set {place.key}={claim}/..."
        found.append(f"{place.key}: {place.path} {lies}; {mend}")
    return found


def _walk(node: Any, way: tuple[str, ...]) -> Iterator[Named]:
    if isinstance(node, dict):
        for key, value in node.items():
            here = (*way, str(key))
            if isinstance(value, str) and (key in PATH_KEYS or way[-1:] == ("environments",)):
                yield Named(".".join(here), value)
            elif key in _LISTS and isinstance(value, list):
                files = ((at, text) for at, text in enumerate(value) if isinstance(text, str))
                yield from (Named(".".join((*here, str(at))), text) for at, text in files if text.startswith("/"))
            else:
                yield from _walk(value, here)
    elif isinstance(node, list):
        for at, item in enumerate(node):
            name = item.get("name") if isinstance(item, dict) else None
            yield from _walk(item, (*way, str(name if name is not None and "." not in name else at)))
