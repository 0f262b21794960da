"""What sources and calibrators ask of the Hugging Face hub (or a mirror, by HF_ENDPOINT): commits, and plain errors.

A token comes from HF_TOKEN or the hub client's own file, and is never part of a message.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from quantize.errors import DataError, QuantizeError, SourceError

__all__ = ["commit_of", "hub_errors"]

Place = Literal["model", "calibration"]
_ERRORS: dict[Place, type[QuantizeError]] = {"model": SourceError, "calibration": DataError}
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
#: What else helps where the hub is away.
_INSTEAD: dict[Place, str] = {
    "model": "use `kind: directory`. `quantize plan --config config.json` plans without the hub.",
    "calibration": "name local files with `kind: text`.",
}
_NOWHERE = "Check the network or HF_ENDPOINT; offline, pin a 40-digit commit that is in the cache, or "
_LET_IN = "set HF_TOKEN (or log in once with `hf auth login`) to the token of an account that has been let in"
_REFUSED = {
    401: ("the hub does not accept the token.", "Set HF_TOKEN to one that is valid, or unset it for what is public."),
    403: ("the hub does not let this token read the repository.", f"Accept its licence on the hub and {_LET_IN}."),
    429: ("the hub has had too many requests.", "Wait a few minutes and run the same command; a token raises limits."),
}


def commit_of(repo: str, revision: str, place: Place) -> str:
    """The commit that a revision stands for now; one that is a commit is not asked for. Raises as `hub_errors`.

    `place` is the part of the recipe that names the repository: one of models, or one of datasets.
    """
    return revision if _COMMIT.match(revision) else _asked(repo, revision, place)


@cache
def _asked(repo: str, revision: str, place: Place) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE and place == "model":
        return _cached_commit(repo, revision)
    with hub_errors(repo, revision, place):
        api = HfApi()
        found = api.model_info if place == "model" else api.dataset_info
        sha = found(repo, revision=revision).sha
    if sha is None:
        raise _ERRORS[place]("the hub gives no commit for this revision.", where=f"{repo}@{revision}")
    return str(sha)


def _cached_commit(repo: str, revision: str) -> str:
    """The commit that a branch or tag stood for when it was last fetched by this name (`hf download` does that).

    Raises SourceError where the hub's cache does not know; it names the commits that are there.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    ref = folder / "refs" / revision
    if ".." not in Path(revision).parts and ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    held = sorted(path.name for path in (folder / "snapshots").glob("*") if _COMMIT.match(path.name))
    there = f"The cache holds {', '.join(held)}: pin one as revision." if held else "The cache has nothing of it."
    raise SourceError(
        "HF_HUB_OFFLINE is set, and the cache does not know what this revision stands for.",
        where=f"{repo}@{revision}",
        fix=f"{there} On a machine with a network, `hf download {repo} --revision {revision}` fills a cache "
        "(HF_HOME) to bring over; or use `kind: directory`.",
    )


class hub_errors:  # noqa: N801 (a context manager that reads as a verb)
    """Say what the hub's many exceptions mean, and what to do: raises a SourceError or a DataError in their place."""

    def __init__(self, repo: str, revision: str, place: Place) -> None:
        self._where, self._place = f"{repo}@{revision}", place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        told = _named(error, self._place) or _answered(error) or _unreached(error, self._place)
        if told is not None:
            raise _ERRORS[self._place](told[0], where=self._where, fix=told[1]) from error


def _named(error: BaseException, place: Place) -> tuple[str, str] | None:
    """What the hub said and how to mend it, where its library has a name for that."""
    from huggingface_hub import errors

    # The order matters: a gated repository's error is a kind of "not found".
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated.", f"Accept its licence on its page on the hub, then {_LET_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision.", f"Check {place}.revision."
    if isinstance(error, errors.RepositoryNotFoundError):
        mend = f"Check {place}.repo; if it is private, {_LET_IN}."
        return "there is no such repository, or it is private.", mend
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        wanted = "model" if place == "model" else "dataset"
        return f"a file is missing there ({error}).", f"Check that it is a {wanted} repository."
    return None


def _answered(error: BaseException) -> tuple[str, str] | None:
    """The same by the status of the answer. A failed download is told as "not in the cache"; why stands behind it."""
    for cause in (error, error.__cause__, error.__context__):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in _REFUSED:
            return _REFUSED[status]
        if isinstance(status, int) and status >= 500:
            return f"the hub answers with status {status}.", "Run the same command later, or check HF_ENDPOINT."
    return None


def _unreached(error: BaseException, place: Place) -> tuple[str, str] | None:
    """The same where there was no answer."""
    from httpx import HTTPError
    from huggingface_hub import errors

    if isinstance(error, errors.IncompleteSnapshotError):
        fill = "Fill the cache (HF_HOME) where there is a network: `hf download` brings whole repositories."
        return "files of it are neither in the cache nor to be had.", fill
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | HTTPError | OSError):
        return "the hub cannot be reached.", f"{_NOWHERE}{_INSTEAD[place]}"
    return None
