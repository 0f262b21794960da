"""Reading eval items from JSONL: every line checked before anything is spent, every error with file:line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from quantize.errors import DataError
from quantize.record import digest

__all__ = ["Item", "items_digest", "load_items"]

_KEYS = {"id", "prompt", "choices", "answer", "cluster", "slice"}
_NEEDED = ("id", "prompt", "answer")


@dataclass(frozen=True, slots=True)
class Item:
    """One question. With `choices`, `answer` is the index of the right one; without, the text to generate."""

    id: str
    prompt: str
    choices: tuple[str, ...] | None
    answer: int | str
    cluster: str | None
    slice: str | None

    @property
    def target(self) -> str:
        """The right answer's text."""
        return self.choices[int(self.answer)] if self.choices is not None else str(self.answer)

    def prompt_digest(self) -> str:
        """What both arms must have been asked."""
        return digest([self.prompt, list(self.choices) if self.choices is not None else None])


def load_items(path: str) -> list[Item]:
    """Items of a file, a glob or a folder of `.jsonl` files, in a stable order. Raises DataError naming file:line."""
    files = _files(path)
    stamps = tuple((found.st_mtime_ns, found.st_size) for found in (file.stat() for file in files))
    return list(_read(tuple(files), stamps, path))


@lru_cache(maxsize=8)
def _read(files: tuple[Path, ...], _stamps: tuple[tuple[int, int], ...], path: str) -> tuple[Item, ...]:
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
            item = _item(line, where)
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
    return digest([{**asdict(item), "choices": list(item.choices or ())} for item in items])


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


def _object(line: str, where: str) -> dict[str, Any]:
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
    for key in _NEEDED:
        if key not in data:
            raise DataError(f"the key {key!r} is missing.", where=where, fix=_EXAMPLE)
    return data


def _item(line: str, where: str) -> Item:
    data = _object(line, where)
    for key in ("id", "prompt", "cluster", "slice"):
        value = data.get(key, "-")
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{key!r} must be a text that is not empty.", where=where)
    choices = data.get("choices")
    answer = data["answer"]
    if choices is None:
        if not isinstance(answer, str) or not answer.strip():
            raise DataError("without choices, 'answer' is the text that must be generated.", where=where)
        if "\n" in answer.strip():
            raise DataError("'answer' has several lines; only the first one that is generated counts.", where=where)
    else:
        answer = _answer(choices, answer, where)
    return Item(
        data["id"],
        data["prompt"],
        tuple(choices) if choices is not None else None,
        answer,
        data.get("cluster"),
        data.get("slice"),
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
