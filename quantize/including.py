"""Recipes of several files: `include: [common.yaml]`, and what in a recipe is a path.

What is included lies below what includes it: mappings are merged key by key, anything else is replaced, and so is a
mapping of another `kind`. Of several files the later lies above. The result is one recipe, as if it had been written
whole: its digest, its copy in the run's folder and all that is keyed follow from it and not from how it was cut up. A
line in an error is that of the file where the value stands.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quantize.errors import RecipeError
from quantize.problems import Locator, Place

__all__ = ["PATH_KEYS", "read", "resolve_paths"]

PATH_KEYS = frozenset({"path", "include_path"})
#: Lists in which a text may name a file: a scorer's command, and what it reads.
_FILE_LISTS = frozenset({"run", "files"})
#: The key of a mapping whose values are all paths.
_ENVIRONMENTS = "environments"
_INCLUDE = "include"
#: Files within files, at most: more is a mistake that nobody reads through.
_DEPTH = 8


def read(path: Path) -> tuple[str, dict[str, Any], Locator]:
    """The text of a recipe, its data with all that it includes, and where each value stands.

    Relative paths of included files are those seen from the recipe's own directory. Raises RecipeError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" There are {', '.join(near)}." if near else ""
        raise RecipeError([f"{path}: there is no such recipe.{hint}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as UTF-8 text ({error})."]) from None
    locator = Locator(path, text)
    return text, _with_included(locator.data(), locator, (path,), path.absolute().parent), locator


def _with_included(data: dict[str, Any], above: Locator, chain: tuple[Path, ...], root: Path) -> dict[str, Any]:
    """`data` over all that it includes; `above` learns where that stands. `chain` are the files, outermost first."""
    named = data.pop(_INCLUDE, [])
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise RecipeError([f"{above.where((_INCLUDE,))}: give a list of files: `include: [common.yaml]`"])
    merged: dict[str, Any] = {}
    below: Locator | None = None
    for index, name in enumerate(named):
        path = chain[-1].parent / Path(name).expanduser()
        found, locator = _included(path, above.where((_INCLUDE, index)), chain, root)
        merged, replaced = _over(found, merged)
        if below is not None:
            locator.lie_over(below, replaced)
        below = locator
    result, replaced = _over(data, merged)
    if below is not None:
        above.lie_over(below, replaced)
    return result


def _included(path: Path, where: str, chain: tuple[Path, ...], root: Path) -> tuple[dict[str, Any], Locator]:
    """One included file, with what it includes itself."""
    if path.resolve() in {known.resolve() for known in chain}:
        way = " includes ".join(str(known) for known in (*chain, path))
        raise RecipeError([f"{where}: a file cannot include itself ({way})"])
    if len(chain) > _DEPTH:
        raise RecipeError([f"{where}: files are included {_DEPTH} deep at most"])
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([f"{where}: there is no file {path} (it is looked for beside {chain[-1]})"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{where}: {path} cannot be read as UTF-8 text ({error})"]) from None
    locator = Locator(path, text)
    data = locator.data()
    if path.absolute().parent != root:
        resolve_paths(data, path.absolute().parent, root)
    return _with_included(data, locator, (*chain, path), root), locator


def _over(data: dict[str, Any], below: dict[str, Any]) -> tuple[dict[str, Any], list[Place]]:
    """`data` laid over `below`, and the places at which something below was replaced."""
    result = dict(below)
    replaced: list[Place] = []
    for key, value in data.items():
        other = below.get(key)
        if isinstance(value, dict) and isinstance(other, dict) and _alike(value, other):
            result[key], within = _over(value, other)
            replaced += [(key, *place) for place in within]
        else:
            result[key] = value
            replaced.append((key,))
    return result, replaced


def _alike(value: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two mappings say something of one thing: those of two kinds have no keys in common but by chance."""
    return "kind" not in value or "kind" not in other or value["kind"] == other["kind"]


def resolve_paths(node: Any, base: Path, seen_from: Path | None = None) -> None:
    """Make every relative path below `node` absolute, in place; with `seen_from`, relative to that directory."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in PATH_KEYS and isinstance(value, str):
                node[key] = _placed(base, value, seen_from)
            elif key in _FILE_LISTS and isinstance(value, list):
                node[key] = [_file_beside(base, text, seen_from, first=not at) for at, text in enumerate(value)]
            elif key == _ENVIRONMENTS and isinstance(value, dict):
                for name, place in value.items():
                    value[name] = _placed(base, place, seen_from) if isinstance(place, str) else place
            else:
                resolve_paths(value, base, seen_from)
    elif isinstance(node, list):
        for item in node:
            resolve_paths(item, base, seen_from)


def _placed(base: Path, value: str, seen_from: Path | None) -> str:
    path = Path(value).expanduser()
    if seen_from is None or path.is_absolute():
        return str(base / path)
    return os.path.relpath(base / path, seen_from)


def _file_beside(base: Path, text: Any, seen_from: Path | None, *, first: bool) -> Any:
    """A text that names a file as a path; any other, however long, as it is.

    What is run (`first`) is a path as soon as it has a slash, as for a shell, whether the file is there yet or not.
    """
    if not isinstance(text, str) or not text:
        return text
    # Not `Path.is_file`, which raises where a text can be the name of nothing.
    named = (first and "/" in text) or os.path.isfile(base / text)  # noqa: PTH113
    if not named:
        return text
    if seen_from is None or Path(text).is_absolute():
        return str(base / text)
    moved = os.path.relpath(base / text, seen_from)
    return moved if not first or "/" in moved else f"./{moved}"
