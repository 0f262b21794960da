"""What a version claims of itself, checked before an alias moves to it: its files' list, its verdict, its rows.

The digest of the list of files is the digest that was judged, so a list that was exchanged is found without fetching
weights; `quantize pull` compares the files themselves, each time somebody takes them. A verdict names the digests of
the rows that it was computed from, so rows that were changed in the registry are found by whoever uses them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath

from quantize.artifact import FileEntry, files_digest
from quantize.errors import DataError, RegistryError
from quantize.record import digest, file_sha256
from quantize.registry import MANIFEST_FILE, Registry, VersionState

__all__ = ["Forged", "check_claims", "check_rows", "fetch_rows", "listed_files", "rows_digests"]

_MEND = "Do not use it: promote another version, and look at who can write to the registry's files."
#: How a verdict calls the rows of its own arm: `variant.<eval>`.
_ARM = "variant."


class Forged(RegistryError):
    """What the registry holds of a version is not what was judged."""


def check_claims(registry: Registry, version: VersionState) -> None:
    """Raise RegistryError for a version that quantize did not make, or whose list of files or verdict was changed.

    The verdict is that in the MLflow run that the version names; a version that was never judged (the baseline) has
    none.
    """
    where = _where(registry, version)
    if not version.variant or not version.artifact_digest:
        raise RegistryError("quantize did not make it.", where=where, fix="No alias is moved to it.")
    if files_digest(listed_files(registry.listing(version.version), where)) != version.artifact_digest:
        raise Forged("its list of files is not the one that was judged.", where=where, fix=_MEND)
    rows_digests(registry, version)


def check_rows(registry: Registry, version: VersionState) -> None:
    """Raise Forged where rows in the version's MLflow run are not those that its verdict was computed from.

    Of its own arm: the baseline's rows lie in another run, and under load nothing is judged again.
    """
    for name, wanted in rows_digests(registry, version).items():
        with tempfile.TemporaryDirectory() as scratch:
            _fetch(registry, version, name, wanted, Path(scratch))


def fetch_rows(registry: Registry, version: VersionState, name: str, out: Path) -> Path:
    """Fetch the rows of one eval that a version's verdict was computed from; returns the folder with `rows.parquet`.

    Raises DataError where the verdict or the run has none, Forged where they are not those.
    """
    wanted = rows_digests(registry, version).get(name)
    if wanted is None:
        where = _where(registry, version)
        raise DataError(f"its verdict rests on no rows of {name}.", where=where, fix="Run its recipe again.")
    return _fetch(registry, version, name, wanted, out)


def _fetch(registry: Registry, version: VersionState, name: str, wanted: str, out: Path) -> Path:
    file = registry.fetch(version.tags["evidence_run"], f"rows/{name}/rows.parquet", out)
    if file_sha256(file) != wanted:
        what = f"its rows of {name} are not those that its verdict rests on."
        raise Forged(what, where=_where(registry, version), fix=_MEND)
    return file.parent


def rows_digests(registry: Registry, version: VersionState) -> dict[str, str]:
    """The sha256 of a version's rows by eval, as the verdict says that it was decided by; empty where there is none.

    Raises Forged where that verdict was changed, DataError where its MLflow run does not hold it.
    """
    wanted, run = version.tags.get("verdict_digest"), version.tags.get("evidence_run")
    if not wanted or not run:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        text = registry.fetch(run, "verdict.json", Path(scratch)).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        same = digest(found) == wanted and found["artifact_digest"] == version.artifact_digest
        rows = {str(key): str(value) for key, value in found["rows"].items()} if same else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        same, rows = False, {}
    if not same:
        raise Forged("its verdict is not the one that it was decided by.", where=_where(registry, version), fix=_MEND)
    return {key.removeprefix(_ARM): value for key, value in rows.items() if key.startswith(_ARM)}


def _where(registry: Registry, version: VersionState) -> str:
    return f"{registry.name} version {version.version}"


def listed_files(text: str, where: str) -> list[FileEntry]:
    """The files that a version's list names. Raises RegistryError for a text that is none, or names a path out."""
    try:
        files = [FileEntry.model_validate(row) for row in json.loads(text)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"its {MANIFEST_FILE} cannot be read.", where=where, fix="Do not use it.") from error
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise RegistryError(f"its list of files names {file.path!r}.", where=where, fix=_MEND)
    return files
