"""Documents, whatever they lie in: rows with a text or a conversation, each with its place for errors.

    a.txt       one document
    a.jsonl     an object a line
    a.parquet   a row each, of which one column is read
    a dataset   a row each, as the hub streams it

In a row, `field` holds the document; without a name it is `text`, else `messages`. A value that is a string is a text;
a list of {"role", "content"} is a conversation. A row whose value is null or blank counts as empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from quantize.errors import DataError

__all__ = ["SUFFIXES", "Document", "DocumentField", "of_row", "read_file", "unreadable"]

DocumentField = Annotated[
    str | None, Field(min_length=1, description="What a row calls its document; unset: `text`, else `messages`.")
]

SUFFIXES = (".txt", ".jsonl", ".parquet")
#: Where a document is looked for, if the recipe names no field.
_FIELDS = ("text", "messages")
#: Keys of a message beside its role and content that may be there as long as they say nothing.
_SAID = {"role", "content"}
_FIX = "Name the field that holds the document, a string or a list of messages, in `field`."


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation of `messages` (role, content) that a chat template has yet to make a text of."""

    text: str
    messages: tuple[tuple[str, str], ...]
    where: str

    @property
    def said(self) -> str:
        """What is said in it, without a template's marks."""
        return self.text or "\n".join(content for _, content in self.messages)


def read_file(path: Path, field: str | None) -> list[Document]:
    """Every document of a file. Raises DataError naming the file, and the line or row of what is wrong in it."""
    try:
        if path.suffix == ".parquet":
            return list(_parquet(path, field))
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(str(path), error) from None
    return [Document(content, (), str(path))] if path.suffix == ".txt" else list(_lines(content, path, field))


def _lines(content: str, path: Path, field: str | None) -> Iterator[Document]:
    # not splitlines(): JSON strings may hold U+2028 and its like
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"this is not JSON ({error.msg}).", where=where) from None
        if not isinstance(value, dict):
            raise DataError("a line must be a JSON object.", where=where, fix='For example {"text": "..."}.')
        yield of_row(value, field, where)


def _parquet(path: Path, field: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = field or next((name for name in _FIELDS if name in names), None)
            if column is None or column not in names:
                raise _missing(field, names, str(path))
            number = 0
            for batch in file.iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield of_row({column: value}, column, f"{path} row {number}")
    except pa.ArrowException as error:
        raise unreadable(str(path), error) from None


def of_row(row: Mapping[str, Any], field: str | None, where: str) -> Document:
    """The document in a row. Raises DataError where there is none, or nothing that can be read as one."""
    name = field or next((name for name in _FIELDS if name in row), None)
    if name is None or name not in row:
        raise _missing(field, list(row), where)
    value = row[name]
    if value is None or isinstance(value, str):
        return Document(_whole(value or "", where), (), where)
    if isinstance(value, list):
        return Document("", tuple(_message(message, name, where) for message in value), where)
    raise DataError(
        f"{name!r} is neither a string nor a list of messages, but a {type(value).__name__}.", where=where, fix=_FIX
    )


def _message(message: Any, name: str, where: str) -> tuple[str, str]:
    role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f'{name!r} is a list, and not of {{"role", "content"}} with a string each.',
            where=where,
            fix='Write conversations as [{"role": "user", "content": "..."}, ...], or name another `field`.',
        )
    more = sorted(key for key, value in message.items() if key not in _SAID and value)
    if more:
        raise DataError(
            f"a message has {more[0]!r}, and only roles and contents are calibrated on.",
            where=where,
            fix="Render such conversations yourself and give them as `text`.",
        )
    return _whole(role, where), _whole(content, where)


def _whole(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("a text holds half of a surrogate pair, which no tokenizer takes.", where=where) from None
    return text


def _missing(field: str | None, names: Sequence[str], where: str) -> DataError:
    wanted = repr(field) if field is not None else "'text' and no 'messages'"
    return DataError(f"there is no {wanted} here; there is {', '.join(names) or 'nothing'}.", where=where, fix=_FIX)


def unreadable(path: str, error: Exception) -> DataError:
    """A file that is not there, not allowed, or not what its name says."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    fix = "Name a readable UTF-8 text, JSONL or Parquet file in `path`."
    return DataError(f"the calibration text cannot be read ({reason}).", where=path, fix=fix)
