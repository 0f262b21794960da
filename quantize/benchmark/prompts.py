"""Reading a user's prompts from JSON lines: every line checked before anything is spent, every error with file:line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import DataError

__all__ = ["Prompt", "load_prompts"]

_KEYS = {"prompt", "output_tokens"}
_EXAMPLE = 'A line is {"prompt": "Write a poem.", "output_tokens": 64}; output_tokens may be left out.'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and how many tokens its answer must have (None: as the recipe says); `where` is its file:line."""

    text: str
    output_tokens: int | None
    where: str


def load_prompts(path: Path) -> list[Prompt]:
    """The prompts of a `.jsonl` file, in its order. Raises DataError naming file:line."""
    try:
        # Not splitlines(): JSON lets a text hold U+2028 and its like as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"this is not UTF-8 text ({error.reason}).", where=str(path)) from None
    except OSError as error:
        raise DataError(
            f"the prompts cannot be read ({error.strerror}).",
            where=str(path),
            fix="Check benchmark.requests.path in the recipe.",
        ) from None
    prompts = [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError("there are no prompts.", where=str(path), fix=_EXAMPLE)
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    data = _object(line, where)
    text, answer = data["prompt"], data.get("output_tokens")
    if not isinstance(text, str) or not text.strip():
        raise DataError("'prompt' must be a text that is not empty.", where=where)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text holds half of a surrogate pair, which no tokenizer takes.", where=where) from None
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, int) or answer < 2):
        raise DataError(
            f"'output_tokens' is {answer!r}.",
            where=where,
            fix="Give a whole number from 2 on: the time between tokens needs two.",
        )
    return Prompt(text, answer, where)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"this line is not JSON ({error}).", where=where, fix=_EXAMPLE) from None
    if not isinstance(data, dict):
        raise DataError("a prompt is a JSON object.", where=where, fix=_EXAMPLE)
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise DataError(
            f"there is no key {unknown[0]!r} in a prompt.", where=where, fix=f"Keys: {', '.join(sorted(_KEYS))}."
        )
    if "prompt" not in data:
        raise DataError("the key 'prompt' is missing.", where=where, fix=_EXAMPLE)
    return data
