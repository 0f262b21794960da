"""The artifact store: stages' outputs by key, committed whole or not at all.

    <root>/<kind>/<key[:24]>/          a committed artifact: its files and manifest.json
    <root>/drafts/<kind>-<key>.<...>/  what a running stage writes into
    <root>/leases/<kind>-<key>/        who is at a stage (`leases.py`): a second process waits and then reuses
    <root>/store.json                  the version of this layout, so that a program of another time knows it is not its

The order of a commit buys the promises. Files are flushed to disk, then the manifest beside them; then one rename
puts the directory in its place: a name never points at missing bytes, and a reader sees all of an artifact or nothing.
That rename never goes over an artifact that is there. So where two nodes do the same stage, because one was silent for
so long that the other took it over, the first to publish is the one whose bytes stay.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from quantize import __version__, faults
from quantize.artifact import MANIFEST_VERSION, FileEntry, Manifest, Provenance
from quantize.errors import StoreError
from quantize.leases import Lease, holding, is_held, node
from quantize.record import file_sha256

__all__ = [
    "FULL_DISK",
    "LAYOUT",
    "MANIFEST",
    "Store",
    "read_manifest",
    "refuse_newer",
    "sync",
    "verify_directory",
    "writing",
]

MANIFEST = "manifest.json"
#: The file that says how a store is laid out, and the layout that this program knows. It was 1 before it was written;
#: 2: leases are folders, and exclude other nodes, which those of 1 do not see.
LAYOUT, LAYOUT_VERSION = "store.json", 2
FULL_DISK = "The disk is full: free some space (`quantize gc` shows what can go) and run again."
_KEYED = re.compile(r"[0-9a-f]{24}\Z")


class Store:
    """Artifacts under `root`, which is created on first write. Raises StoreError for a newer program's."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        place = self.root / LAYOUT
        if place.is_file():
            refuse_newer(place.read_bytes(), LAYOUT_VERSION, place, "store")

    def path(self, kind: str, key: str) -> Path:
        """Where the artifact with this key lies once it is committed."""
        return self.root / kind / key[:24]

    def locate(self, key: str) -> Path | None:
        """Where the committed artifact with this key lies, whatever its kind, or None."""
        if not _KEYED.match(key[:24]):
            return None
        return next((path.parent for path in sorted(self.root.glob(f"*/{key[:24]}/{MANIFEST}"))), None)

    def find(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a committed artifact, or None. Raises StoreError when its files are not the manifest's.

        Sizes and the modification times of referenced files are compared, not hashes: cheap enough for every run.
        """
        directory = self.path(kind, key)
        manifest = read_manifest(directory) or self._looked_again(directory)
        if manifest is None:
            return None
        if manifest.key != key:
            raise StoreError(
                f"the manifest says key {manifest.key[:12]}, not {key[:12]}.", where=str(directory / MANIFEST)
            )
        for entry in manifest.files:
            _check_cheaply(directory, entry)
        return manifest

    @contextmanager
    def lease(self, kind: str, key: str, waiting: Callable[[str], None]) -> Iterator[Lease]:
        """Hold the stage's lease, which its worker inherits.

        Waits while another process has it, on this node or on another; `waiting` is told once who that is.
        """
        folder = self._leases(kind, key)
        with ExitStack() as held:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._say_layout()
                lease = held.enter_context(holding(folder, waiting))
            yield lease

    def _leases(self, kind: str, key: str) -> Path:
        return self.root / "leases" / f"{kind}-{key[:24]}"

    def _looked_again(self, directory: Path) -> Manifest | None:
        """What another node has committed: NFS remembers that a name was not there, until a folder is opened."""
        for folder in (self.root, directory.parent):
            try:
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError:  # whoever writes there says what is wrong with it
                return None
        return read_manifest(directory)

    def draft(self, kind: str, key: str, lease: Lease | None = None) -> Path:
        """A new empty directory for a stage's output. Call it under the lease: drafts of earlier ones are removed."""
        parent, stem = self.root / "drafts", f"{kind}-{key[:24]}"
        generation = lease.generation if lease is not None else 0
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            self._say_layout()
            for stale in parent.glob(f"{stem}.*"):
                number = stale.name.removeprefix(f"{stem}.").partition("-")[0]
                if not number.isdecimal() or int(number) <= generation:
                    _clear(stale)
            draft = parent / f"{stem}.{generation}-{node()}-{os.getpid()}"
            draft.mkdir()
        return draft

    def _say_layout(self) -> None:
        """Write down how this store is laid out, once. Whoever does it at the same time writes the same."""
        place = self.root / LAYOUT
        if place.is_file() and json.loads(place.read_bytes()).get("version") == LAYOUT_VERSION:
            return
        part = place.with_name(f".{LAYOUT}.{node()}-{os.getpid()}")
        part.write_text(json.dumps({"version": LAYOUT_VERSION, "program": f"quantize {__version__}"}), encoding="utf-8")
        part.replace(place)

    def commit(
        self,
        draft: Path,
        *,
        kind: str,
        name: str,
        key: str,
        inputs: dict[str, str],
        summary: dict[str, Any],
        provenance: Provenance,
        lease: Lease | None = None,
    ) -> Manifest:
        """Publish a draft under its key, and return its manifest, or that of whoever was first.

        Call it under the lease. Raises LeaseLost where that was taken over.
        """
        final = self.path(kind, key)
        with writing(final):
            files = [_entry(draft, path) for path in _files(draft)]
            manifest = Manifest(
                kind=kind, name=name, key=key, inputs=inputs, files=files, summary=summary, provenance=provenance
            )
            faults.point("store.synced")
            place = draft / MANIFEST
            place.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
            sync(place)
            sync(draft)
            faults.point("store.manifest_written")
            final.parent.mkdir(parents=True, exist_ok=True)
            if lease is not None:
                lease.check()
            faults.point("store.checked")
            if not _put(draft, final):
                shutil.rmtree(draft)
                return self.find(kind, key) or manifest
            sync(final.parent)
            faults.point("store.committed")
        return manifest

    def manifests(self, kind: str = "*") -> Iterator[tuple[Path, Manifest]]:
        """Every committed artifact, or those of one kind, with its manifest."""
        for path in sorted(self.root.glob(f"{kind}/*/{MANIFEST}")):
            # A draft has its manifest before it has its name.
            manifest = read_manifest(path.parent) if _KEYED.match(path.parent.name) else None
            if manifest is not None:
                yield path.parent, manifest

    def garbage(self, keep: set[str]) -> list[Path]:
        """What `gc` would remove: artifacts whose key is not in `keep`, commits without manifest, idle drafts.

        A draft or artifact whose lease somebody holds is never garbage.
        """
        kept = {key[:24] for key in keep}
        found = [path for path, manifest in self.manifests() if manifest.key not in keep]
        halves = (path for path in self.root.glob("*/*") if _KEYED.match(path.name) and path.is_dir())
        found += [path for path in halves if not (path / MANIFEST).exists()]
        found += [p for p in self.root.glob("drafts/*") if p.is_dir()]
        idle = [path for path in found if not self._held(path)]
        return sorted(path for path in idle if path.name not in kept or not (path / MANIFEST).exists())

    def held(self, kind: str) -> bool:
        """Whether anybody holds a lease of this kind."""
        return any(map(is_held, self.root.glob(f"leases/{kind}-*/")))

    def _held(self, path: Path) -> bool:
        stem = path.name.split(".")[0] if path.parent.name == "drafts" else f"{path.parent.name}-{path.name}"
        leases = self.root / "leases" / stem
        return leases.is_dir() and is_held(leases)


def _clear(stale: Path) -> None:
    """Remove a draft. Under another name first: an orphan that wakes up now must not publish what is left of it."""
    aside = stale.with_name(f"{stale.name}.stale") if not stale.name.endswith(".stale") else stale
    with suppress(FileNotFoundError):
        stale.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)  # an orphan of another node may still write into it


def _put(draft: Path, final: Path) -> bool:
    """Give a whole artifact its name; False where another has it already."""
    while True:
        try:
            draft.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if (final / MANIFEST).exists():
                return False
            # Half an artifact, of a program that named the directory first and wrote the manifest last.
            with suppress(FileNotFoundError):
                final.rename(draft.with_name(f"{draft.name}.half"))
        else:
            return True


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest in `directory`, or None where there is none. Raises StoreError for one that cannot be read."""
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    refuse_newer(data, MANIFEST_VERSION, path, "artifact")
    try:
        return Manifest.model_validate_json(data)
    except ValueError as error:
        raise StoreError(
            "this is not a manifest of this program.", where=str(path), fix=f"Remove {directory} and run again."
        ) from error


def refuse_newer(data: bytes, known: int, path: Path, what: str) -> None:
    """Raise StoreError where a JSON document says that it is of a later version than `known`.

    It must not be taken for damage: what a newer program made is right, and this one may neither use nor delete it.
    """
    try:
        version = json.loads(data).get("version")
    except (ValueError, AttributeError):
        return  # no document of ours: whoever reads it says so
    if isinstance(version, int) and version > known:
        raise StoreError(
            f"a newer quantize made this {what} (version {version}; this one, {__version__}, knows {known}).",
            where=str(path),
            fix="Upgrade quantize, or give this one a store of its own with --store.",
        )


def verify_directory(directory: Path, manifest: Manifest) -> list[str]:
    """Recompute every digest from bytes; a sentence for each file that is missing, changed or not listed."""
    problems = []
    for entry in manifest.files:
        path = directory / _relative(entry.path)
        if not path.is_file():
            mend = f": it stands for {entry.target}, which is not here (`cp -rL` copies a store with such files)"
            problems.append(f"{path}: missing{mend if entry.target is not None else ''}")
        elif path.stat().st_size != entry.size:
            problems.append(f"{path}: {path.stat().st_size} bytes, the manifest says {entry.size}")
        elif file_sha256(path) != entry.sha256:
            problems.append(f"{path}: its sha256 is not the manifest's")
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    extra = [path for path in _files(directory) if path.relative_to(directory).as_posix() not in listed]
    return problems + [f"{path}: not in the manifest" for path in extra]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into a StoreError that says how to mend it."""
    try:
        yield
    except OSError as error:
        fixes = {
            errno.ENOSPC: FULL_DISK,
            errno.EDQUOT: "The disk quota is used up: free some space and run again.",
            errno.EROFS: "The file system is read-only: choose another with --store.",
            errno.EACCES: "You may not write there: choose another store with --store.",
        }
        if error.errno not in fixes:
            raise
        raise StoreError(f"{error.strerror}.", where=str(path), fix=fixes[error.errno]) from error


def _check_cheaply(directory: Path, entry: FileEntry) -> None:
    path = directory / _relative(entry.path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StoreError(
            "the file is gone.", where=str(path), fix=f"Remove {directory} and run again: the stage is made anew."
        ) from None
    if found.st_size != entry.size or (entry.mtime_ns is not None and found.st_mtime_ns != entry.mtime_ns):
        raise StoreError(
            f"the file was changed after it was committed ({found.st_size} bytes, the manifest says {entry.size}).",
            where=str(path),
            fix=f"Remove {directory} and run again: the stage is made anew.",
        )


def _entry(root: Path, path: Path) -> FileEntry:
    name = path.relative_to(root).as_posix()
    if path.is_symlink():
        target = path.resolve(strict=True)
        found = target.stat()
        return FileEntry(
            path=name,
            size=found.st_size,
            sha256=file_sha256(target),
            target=str(target),
            mtime_ns=found.st_mtime_ns,
        )
    sync(path)
    return FileEntry(path=name, size=path.stat().st_size, sha256=file_sha256(path))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"the manifest names {name!r}, a path out of the artifact.", fix="Do not trust this artifact.")
    return path


def sync(path: Path) -> None:
    """Flush a file, or a directory's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
