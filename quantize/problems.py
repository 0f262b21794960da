"""From a validation error to a sentence with its place: `recipes/a.yaml:6 variants.0.scheme: ... Did you mean ...`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from quantize.errors import RecipeError

__all__ = ["Locator", "Place", "describe", "nearest"]

_TEXT_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
Place = tuple[str | int, ...]


class Locator:
    """Knows file and line of every key of a YAML text, and which values came from the command line instead.

    `files` are the text's own, and those that it was laid over.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._lines: dict[Place, str] = {}
        self._flags: dict[Place, str] = {}
        self.files: tuple[Path, ...] = (path,)
        self.problems: list[str] = []

    def data(self) -> dict[str, Any]:
        """The text as plain data. Raises RecipeError for broken YAML, or anything but a mapping.

        Keys given twice are kept in `problems`, to be told with all others.
        """
        try:
            node = yaml.compose(self._text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(self._text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise RecipeError([f"{self._path}:{line}: this is not YAML: {error.problem or error.context}"]) from None
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise RecipeError([f"{self._path}:{line}: this is not YAML: {error.reason}"]) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RecipeError([f"{self._path}:1: this is not YAML: {error}"]) from None
        if not isinstance(data, dict) or node is None:
            raise RecipeError([f"{self._path}:1: a recipe is a mapping with keys such as `model:` and `variants:`"])
        self._walk(node, ())
        return data

    def overridden(self, place: Place, flag: str) -> None:
        """Remember that `--set` gave this value."""
        self._flags[place] = flag
        # The text no longer says what stands at or below this place.
        self._lines = {known: line for known, line in self._lines.items() if known[: len(place)] != place}

    def where(self, place: Place) -> str:
        """`file:line dotted.place`, or the flag that set it; the nearest enclosing line where the key is missing."""
        dotted = ".".join(str(part) for part in place)
        for length in range(len(place), -1, -1):
            if place[:length] in self._flags:
                return f"{self._flags[place[:length]]} ({dotted})"
            if place[:length] in self._lines:
                return f"{self._lines[place[:length]]} {dotted}".rstrip()
        return f"{self._path}:1 {dotted}".rstrip()

    def lie_over(self, below: Locator, replaced: list[Place]) -> None:
        """Take up what stands in another file below this one, but for what was `replaced`."""
        kept = {
            place: line
            for place, line in below._lines.items()
            if not any(place[: len(gone)] == gone for gone in replaced)
        }
        self._lines = {**kept, **self._lines}
        self.files = (*self.files, *(file for file in below.files if file not in self.files))
        self.problems = [*self.problems, *below.problems]

    def in_order(self, problems: list[str]) -> list[str]:
        """Problems as a reader meets them, file by file; those of the command line first."""

        def place(problem: str) -> tuple[int, int]:
            for index, file in enumerate(self.files):
                line = problem.removeprefix(f"{file}:").partition(" ")[0].rstrip(":")
                if line.isdigit():
                    return index, int(line)
            return 0, 0

        return sorted(problems, key=place)

    def _walk(self, node: yaml.Node, place: Place, within: tuple[int, ...] = ()) -> None:
        self._lines.setdefault(place, f"{self._path}:{node.start_mark.line + 1}")
        if id(node) in within:
            raise RecipeError([f"{self.where(place)}: the value contains itself"])
        within = (*within, id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                child = (*place, str(key.value))
                line = f"{self._path}:{key.start_mark.line + 1}"
                at = f"{line} {'.'.join(map(str, child))}"
                if child in self._lines:
                    self.problems.append(f"{at}: the key is given twice")
                if key.tag not in _TEXT_KEYS:
                    self.problems.append(f"{at}: YAML reads this key as something other than text: put it in quotes")
                self._lines[child] = line
                self._walk(value, child, within)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*place, index), within)


def describe(problem: Mapping[str, Any], data: Any, locator: Locator, schema: dict[str, Any]) -> str:
    """One pydantic problem as a line that a user can act on. `data` is what was validated."""
    loc = tuple(problem["loc"])
    kind, message = problem["type"], str(problem["msg"])
    context = problem.get("ctx") or {}
    place = _in_data(loc, data)
    if kind == "extra_forbidden" and place:
        names = _properties(place[:-1], data, schema)
        return f"{locator.where(place)}: there is no key {place[-1]!r} here. {nearest(str(place[-1]), names)}"
    if kind == "missing":
        return f"{locator.where((*place, loc[-1]))}: the key {loc[-1]!r} is missing"
    if kind == "union_tag_not_found":
        return f"{locator.where(place)}: the key 'kind' is missing: one of {_tags(place, schema, data)}"
    if kind == "union_tag_invalid":
        names = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
        return f"{locator.where((*place, 'kind'))}: {context['tag']!r} is not a kind. {nearest(context['tag'], names)}"
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"{locator.where(place)}: {problem['input']!r} is not known here: it is one of {allowed}"
    if kind == "inconsistent" and message.startswith("the key "):
        place = loc  # of a key that is not there
    text = message.removeprefix("Value error, ")
    return f"{locator.where(place)}: {text[:1].lower() + text[1:] if not text.startswith(('W', 'F')) else text}"


def nearest(word: str, names: list[str]) -> str:
    """A question for the name that was probably meant, or the list of all names."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."


def _in_data(loc: Place, data: Any) -> Place:
    """The part of a pydantic location that exists in the data: union tags are names of types, not of keys."""
    place: list[str | int] = []
    node = data
    for part in loc:
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
            place.append(part)
            node = _into(node, part)
    return tuple(place)


def _schema_at(place: Place, data: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema node that describes `place`, its references and its discriminated union resolved by the data."""
    node, value = schema, data
    for part in (*place, None):
        while "$ref" in node or "oneOf" in node or "anyOf" in node:
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
            elif "discriminator" in node:
                mapping = node["discriminator"]["mapping"]
                kind = value.get("kind") if isinstance(value, dict) else None
                node = {"$ref": mapping[kind]} if kind in mapping else {}
            else:
                options = [
                    option for option in node.get("anyOf", node.get("oneOf", [])) if option.get("type") != "null"
                ]
                node = options[0] if options else {}
        if part is None:
            return node
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties") or {})
        value = _into(value, part)
    return node


def _into(value: Any, part: str | int) -> Any:
    """The member of a mapping or a list, or None."""
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) else None


def _properties(place: Place, data: Any, schema: dict[str, Any]) -> list[str]:
    return list(_schema_at(place, data, schema).get("properties", {}))


def _tags(place: Place, schema: dict[str, Any], data: Any) -> str:
    parent = _schema_at(place[:-1], data, schema)
    node = (
        parent.get("items", {})
        if place and isinstance(place[-1], int)
        else parent.get("properties", {}).get(place[-1], {})
    )
    if "anyOf" in node:
        node = next(option for option in node["anyOf"] if option.get("type") != "null")
    return ", ".join(node.get("discriminator", {}).get("mapping", {})) or "the documented ones"
