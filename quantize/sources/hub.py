"""A model on the Hugging Face hub (or a mirror, by HF_ENDPOINT): a revision is resolved to a commit and pinned.

The token is the hub library's own business (HF_TOKEN, or `hf auth login`): it is neither read nor passed on here. With
HF_HUB_OFFLINE everything comes from the hub's cache, branches too where the cache knows what they stand for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.handed import Progress
from quantize.hub import commit_of, hub_errors
from quantize.record import Record
from quantize.sources._check import WANTED, check_files
from quantize.sources._dequantize import lay_down
from quantize.sources._facts import config_facts, read_config
from quantize.sources._stored import DEQUANTIZE, LIBRARIES, stored_notes, stored_problems

__all__ = ["Hub", "fetch_one"]


class Hub(Record):
    """A repository on the hub. A 40-digit commit as `revision` needs no question to the hub once it was fetched."""

    kind: Literal["hub"] = "hub"
    online: ClassVar[bool] = True
    repo: str
    revision: str = "main"
    dequantize: Annotated[bool, Field(description=DEQUANTIZE)] = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """See `protocols.Source`."""
        return LIBRARIES if self.dequantize else ()

    def identity(self) -> dict[str, Any]:
        """The repository and the commit that the revision stands for now."""
        commit = _commit(self.repo, self.revision)
        return {"repo": self.repo, "commit": commit, **({"dequantize": True} if self.dequantize else {})}

    def pinned(self, identity: dict[str, Any]) -> Hub:
        """See `protocols.Source`."""
        return self.model_copy(update={"revision": identity["commit"]})

    def problems(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return stored_problems(facts, dequantize=self.dequantize)

    def notes(self, facts: ModelFacts) -> list[str]:
        """See `protocols.Source`."""
        return stored_notes(facts, dequantize=self.dequantize)

    def facts(self) -> ModelFacts:
        """From `config.json` at that commit; the weights' bytes from the hub's listing are not asked for."""
        return config_facts(read_config(fetch_one(self, "config.json")))

    def fetch(self, out: Path, progress: Progress) -> None:
        """Download the wanted files at the pinned commit, link or dequantize them, check what is there."""
        lay_down(self.link, out, progress, dequantize=self.dequantize)

    def link(self, out: Path) -> None:
        """Download the wanted files into the hub's own cache and link them into `out`. Raises SourceError."""
        from huggingface_hub import snapshot_download

        commit = _commit(self.repo, self.revision)
        with hub_errors(self.repo, self.revision, "model"):
            snapshot = Path(snapshot_download(self.repo, revision=commit, allow_patterns=list(WANTED)))
        if not any(snapshot.glob("*.safetensors")):
            raise SourceError(
                "the repository has no safetensors weights at this revision; pickle weights are never loaded.",
                where=f"{self.repo}@{self.revision}",
                fix="Convert them with save_pretrained(safe_serialization=True) and use `kind: directory`.",
            )
        for path in sorted(snapshot.iterdir()):
            if path.is_file():
                (out / path.name).symlink_to(path.resolve())
        check_files(out)


def fetch_one(hub: Hub, file: str) -> Path:
    """One file of a repository at its commit, in the hub's own cache. Raises SourceError."""
    from huggingface_hub import hf_hub_download

    commit = _commit(hub.repo, hub.revision)
    with hub_errors(hub.repo, hub.revision, "model"):
        return Path(hf_hub_download(hub.repo, file, revision=commit))


def _commit(repo: str, revision: str) -> str:
    return commit_of(repo, revision, "model")
