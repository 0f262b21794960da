"""A model in a local directory: referred to, not copied, and noticed when it changes under a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.handed import Progress
from quantize.record import Record
from quantize.registry import MANIFEST_FILE
from quantize.sources._check import WANTED, check_files
from quantize.sources._dequantize import lay_down
from quantize.sources._digests import remembered_sha256
from quantize.sources._facts import checkpoint_facts
from quantize.sources._stored import DEQUANTIZE, LIBRARIES, stored_notes, stored_problems

__all__ = ["Directory"]


class Directory(Record):
    """A Hugging Face checkpoint directory."""

    kind: Literal["directory"] = "directory"
    online: ClassVar[bool] = False
    path: str
    dequantize: Annotated[bool, Field(description=DEQUANTIZE)] = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """See `protocols.Source`."""
        return LIBRARIES if self.dequantize else ()

    def identity(self) -> dict[str, Any]:
        """Every wanted file's name and sha256."""
        self._exists()
        files = {path.name: remembered_sha256(path) for path in self._files()}
        return {"files": files, **({"dequantize": True} if self.dequantize else {})}

    def pinned(self, identity: dict[str, Any]) -> Directory:
        """See `protocols.Source`."""
        return self

    def problems(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return stored_problems(facts, dequantize=self.dequantize)

    def notes(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return stored_notes(facts, dequantize=self.dequantize)

    def facts(self) -> ModelFacts:
        """Exact: the weights are at hand."""
        self._exists()
        check_files(Path(self.path))
        return checkpoint_facts(Path(self.path))

    def fetch(self, out: Path, progress: Progress) -> None:
        """Link every wanted file into `out`, or dequantize them, and check what is there."""
        self._exists()
        check_files(Path(self.path))
        lay_down(self._link, out, progress, dequantize=self.dequantize)

    def _link(self, out: Path) -> None:
        for path in self._files():
            (out / path.name).symlink_to(path.resolve())

    def _exists(self) -> None:
        if not Path(self.path).is_dir():
            raise SourceError(
                "there is no such model directory.", where=self.path, fix="Check model.path in the recipe."
            )

    def _files(self) -> list[Path]:
        found = {path for pattern in WANTED for path in Path(self.path).glob(pattern) if path.is_file()}
        # What `pull` lays beside a model lists that model's files; it would not be true of the next one.
        return sorted(path for path in found if path.name != MANIFEST_FILE)
