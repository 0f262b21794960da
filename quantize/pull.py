"""`quantize pull`: exactly the bytes that were judged, or nothing.

A version carries the list of its files with their digests; the list's own digest is the version's `artifact_digest`,
the one that was evaluated. So neither the registry's files nor the way from there have to be trusted.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from quantize.artifact import FileEntry, files_digest
from quantize.claims import listed_files
from quantize.errors import RegistryError, UsageError
from quantize.handed import Progress, silent
from quantize.handover import fetch_serving
from quantize.promotion import alias_map
from quantize.record import file_sha256
from quantize.registry import MANIFEST_FILE, Registry, VersionState
from quantize.store import writing

__all__ = ["pull"]


def pull(registry: Registry, alias_or_version: str, out: Path, progress: Progress = silent) -> VersionState:
    """Fetch the files behind an alias or a version number into `out`, each verified, and their list beside them.

    With them come, in `serving/`, the files that say how to serve it. `progress` is told of weights that lie elsewhere.

    `out` is new or empty, and appears only when all of it is there and right. Raises RegistryError for what is not as
    it was judged, UsageError for an `out` that holds something.
    """
    versions = registry.versions()
    aliases = alias_map(versions)
    number = aliases.get(alias_or_version, alias_or_version)
    version = next((v for v in versions if v.version == number), None)
    if version is None:
        known = ", ".join(sorted(aliases)) or "none"
        raise RegistryError(f"it has no alias or version {alias_or_version!r} (aliases: {known}).", where=registry.name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the place is not empty.", where=str(out), fix="Name a new directory.")
    if out.exists() and out.samefile(Path.cwd()):
        raise UsageError("the current directory cannot be replaced.", where=str(out), fix="Name a new directory.")
    parent = out.absolute().parent
    try:
        with writing(out):
            parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise UsageError(f"cannot be made ({error.strerror}).", where=str(out), fix="Name another.") from error
    try:
        fetched = scratch / "files"
        registry.download(version.version, fetched, progress)
        _verify(fetched, version, registry)
        fetch_serving(registry, version, fetched)
        with writing(out):
            fetched.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return version


def _verify(directory: Path, version: VersionState, registry: Registry) -> None:
    """Every file listed is there with its digest, nothing else is, and the list is the version's."""
    where = f"{registry.name} version {version.version}"
    mend = "Do not use it: promote or pull another version, and look at who can write to the registry's files."
    entries = _entries(directory / MANIFEST_FILE, where)
    if files_digest(entries) != version.artifact_digest:
        raise RegistryError("its list of files is not the one that was judged.", where=where, fix=mend)
    for entry in entries:
        path = directory / entry.path
        if not path.is_file() or path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            raise RegistryError(f"{entry.path} is not the file that was judged.", where=where, fix=mend)
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    extra = found - {entry.path for entry in entries} - {MANIFEST_FILE}
    if extra:
        raise RegistryError(f"{min(extra)} was added after it was judged.", where=where, fix=mend)


def _entries(listing: Path, where: str) -> list[FileEntry]:
    try:
        return listed_files(listing.read_text(encoding="utf-8"), where)
    except FileNotFoundError:
        raise RegistryError(f"it has no {MANIFEST_FILE}: quantize did not make it.", where=where) from None
