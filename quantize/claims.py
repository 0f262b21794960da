"""What a version claims of itself, checked before an alias moves to it: its files' list and its verdict.

The digest of the list of files is the digest that was judged, so a list that was exchanged is found without fetching
weights; `quantize pull` compares the files themselves, each time somebody takes them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from quantize.artifact import FileEntry, files_digest
from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.protocols import MANIFEST_FILE, Registry
from quantize.record import digest

__all__ = ["check_claims", "listed_files"]

_MEND = "Do not use it: promote another version, and look at who can write to the registry's files."


def check_claims(registry: Registry, version: VersionState) -> None:
    """Raise RegistryError for a version that quantize did not make, or whose list of files or verdict was changed.

    The verdict is that in the MLflow run that the version names; a version that was never judged (the baseline) has
    none.
    """
    where = f"{registry.name} version {version.version}"
    if not version.variant or not version.artifact_digest:
        raise RegistryError("quantize did not make it.", where=where, fix="No alias is moved to it.")
    if files_digest(listed_files(registry.listing(version.version), where)) != version.artifact_digest:
        raise RegistryError("its list of files is not the one that was judged.", where=where, fix=_MEND)
    wanted, run = version.tags.get("verdict_digest"), version.tags.get("evidence_run")
    if not wanted or not run:
        return
    with tempfile.TemporaryDirectory() as scratch:
        text = registry.fetch(run, "verdict.json", Path(scratch)).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        same = digest(found) == wanted and found["artifact_digest"] == version.artifact_digest
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise RegistryError("its verdict is not the one that it was decided by.", where=where, fix=_MEND)


def listed_files(text: str, where: str) -> list[FileEntry]:
    """The files that a version's list names. Raises RegistryError for a text that is none."""
    try:
        return [FileEntry.model_validate(row) for row in json.loads(text)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"its {MANIFEST_FILE} cannot be read.", where=where, fix="Do not use it.") from error
