"""Calibration text from a file: what the model will see in production, or as near to it as there is.

A `.txt` file is one document; a line of a `.jsonl` file and a row of a `.parquet` file are one each, a text or a
conversation (`_documents`). How they become rows is said by `packing` (`_rows`). Of all rows, `samples` are drawn by
the seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from quantize.calibrators._documents import SUFFIXES, Document, DocumentField, read_file, unreadable
from quantize.calibrators._rows import Packing, Wanted, rows_of
from quantize.handed import Drawn, Progress
from quantize.record import Record, file_sha256

__all__ = ["Text"]


def _is_text_path(value: str) -> str:
    if not value.endswith(SUFFIXES):
        raise ValueError(f"{value!r} is neither a .txt nor a .jsonl nor a .parquet file")
    return value


class Text(Record):
    """`samples` rows of `tokens` tokens from the documents in `path`."""

    kind: Literal["text"] = "text"
    online: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    path: Annotated[str, AfterValidator(_is_text_path), Field(description="A .txt, .jsonl or .parquet file.")]
    field: DocumentField = None
    samples: Annotated[int, Field(gt=0, description="Rows.")] = 128
    tokens_per_sample: int = Field(default=512, alias="tokens", gt=1, description="Tokens of a row, at most.")
    packing: Packing = "pack"
    seed: Annotated[int, Field(ge=0)] = 0
    allow_overlap: Annotated[bool, Field(description="Eval items may be among the texts; the report says so.")] = False

    @model_validator(mode="after")
    def _plain_text_has_no_fields(self) -> Text:
        if self.path.endswith(".txt") and self.field is not None:
            raise ValueError("a .txt file is one document and has no `field`")
        return self

    @property
    def even(self) -> bool:
        """Where rows are packed."""
        return self.packing == "pack"

    def identity(self) -> dict[str, Any]:
        """The config with the file's digest in place of its path. Raises DataError where it cannot be read."""
        config = self.model_dump(mode="json", by_alias=True, exclude={"path", "allow_overlap", "field", "packing"})
        # Left out where they say what was always done: tokens that were drawn before stay what they were.
        said = {"field": self.field} if self.field is not None else {}
        said |= {"packing": self.packing} if self.packing != "pack" else {}
        try:
            return {**config, **said, "type": Path(self.path).suffix, "sha256": file_sha256(Path(self.path))}
        except OSError as error:
            raise unreadable(self.path, error) from None

    def pinned(self) -> Text:
        """Itself: the file's digest is in its key."""
        return self

    def texts(self) -> list[str]:
        """Every document of the file."""
        return [document.said for document in self._documents()]

    def chats(self) -> bool:
        """Whether any document is a conversation."""
        return any(document.messages for document in self._documents())

    def _documents(self) -> list[Document]:
        return read_file(Path(self.path), self.field)

    def draw(self, checkpoint: Path, device: str, progress: Progress) -> Drawn:
        """See `protocols.Calibrator.draw`."""
        documents = self._documents()
        wanted = Wanted(self.samples, self.tokens_per_sample, self.packing, self.seed)
        return rows_of(documents, wanted, checkpoint, self.path, progress, len(documents))
