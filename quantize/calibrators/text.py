"""Calibration text from a file: what the model will see in production, or as near to it as there is.

A `.txt` file is one document; a `.jsonl` file has one object with a "text" a line, each a document. Documents are
tokenized, laid end to end with the tokenizer's eos between them, and cut into rows of `tokens`; what does not fill a
row is dropped, so that nothing is padded. Of all rows, `samples` are drawn by the seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from quantize.errors import DataError
from quantize.handed import Progress
from quantize.record import Record, file_sha256

if TYPE_CHECKING:
    import torch

__all__ = ["Text"]


def _is_text_path(value: str) -> str:
    if not value.endswith((".txt", ".jsonl")):
        raise ValueError(f"{value!r} is neither a .txt nor a .jsonl file")
    return value


class Text(Record):
    """`samples` rows of `tokens` tokens from the documents in `path`."""

    kind: Literal["text"] = "text"
    path: Annotated[str, AfterValidator(_is_text_path), Field(description="A .txt or .jsonl file, UTF-8.")]
    samples: Annotated[int, Field(gt=0, description="Rows.")] = 128
    tokens_per_sample: int = Field(default=512, alias="tokens", gt=1, description="Tokens of a row.")
    seed: Annotated[int, Field(ge=0)] = 0
    allow_overlap: Annotated[bool, Field(description="Eval items may be among the texts; the report says so.")] = False

    def identity(self) -> dict[str, Any]:
        """The config with the file's digest in place of its path. Raises DataError where it cannot be read."""
        config = self.model_dump(mode="json", by_alias=True, exclude={"path", "allow_overlap"})
        try:
            return {**config, "type": Path(self.path).suffix, "sha256": file_sha256(Path(self.path))}
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def texts(self) -> list[str]:
        """Every document of the file."""
        return _documents(Path(self.path))

    def tokens(self, checkpoint: Path, device: str, progress: Progress) -> torch.Tensor:
        """Int64 ids (samples, tokens). Raises DataError for a broken file, or one with too little text."""
        import torch
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        documents = _documents(Path(self.path))
        between = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        packed: list[int] = []
        for number, document in enumerate(documents, start=1):
            packed += tokenizer(document, add_special_tokens=False, verbose=False).input_ids + between
            progress("tokenizing", number, len(documents))
        rows = len(packed) // self.tokens_per_sample
        if rows < self.samples:
            raise DataError(
                f"the text makes {rows} rows of {self.tokens_per_sample} tokens, the recipe asks for {self.samples}.",
                where=self.path,
                fix=f"Set samples to {rows} or fewer, shorten the rows, or add text." if rows else "Add text.",
            )
        table = torch.tensor(packed[: rows * self.tokens_per_sample]).reshape(rows, self.tokens_per_sample)
        drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))[: self.samples]
        return table[drawn.sort().values]


def _documents(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(str(path), error) from None
    if path.suffix == ".txt":
        return [content]
    documents = []
    # not splitlines(): JSON strings may hold U+2028 and its like
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"this is not JSON ({error.msg}).", where=f"{path}:{number}") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise DataError('a line must be an object with a "text" that is a string.', where=f"{path}:{number}")
        documents.append(value["text"])
    return documents


def _unreadable(path: str, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(
        f"the calibration text cannot be read ({reason}).", where=path, fix="Name a readable UTF-8 file in `path`."
    )
