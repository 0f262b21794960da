"""A model on the Hugging Face hub (or a mirror, by HF_ENDPOINT): a revision is resolved to a commit and pinned."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.handed import Progress
from quantize.record import Record
from quantize.sources._check import WANTED, check_checkpoint, check_files
from quantize.sources._facts import config_facts, read_config

__all__ = ["Hub"]

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


class Hub(Record):
    """A repository on the hub. A 40-digit commit as `revision` needs no question to the hub once it was fetched."""

    kind: Literal["hub"] = "hub"
    repo: str
    revision: str = "main"

    def identity(self) -> dict[str, Any]:
        """The repository and the commit that the revision stands for now."""
        return {"repo": self.repo, "commit": _commit(self.repo, self.revision)}

    def facts(self) -> ModelFacts:
        """From `config.json` at that commit; the weights' bytes from the hub's listing are not asked for."""
        from huggingface_hub import hf_hub_download

        commit = _commit(self.repo, self.revision)
        with _hub_errors(self.repo, self.revision):
            path = hf_hub_download(self.repo, "config.json", revision=commit)
        return config_facts(read_config(Path(path)))

    def fetch(self, out: Path, progress: Progress) -> None:
        """Download the wanted files at the pinned commit into the hub's own cache, link them, check them."""
        from huggingface_hub import snapshot_download

        commit = _commit(self.repo, self.revision)
        with _hub_errors(self.repo, self.revision):
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
        check_checkpoint(out, progress)


@cache
def _commit(repo: str, revision: str) -> str:
    if _COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision):
        sha = HfApi().model_info(repo, revision=revision).sha
    if sha is None:
        raise SourceError("the hub gives no commit for this revision.", where=f"{repo}@{revision}")
    return str(sha)


class _hub_errors:  # noqa: N801 (a context manager that reads as a verb)
    """Say what the hub's many exceptions mean, and what to do."""

    def __init__(self, repo: str, revision: str) -> None:
        self._where = f"{repo}@{revision}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        from httpx import HTTPError
        from huggingface_hub import errors

        if error is None:
            return
        # The order matters: a gated repository's error is a kind of "not found".
        if isinstance(error, errors.GatedRepoError):
            what, fix = "the repository is gated.", "Accept its terms on the hub and set HF_TOKEN."
        elif isinstance(error, errors.RevisionNotFoundError):
            what, fix = "the repository has no such revision.", "Check model.revision."
        elif isinstance(error, errors.RepositoryNotFoundError):
            what, fix = "there is no such repository, or it is private.", "Check model.repo; set HF_TOKEN if private."
        elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            what, fix = f"a file is missing there ({error}).", "Check that it is a model repository."
        elif isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | HTTPError | OSError):
            what = "the hub cannot be reached."
            fix = (
                "Check the network or HF_ENDPOINT; offline, pin a 40-digit commit that is in the cache, or use "
                "`kind: directory`. `quantize plan --config config.json` plans without the hub."
            )
        else:
            return
        raise SourceError(what, where=self._where, fix=fix) from error
