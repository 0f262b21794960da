"""Documents -> rows of token ids. Nothing is ever padded: a method would calibrate on what no user will send.

    pack        documents end to end, cut into rows of the same length; what does not fill a row is left out
    truncate    a document a row, cut at the length; a shorter one is a shorter row

Packed texts have the tokenizer's eos between them and nothing that it puts before a text (a BOS); a row begins anywhere
in a document. A truncated text begins with what the tokenizer puts there, as a prompt does. A conversation is what the
chat template makes of it, either way: the marks of its turns are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.calibrators._documents import Document
from quantize.chat import ChatTemplate, template_of
from quantize.errors import DataError
from quantize.handed import Drawn, Progress

__all__ = ["Packing", "Wanted", "rows_of"]

Packing = Annotated[
    Literal["pack", "truncate"],
    Field(description="`pack`: documents end to end, rows all full; `truncate`: a document a row, cut."),
]

_NO_TEMPLATE = "Give the documents as `text` instead of `messages`, or the model a chat_template.jinja."
#: A row of one token predicts nothing.
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """`samples` rows of at most `length` tokens: the first ones, or with a `seed` some of all that there are."""

    samples: int
    length: int
    packing: Packing
    seed: int | None


class _Tokens:
    """Ids of documents by a checkpoint's tokenizer. The chat template is looked for when it is first needed."""

    def __init__(self, checkpoint: Path, packing: Packing) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._checkpoint, self._alone = checkpoint, packing == "truncate"
        self._template: ChatTemplate | None = None
        eos = self._tokenizer.eos_token_id
        self._between = [] if eos is None or self._alone else [eos]

    def of(self, document: Document) -> list[int]:
        """The ids of a document, and in packing those that come before the next."""
        if not document.said.strip() and (self._alone or document.messages):
            return []
        if not document.messages:
            found = self._tokenizer(document.text, add_special_tokens=self._alone, verbose=False).input_ids
            return [*found, *self._between]
        if self._template is None:
            self._template = template_of(self._tokenizer, self._checkpoint, _NO_TEMPLATE)
        text = self._template.render(document.messages, document.where, ended=True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


@dataclass(slots=True)
class _Read:
    """What was read so far; `cut` says of each truncated row whether it was longer."""

    documents: list[str]
    empty: int = 0
    cut: list[bool] = field(default_factory=list)


def rows_of(
    documents: Iterable[Document], wanted: Wanted, checkpoint: Path, where: str, progress: Progress, total: int | None
) -> Drawn:
    """Rows of documents, read only as far as they are needed. `where` is named in errors; `total` counts documents.

    Raises DataError where there are none, where they make too few rows, and for a chat without a template.
    """
    import torch

    tokens, read = _Tokens(checkpoint, wanted.packing), _Read([])
    make: Callable[..., list[list[int]]] = _packed if wanted.packing == "pack" else _truncated
    rows = make(_ids(documents, tokens, read, progress, total), wanted, read)
    if len(rows) < wanted.samples or len(read.documents) == read.empty:
        raise _too_few(len(rows), wanted, read, where)
    chosen = _chosen(len(rows), wanted)
    facts: dict[str, Any] = {"packing": wanted.packing, "documents": len(read.documents), "empty": read.empty}
    if wanted.packing == "truncate":
        facts["cut"] = sum(read.cut[number] for number in chosen)
    made = (torch.tensor(rows[number], dtype=torch.int64) for number in chosen)
    return Drawn(tuple(made), tuple(read.documents), facts)


def _ids(
    documents: Iterable[Document], tokens: _Tokens, read: _Read, progress: Progress, total: int | None
) -> Iterable[list[int]]:
    for number, document in enumerate(documents, start=1):
        read.documents.append(document.said)
        read.empty += not document.said.strip()
        progress("tokenizing", number, total)
        yield tokens.of(document)


def _packed(documents: Iterable[list[int]], wanted: Wanted, _read: _Read) -> list[list[int]]:
    enough = wanted.samples * wanted.length
    packed: list[int] = []
    for ids in documents:
        packed += ids
        if wanted.seed is None and len(packed) >= enough:
            break
    return [packed[start : start + wanted.length] for start in range(0, len(packed) - wanted.length + 1, wanted.length)]


def _truncated(documents: Iterable[list[int]], wanted: Wanted, read: _Read) -> list[list[int]]:
    rows = []
    for ids in documents:
        if len(ids) < _LEAST:
            continue
        read.cut.append(len(ids) > wanted.length)
        rows.append(ids[: wanted.length])
        if wanted.seed is None and len(rows) == wanted.samples:
            break
    return rows


def _chosen(rows: int, wanted: Wanted) -> list[int]:
    """The first rows; or, by the seed, some of all, in their order."""
    import torch

    if wanted.seed is None:
        return list(range(wanted.samples))
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(wanted.seed))[: wanted.samples]
    return [int(number) for number in drawn.sort().values]


def _too_few(rows: int, wanted: Wanted, read: _Read, where: str) -> DataError:
    said = len(read.documents) - read.empty
    if not said:
        what = f"{len(read.documents)} documents, all empty" if read.documents else "no document"
        return DataError(f"the calibration text holds {what}.", where=where, fix="Add text.")
    if wanted.packing == "truncate":
        what = f"the text has {rows} documents of {_LEAST} tokens or more, a row each; the recipe asks for "
        what += f"{wanted.samples}."
        fix = f"Set samples to {rows} or fewer, or add documents." if rows else "Add text."
    else:
        what = f"the text makes {rows} rows of {wanted.length} tokens, the recipe asks for {wanted.samples}."
        fix = f"Set samples to {rows} or fewer, shorten the rows, or add text." if rows else "Add text."
    return DataError(what, where=where, fix=fix)
