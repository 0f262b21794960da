"""What a GGUF file says before its weights: metadata and tensor shapes, with damage told apart from foreign files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import SourceError

if TYPE_CHECKING:
    from gguf import GGUFReader

__all__ = ["GgufFile", "gguf_reader", "read_gguf"]

_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`metadata` by GGUF key, as plain Python values; `shapes` by tensor name, rows first as torch writes them."""

    path: Path
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """GGUF's name of the model family; the prefix of its hyperparameters' keys."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def hyperparameter(self, name: str) -> Any:
        """The value under the architecture's prefix, None if absent."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def token_id(self, role: str) -> int | None:
        """The id that `tokenizer.ggml.<role>_token_id` gives."""
        value = self.metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if value is None else int(value)


def gguf_reader(path: Path) -> GGUFReader:
    """The library's reader, over a plain array: views of a memory map cost it two thirds of its time."""
    import numpy as np
    from gguf import GGUFReader

    class PlainReader(GGUFReader):  # type: ignore[misc]  # the library has no types
        @property
        def data(self) -> Any:
            return self._bytes

        @data.setter
        def data(self, mapped: Any) -> None:
            self._bytes = mapped.view(np.ndarray)

    return PlainReader(path)


def read_gguf(path: Path) -> GgufFile:
    """Read the header, and check that every tensor lies inside the file.

    Raises SourceError for a missing, foreign, truncated or split file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise SourceError(
            f"the file cannot be read ({error.strerror}).", where=str(path), fix="Check the path and its permissions."
        ) from None
    if magic != _MAGIC:
        raise SourceError(
            f"this is not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}.",
            where=str(path),
            fix="Give a .gguf file, a checkpoint directory or a hub id.",
        )
    try:
        reader = gguf_reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # The reader views a memory map without looking at its length: what runs past the end surfaces as one of these.
        raise SourceError(
            f"the GGUF file is truncated or damaged ({error}).",
            where=str(path),
            fix="Download it again and compare its size or checksum with the publisher's.",
        ) from error
    if metadata.get("split.count", 0) > 1:
        raise SourceError(
            f"this is one of {metadata['split.count']} parts of a model.",
            where=str(path),
            fix="Merge them with `llama-gguf-split --merge` and give the result.",
        )
    return GgufFile(path, metadata, shapes)
