"""Reading eval items from JSONL: every line checked before anything is spent, every error with file:line.

A key that items did not always have is left out of their digest where an item does not use it: what was measured
before stays what it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from quantize.errors import DataError
from quantize.metrics._item_keys import asked
from quantize.record import digest

__all__ = ["Item", "items_digest", "load_items"]

_KEYS = {"id", "prompt", "messages", "choices", "answer", "cluster", "slice", "stop", "max_tokens"}
#: What an item may leave out without being another one: the value that says nothing, by field.
_SILENT: dict[str, Any] = {"messages": (), "stop": None, "max_tokens": None}


@dataclass(frozen=True, slots=True)
class Item:
    """One question. With `choices`, `answer` is the index of the right one; without, the text to generate.

    Where another scorer than the text itself decides, `answer` may have been any JSON value, or none: it is text here.
    A chat has `messages` (role, content), and an empty `prompt` until a model's chat template has made one of them.
    A free answer ends at one of `stop` (None: the eval's convention) and after `max_tokens` (None: the eval's). `where`
    is the item's file:line.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] | None
    answer: int | str
    cluster: str | None
    slice: str | None
    messages: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] | None = None
    max_tokens: int | None = None
    where: str = field(default="", compare=False)

    @property
    def target(self) -> str:
        """The right answer's text."""
        return self.choices[int(self.answer)] if self.choices is not None else str(self.answer)

    @property
    def text(self) -> str:
        """What is asked, without a template's marks: the prompt, or the contents of the messages."""
        return self.prompt or "\n".join(content for _, content in self.messages)

    @property
    def conversation(self) -> str:
        """What is asked, for somebody else to read: the prompt, or each message with who says it."""
        return "\n".join(f"{role}: {content}" for role, content in self.messages) or self.prompt

    def prompt_digest(self) -> str:
        """What both arms must have been asked."""
        asked = self.prompt or [list(message) for message in self.messages]
        return digest([asked, list(self.choices) if self.choices is not None else None])


def load_items(path: str, *, texts: bool = True) -> list[Item]:
    """Items of a file, a glob or a folder of `.jsonl` files, in a stable order. Raises DataError naming file:line.

    With `texts`, the answer of an item without choices is the text that must be generated.
    """
    files = _files(path)
    stamps = tuple((found.st_mtime_ns, found.st_size) for found in (file.stat() for file in files))
    return list(_read(tuple(files), stamps, path, texts))


@lru_cache(maxsize=8)
def _read(files: tuple[Path, ...], _stamps: tuple[tuple[int, int], ...], path: str, texts: bool) -> tuple[Item, ...]:
    """The items of files as they are now: a changed file has another stamp. A plan asks for them many times."""
    seen: dict[str, str] = {}
    asked: dict[str, Item] = {}
    items: list[Item] = []
    for file in files:
        try:
            # Not splitlines(): JSON lets a text hold U+2028 and its like as they are.
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"this is not UTF-8 text ({error.reason}).", where=str(file)) from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            item = _item(line, where, texts=texts)
            if item.id in seen:
                raise DataError(
                    f"the id {item.id!r} was used at {seen[item.id]} already.", where=where, fix="Ids are unique."
                )
            twin = asked.setdefault(item.prompt_digest(), item)
            if twin is not item and (item.cluster is None or item.cluster != twin.cluster):
                raise DataError(
                    f"item {item.id!r} asks the same as {twin.id!r} ({seen[twin.id]}).",
                    where=where,
                    fix="Remove one, or give both the same cluster: as two they would be evidence that is not there.",
                )
            seen[item.id] = where
            items.append(item)
    if not items:
        raise DataError("there are no items.", where=path, fix=_EXAMPLE)
    bare = [item.id for item in items if item.cluster is None]
    if 0 < len(bare) < len(items):
        raise DataError(
            f"item {bare[0]!r} has no cluster and others have ({len(bare)} of {len(items)} have none).",
            where=seen[bare[0]],
            fix="Give every item a cluster, one of its own where it stands alone, or none at all.",
        )
    return tuple(items)


def items_digest(items: list[Item]) -> str:
    """Digest of what is asked and how it is scored, whatever file or line it stood in."""
    return digest([_said(item) for item in items])


def _said(item: Item) -> dict[str, Any]:
    """An item as plain data, without what it does not say."""
    said = {**asdict(item), "choices": list(item.choices or ())}
    del said["where"]
    return {key: value for key, value in said.items() if key not in _SILENT or value != _SILENT[key]}


_EXAMPLE = 'A line is {"id": "1", "prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}.'


def _files(path: str) -> list[Path]:
    found = Path(path)
    if found.is_dir():
        files = sorted(found.glob("*.jsonl"))
        if not files:
            raise DataError("the folder holds no .jsonl file.", where=path)
        return files
    if found.is_file():
        return [found]
    files = sorted(Path(match) for match in glob(path)) if any(c in path for c in "*?[") else []  # noqa: PTH207
    if not files:
        raise DataError("there is no such eval set.", where=path, fix="Check evals.path in the recipe.")
    return files


def _object(line: str, where: str, *, texts: bool) -> dict[str, Any]:
    """A line's JSON object, its keys checked and not yet its values."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"this line is not JSON ({error}).", where=where, fix=_EXAMPLE) from None
    if not isinstance(data, dict):
        raise DataError("an item is a JSON object.", where=where, fix=_EXAMPLE)
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("a text holds half of a surrogate pair, which no tokenizer takes.", where=where) from None
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise DataError(
            f"there is no key {unknown[0]!r} in an item.", where=where, fix=f"Keys: {', '.join(sorted(_KEYS))}."
        )
    if "prompt" in data and "messages" in data:
        raise DataError("an item has a 'prompt' or 'messages', not both.", where=where)
    needed = ["id", "messages" if "messages" in data else "prompt"]
    for key in [*needed, *(["answer"] if texts or data.get("choices") is not None else [])]:
        if key not in data:
            raise DataError(f"the key {key!r} is missing.", where=where, fix=_EXAMPLE)
    return data


def _item(line: str, where: str, *, texts: bool) -> Item:
    data = _object(line, where, texts=texts)
    for key in ("id", "prompt", "cluster", "slice"):
        value = data.get(key, "-")
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{key!r} must be a text that is not empty.", where=where)
    choices = data.get("choices")
    answer = data.get("answer", "")
    messages, stop, max_tokens = asked(data, where)
    if choices is None and not texts:
        # As the text that it was, or as JSON.
        answer = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, sort_keys=True)
    elif choices is None:
        if not isinstance(answer, str) or not answer.strip():
            raise DataError("without choices, 'answer' is the text that must be generated.", where=where)
        if "\n" in answer.strip() and not messages and stop is None:
            raise DataError(
                "'answer' has several lines; only the first one that is generated counts.",
                where=where,
                fix="Give the item a 'stop' of its own: [] where the model ends by itself.",
            )
    else:
        answer = _answer(choices, answer, where)
    return Item(
        id=data["id"],
        prompt=data.get("prompt", ""),
        choices=tuple(choices) if choices is not None else None,
        answer=answer,
        cluster=data.get("cluster"),
        slice=data.get("slice"),
        messages=messages,
        stop=stop,
        max_tokens=max_tokens,
        where=where,
    )


def _answer(choices: Any, answer: Any, where: str) -> int:
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError("'choices' is a list of at least two texts.", where=where)
    if len(set(choices)) != len(choices):
        raise DataError("two choices are the same.", where=where)
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"the answer {answer!r} is no choice.",
            where=where,
            fix=f"Give its index, 0 to {len(choices) - 1}, or its text.",
        )
    return answer
