"""What a stage leaves behind, and what it was made from.

An artifact is a directory with a `manifest.json` that lists every file's size and sha256. The manifest is written last:
a directory without one is not an artifact. The manifest's digest (of its files, not of its times) is the artifact's
digest, the one that was evaluated, is registered, and is verified when it is pulled.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quantize.record import Record, digest

__all__ = ["CHECKPOINT", "MANIFEST_VERSION", "FileEntry", "Manifest", "ModelFacts", "Provenance", "files_digest"]

MANIFEST_VERSION: Literal[1] = 1

#: Where a stage that makes a model puts the directory that consumers load.
CHECKPOINT = "checkpoint/"


class FileEntry(Record):
    """One file: POSIX path relative to the artifact, size in bytes, sha256 of its bytes (hex).

    `target` is the absolute path of a file that the artifact refers to instead of holding (the weights of a local
    model, which nobody wants twice); `mtime_ns` is then its modification time, the cheap sign that it was changed.
    """

    path: str
    size: int
    sha256: str
    target: str | None = None
    mtime_ns: int | None = None


class Provenance(Record):
    """Who made an artifact: never part of a key or a digest."""

    created: str
    host: str
    seconds: float
    peak_memory_bytes: int
    python: str
    libraries: dict[str, str]


class Manifest(Record):
    """The receipt of a committed stage. `inputs` maps input names to the keys of the stages they came from."""

    version: Literal[1] = MANIFEST_VERSION
    kind: str
    name: str
    key: str
    inputs: dict[str, str]
    files: list[FileEntry]
    summary: dict[str, Any]
    provenance: Provenance

    def content_digest(self) -> str:
        """Sha256 over (path, size, sha256) of every file: equal for equal bytes, wherever they were made."""
        return files_digest(self.files)

    def checkpoint_files(self) -> list[FileEntry]:
        """The files under `checkpoint/`, named as a consumer sees them: what is served and registered."""
        return [
            file.model_copy(update={"path": file.path.removeprefix(CHECKPOINT)})
            for file in self.files
            if file.path.startswith(CHECKPOINT)
        ]

    def checkpoint_digest(self) -> str:
        """The one digest of the bytes that are evaluated, served and registered."""
        return files_digest(self.checkpoint_files())

    def weight_bytes(self) -> int:
        """Bytes of the checkpoint's weight files."""
        return sum(file.size for file in self.checkpoint_files() if file.path.endswith((".safetensors", ".gguf")))


class ModelFacts(Record):
    """What `plan` knows of a model without its weights: shapes from `config.json`, sizes from file stats.

    `linears` counts the quantizable Linear modules by (out_features, in_features) as "OUTxIN"; None where the
    architecture is unknown to the planner. `bytes` are the weight files', None where only a config was at hand.
    `modules` maps the Linears' names to their shapes, as far as they are known; it is not written down.
    `context` is how many tokens the model was trained on at a time, None where its config does not say. `chat` tells
    whether it has a chat template, None where its files were not at hand. `stored` says what its weights are stored in
    where that is no float, and `refused` why they cannot be made floats here. `senses` are what it takes beside text
    (`vision`): `linears` are then those of the language part, and names are not known. `known` tells whether
    transformers knows the architecture, None where nobody asked.
    """

    architecture: str
    layers: int | None
    hidden_size: int | None
    vocab_size: int | None
    dtype: str
    linears: dict[str, int] | None
    parameters: int | None
    bytes: int | None
    unknown: list[str]
    context: int | None = None
    modules: dict[str, str] = Field(default_factory=dict, exclude=True)
    chat: bool | None = None
    stored: str | None = None
    refused: str | None = Field(default=None, exclude=True)
    known: bool | None = Field(default=None, exclude=True)
    senses: tuple[str, ...] = Field(default=(), exclude=True)


def files_digest(files: list[FileEntry]) -> str:
    """The content digest of a list of files, in the order of their paths."""
    rows = sorted((file.path, file.size, file.sha256) for file in files)
    return digest([list(row) for row in rows])
