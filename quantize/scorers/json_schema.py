"""JSON in the text, as a schema wants it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

from quantize.errors import MissingDependency
from quantize.record import canonical_json
from quantize.scorers._each import UNREADABLE, Each, TextScorer, right_or_wrong
from quantize.scoring import Given, Scored

__all__ = ["JsonSchema"]

_FENCED = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_NOT_JSON = object()


def _is_schema(schema: dict[str, Any]) -> dict[str, Any]:
    validators, error = _jsonschema()
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(schema)
    except error as problem:
        raise ValueError(f"this is no JSON schema: {problem.message}") from None
    return schema


class JsonSchema(TextScorer):
    """Right when the JSON in the text validates, and its `fields` are equal to those of the item's answer.

    `schema` is a JSON schema (draft 2020-12 unless it says another). `fields` are names of the top level; numbers are
    equal by value. The text may surround its JSON with words or a fence, and the first that is found counts; with
    `strict` it is JSON and nothing else. References to other documents are never fetched. No JSON is no answer.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["json_schema"] = "json_schema"
    errors_at_most: ClassVar[float] = 0.0
    schema_: Annotated[dict[str, Any], AfterValidator(_is_schema), Field(alias="schema")]
    fields: tuple[str, ...] = ()
    strict: bool = False

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        if not self.fields:
            return None
        wanted = _decoded(target)
        missing = [name for name in self.fields if not isinstance(wanted, dict) or name not in wanted]
        return f"'answer' is no JSON object with the field {missing[0]!r}" if missing else None

    def open(self, kept: Path | None) -> Each:
        """See `scoring.Scorer`."""
        import referencing

        validators, _ = _jsonschema()
        kind = validators.validator_for(self.schema_, default=validators.Draft202012Validator)
        # An empty registry: what the schema refers to elsewhere is not fetched, as it would be by default.
        validator = kind(self.schema_, registry=referencing.Registry())

        def score(given: Given) -> Scored:
            found = _decoded(given.answer.strip()) if self.strict else _first(given.answer)
            if found is _NOT_JSON:
                return UNREADABLE
            text = json.dumps(found, ensure_ascii=False)
            try:
                right = validator.is_valid(found) and self._equal(found, given.target)
            except (referencing.exceptions.Unresolvable, RecursionError) as error:
                return Scored(0.0, text, f"the schema cannot be applied: {error}")
            return right_or_wrong(text, right=right)

        return Each(score)

    def _equal(self, found: Any, target: str) -> bool:
        if not self.fields:
            return True
        wanted = _decoded(target)
        held = found if isinstance(found, dict) else {}
        return all(name in held and _same(held[name], wanted[name]) for name in self.fields)


def _jsonschema() -> tuple[Any, Any]:
    try:
        from jsonschema import exceptions, validators
    except ImportError:
        raise MissingDependency(
            "answers in JSON are checked by jsonschema, which is not installed in this interpreter.",
            fix="Run: pip install jsonschema -c constraints.txt",
        ) from None
    return validators, exceptions.SchemaError


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and True is not 1."""
    return bool(_typed(one) == _typed(other))


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (isinstance(value, bool), value)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _decoded(text: str) -> Any:
    """What a text is as JSON, or `_NOT_JSON`."""
    try:
        value = _DECODER.decode(text)
        canonical_json(value)
    except (ValueError, TypeError, RecursionError):
        return _NOT_JSON
    return value


def _first(text: str) -> Any:
    """The whole text, else what stands in the first fence, else the first object or list in it."""
    for whole in (text.strip(), *(match[1].strip() for match in _FENCED.finditer(text))):
        if (value := _decoded(whole)) is not _NOT_JSON:
            return value
    place, tries = -1, 0
    while tries < _TRIES and (place := _next(text, place + 1)) >= 0:
        tries += 1
        try:
            value, _ = _DECODER.raw_decode(text, place)
            canonical_json(value)
        except (ValueError, TypeError, RecursionError):
            continue
        return value
    return _NOT_JSON


#: Brackets at which JSON is looked for: each costs a reading of what follows.
_TRIES = 200


def _next(text: str, start: int) -> int:
    places = [place for mark in "{[" if (place := text.find(mark, start)) >= 0]
    return min(places, default=-1)
