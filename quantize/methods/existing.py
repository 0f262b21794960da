"""existing: a checkpoint that somebody else quantized, judged as it is.

Nothing is computed: the files are linked into the artifact, checked as a source's are. There never was a model in
memory, so the witness is made of a reference that is read from the same files (`proof.reference`): what the proof shows
is that the serving engine reads them as that reference does, and that the tokenizer is the baseline's.

Its key are the digests of the files, or the hub's commit. What it holds is read from its own config or header; a scheme
that the recipe names must be that one.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.handed import QuantizeJob
from quantize.methods._gguf_convert import MODEL_FILE, copy_beside
from quantize.record import Record
from quantize.scheme import Scheme
from quantize.sources import Held, Hub, bring, held, identify

__all__ = ["Existing"]


class Existing(Record):
    """A quantized checkpoint: a local directory or GGUF file, or a repository on the hub at a revision."""

    kind: Literal["existing"] = "existing"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    path: Annotated[str | None, Field(description="A directory of safetensors, or a GGUF file.")] = None
    repo: Annotated[str | None, Field(description="A repository on the hub, instead of a path.")] = None
    revision: Annotated[str, Field(description="Its branch, tag or commit.")] = "main"
    file: Annotated[str | None, Field(description="The GGUF file of the repository; unset: its safetensors.")] = None

    @model_validator(mode="after")
    def _one_place(self) -> Existing:
        if (self.path is None) == (self.repo is None):
            raise ValueError("an existing checkpoint is either at a path or in a repo: give one of the two")
        if self.path is not None and (self.file is not None or self.revision != "main"):
            raise ValueError("revision and file belong to a repo: a path names the file itself")
        return self

    @property
    def format(self) -> str:
        """The container on disk, by the checkpoint itself. Raises SourceError."""
        return self.held().format

    @property
    def calibrated(self) -> bool:
        """Never here; by whom and on what it was before, nobody knows."""
        return False

    @property
    def online(self) -> bool:
        """True where it may have to be fetched."""
        return self.repo is not None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that the witness's reference is computed by."""
        return ("bitsandbytes", "compressed-tensors", "gguf", "torch", "transformers")

    def identity(self) -> dict[str, Any]:
        """What goes into the key: digests or a commit. May ask the hub, once; raises SourceError."""
        return {"kind": self.kind, **identify(self.path, self._hub(), self.file)}

    def pinned(self, identity: dict[str, Any]) -> Existing:
        """The same at the commit that the key was made from: a branch may move meanwhile."""
        return self.model_copy(update={"revision": identity["commit"]}) if "commit" in identity else self

    def held(self) -> Held:
        """What the checkpoint says of itself. Raises SourceError."""
        return _held(self)

    def scheme(self) -> Scheme:
        """The scheme by the checkpoint itself. Raises SourceError."""
        found = self.held().scheme
        if found is None:
            raise SourceError(
                "what a GGUF file in a repository holds is not known before it is fetched.",
                where=f"{self.repo}@{self.revision}",
                fix="Name it in the variant's `scheme` (Q4_K_M, say); it is checked when the file is there.",
            )
        return found

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """A scheme that is not the checkpoint's, and shapes that are not the baseline's."""
        found = self.held()
        return [*_misnamed(scheme, found.scheme), *_misfits(found.facts, facts)]

    def notes(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """What it is, as far as its own files say."""
        size = f", groups of {scheme.group_size}" if scheme.group_size and not scheme.groups else ""
        place = self.path or f"{self.repo}@{self.revision}"
        return [f"judged as it is: {self.format} {scheme.name}{size}, by its own files ({place})"]

    def refusal(self, device: str) -> str | None:
        """None: nothing is computed."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Link the checkpoint into `job.out`; the witness is the reference's."""
        job.progress("linking the checkpoint", 0, None)
        bring(self.path, self._hub(), self.file, job.out, job.progress)
        if (job.out / MODEL_FILE).is_file() and not (job.out / "config.json").is_file():
            copy_beside(job.checkpoint, job.out)
        wrong = _misnamed(job.scheme, held(str(job.out), None, None).scheme)
        if wrong:
            raise SourceError(wrong[0], where=self.path or f"{self.repo}@{self.revision}")
        job.progress("asking a reference", 0, None)
        job.refer(job.out)

    def _hub(self) -> Hub | None:
        return Hub(repo=self.repo, revision=self.revision) if self.repo is not None else None


@cache
def _held(method: Existing) -> Held:
    return held(method.path, method._hub(), method.file)  # noqa: SLF001


def _misnamed(named: Scheme, found: Scheme | None) -> list[str]:
    if found is None or named.name == found.name:
        return []
    return [f"the recipe names the scheme {named.name} and the checkpoint holds {found.name}. Leave `scheme` out."]


def _misfits(ours: ModelFacts | None, baseline: ModelFacts) -> list[str]:
    """What tells that it is not a quantized form of the baseline, before weights are read."""
    if ours is None:
        return []
    families = tuple(facts.architecture.partition("_")[0] for facts in (ours, baseline))
    if families[0] != families[1] and "unknown" not in families:
        return [f"it is a {ours.architecture} and the baseline is a {baseline.architecture}: not the same model."]
    for what in ("layers", "hidden_size"):
        here, there = getattr(ours, what), getattr(baseline, what)
        if None not in (here, there) and here != there:
            return [f"its {what.replace('_', ' ')} are {here} and the baseline's {there}: it is not the same model."]
    return []
