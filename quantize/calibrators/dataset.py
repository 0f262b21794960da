"""A dataset on the Hugging Face hub (or a mirror, by HF_ENDPOINT), pinned to a commit and read as far as it is needed.

Rows of a split are streamed. `buffer` documents are held at a time and the next is drawn from them by the seed, because
many datasets are sorted; 0 takes them as they come. Reading ends as soon as there are enough. Blank rows are passed
over.

No code of a dataset is run and no pickle is read: Parquet, JSON, CSV, Arrow and plain text only. A token comes from
HF_TOKEN. With HF_HUB_OFFLINE the hub's cache is read, if it holds that commit whole:
`hf download --repo-type dataset REPO --revision COMMIT`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.calibrators._documents import Document, DocumentField, of_row
from quantize.calibrators._rows import Packing, Wanted, rows_of
from quantize.errors import DataError
from quantize.handed import Drawn, Progress
from quantize.hub import commit_of, hub_errors
from quantize.record import Record

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Dataset"]

#: How `datasets` begins its error for a split that is not there.
_BAD_SPLIT = "Bad split"
#: Readers of `datasets` that only parse.
_READERS = ("arrow", "csv", "json", "parquet", "text")


class Dataset(Record):
    """`samples` rows of `tokens` tokens from a split of `repo` at `revision`."""

    kind: Literal["dataset"] = "dataset"
    online: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "datasets")
    repo: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="The dataset's id on the hub.")]
    revision: Annotated[str, Field(min_length=1, description="A branch, a tag, or better a 40-digit commit.")] = "main"
    config: Annotated[str | None, Field(min_length=1, description="The dataset's configuration, of several.")] = None
    split: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", description="The split, whole: no slices.")] = "train"
    field: DocumentField = None
    samples: Annotated[int, Field(gt=0, description="Rows.")] = 128
    tokens_per_sample: int = Field(default=512, alias="tokens", gt=1, description="Tokens of a row, at most.")
    packing: Packing = "pack"
    seed: Annotated[int, Field(ge=0)] = 0
    buffer: Annotated[int, Field(ge=0, description="Documents that the next is drawn from; 0: in their order.")] = 1000
    allow_overlap: Annotated[bool, Field(description="Eval items may be among the texts; the report says so.")] = False

    @property
    def even(self) -> bool:
        """Where rows are packed."""
        return self.packing == "pack"

    def identity(self) -> dict[str, Any]:
        """The config with the commit that the revision stands for now. Asks the hub, once; raises DataError."""
        config = self.model_dump(mode="json", by_alias=True, exclude={"revision", "allow_overlap"})
        return {**config, "commit": self._commit()}

    def pinned(self) -> Dataset:
        """The same at its commit: a branch may move between the plan and the stage."""
        return self.model_copy(update={"revision": self._commit()})

    def texts(self) -> list[str]:
        """None before they are fetched: what was read is checked against the evals right after it."""
        return []

    def chats(self) -> bool:
        """Not known before it is read."""
        return False

    def draw(self, checkpoint: Path, device: str, progress: Progress) -> Drawn:
        """See `protocols.Calibrator.draw`."""
        wanted = Wanted(self.samples, self.tokens_per_sample, self.packing, None)
        with hub_errors(self.repo, self.revision, "calibration"):
            progress("asking the hub", 0, None)
            drawn = rows_of(self._documents(), wanted, checkpoint, self._where, progress, None)
        return replace(drawn, facts={"repo": self.repo, "commit": self._commit(), "split": self.split, **drawn.facts})

    @property
    def _where(self) -> str:
        return " ".join(filter(None, (f"{self.repo}@{self.revision}", self.config, self.split)))

    def _commit(self) -> str:
        return commit_of(self.repo, self.revision, "calibration")

    def _documents(self) -> Iterator[Document]:
        """Documents in the order in which they are used; in the errors, rows are counted in that order."""
        for number, row in enumerate(self._stream(), start=1):
            document = of_row(row, self.field, f"{self._where} row {number}")
            if document.said.strip():
                yield document

    def _stream(self) -> Iterator[Mapping[str, Any]]:
        """Rows of the split. Raises DataError for a split that is not there and for files that are not to be read."""
        from datasets.exceptions import DatasetsError
        from pyarrow import ArrowException

        builder = self._builder()
        reader = type(builder).__module__.rpartition(".")[2]
        if reader not in _READERS:
            fix = f"Take a dataset of {', '.join(_READERS)} files."
            raise DataError(f"its files are of the kind {reader!r}, which is not read.", where=self._where, fix=fix)
        try:
            rows = builder.as_streaming_dataset(split=self.split)
            yield from rows.shuffle(seed=self.seed, buffer_size=self.buffer) if self.buffer else rows
        except (ArrowException, DatasetsError, ValueError) as error:
            if str(error).startswith(_BAD_SPLIT):
                fix = "Set calibration.split to one of them."
                raise DataError(_sentence(error), where=self._where, fix=fix) from error
            what = f"a file of the dataset cannot be read ({error})."
            raise DataError(what, where=self._where, fix="Take another revision.") from error

    def _builder(self) -> Any:
        """What `datasets` makes of the repository. Raises DataError where that is nothing, or several things."""
        from datasets import load_dataset_builder
        from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

        place, revision = self._place()
        try:
            return load_dataset_builder(place, self.config, revision=revision)
        except DatasetNotFoundError as error:
            what = "there is no such dataset, or it is private or gated."
            fix = "Check calibration.repo; accept its terms on the hub and set HF_TOKEN."
            raise DataError(what, where=self._where, fix=fix) from error
        except (DataFilesNotFoundError, RuntimeError) as error:  # RuntimeError: it has a script of its own
            what = f"there is no file of data that can be read ({error})."
            fix = "A dataset that is made by code of its own is not run. Take one of Parquet or JSON files."
            raise DataError(what, where=self._where, fix=fix) from error
        except ValueError as error:  # a configuration that is not there, or several to choose from
            raise DataError(
                _sentence(error), where=self._where, fix="Set calibration.config to one of them."
            ) from error

    def _place(self) -> tuple[str, str | None]:
        """What to load and at which revision: the repository, or offline the folder of its files in the cache."""
        from huggingface_hub import constants, errors, get_cached_repo_tree, snapshot_download

        commit = self._commit()
        if not constants.HF_HUB_OFFLINE:
            return self.repo, commit
        try:
            get_cached_repo_tree(self.repo, repo_type="dataset", revision=commit)
            return snapshot_download(self.repo, repo_type="dataset", revision=commit, local_files_only=True), None
        except (errors.CachedRepoTreeNotFoundError, errors.IncompleteSnapshotError, FileNotFoundError) as error:
            raise DataError(
                "the hub is switched off (HF_HUB_OFFLINE) and its cache does not hold the dataset whole.",
                where=self._where,
                fix=f"Run: hf download --repo-type dataset {self.repo} --revision {commit}",
            ) from error


def _sentence(error: Exception) -> str:
    """A library's error as one sentence."""
    told = " ".join(str(error).split()).rstrip(".")
    return f"{told[:1].lower()}{told[1:]}."
