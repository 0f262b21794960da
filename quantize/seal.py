"""The seal of a run: what its folder held, and which manifests its artifacts had, when it ended.

    <run folder>/seal.json   {"seal": {...}, "sha256": "<digest of the seal>"}, canonical JSON

An artifact's manifest vouches for the artifact's files. The seal vouches for the rest: every file of the run folder,
logs too, and the bytes of the manifests themselves. It protects from damage and from careless hands; somebody who
rewrites files and seal alike is only found where numbers are recomputed (`quantize verify` does both).

The order of writes: the old seal goes, the record is written, the new seal is written last. A run that was killed
in between has no seal, and `quantize verify` says so; the next run of the same recipe reuses its artifacts and seals a
folder of its own. Whatever writes into a run folder therefore does it before `Runner.write`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from quantize import faults
from quantize.errors import StoreError
from quantize.record import Record, canonical_json, file_sha256
from quantize.store import MANIFEST, Store, read_manifest, sync

__all__ = ["SEAL", "Seal", "SealedFile", "folder_problems", "read_seal", "seal", "with_inputs", "withdraw"]

SEAL = "seal.json"


class SealedFile(Record):
    """Size in bytes and sha256 (hex) of a file."""

    size: int
    sha256: str


class Seal(Record):
    """What a run left behind.

    `files` are those of the run folder, by POSIX path. `artifacts` and `parts` map an artifact's key to the sha256
    (hex) of its `manifest.json`. Artifacts are what the run reached and what that was made from; parts are what a long
    stage kept on its way, which `quantize gc` may have removed since.
    """

    version: Literal[1] = 1
    run: str
    files: dict[str, SealedFile]
    artifacts: dict[str, str]
    parts: dict[str, str]


def withdraw(directory: Path) -> None:
    """Remove a run folder's seal, if it has one: its files are about to change."""
    path = directory / SEAL
    if path.exists():
        path.unlink()
        # On disk before anything changes, or a power cut could leave new files under the old seal.
        sync(directory)


def seal(directory: Path, store: Store, keys: Iterable[str]) -> Seal:
    """Seal a run folder and the artifacts with these keys, with their inputs. Returns what `seal.json` now holds."""
    paths = with_inputs(store, keys)
    parts = {key: path for key in _parts(paths.values()) if (path := store.locate(key)) is not None}
    made = Seal(
        run=directory.name,
        files={name: _sealed(directory / name) for name in _names(directory)},
        artifacts={key: file_sha256(path / MANIFEST) for key, path in paths.items()},
        parts={key: file_sha256(path / MANIFEST) for key, path in parts.items()},
    )
    part = directory / f"{SEAL}.part"
    part.write_bytes(_text(made))
    sync(part)
    faults.point("run.seal_written")
    part.rename(directory / SEAL)
    sync(directory)
    return made


def read_seal(directory: Path) -> Seal | None:
    """A run folder's seal, or None where there is none. Raises StoreError for one that is not as it was written."""
    path = directory / SEAL
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = Seal.model_validate(json.loads(data)["seal"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError("this is not a seal of this program.", where=str(path)) from error
    if _text(found) != data:
        raise StoreError("the seal was changed after it was written.", where=str(path))
    return found


def folder_problems(directory: Path, found: Seal) -> list[str]:
    """A sentence for each file of a run folder that is missing, changed or not sealed."""
    present = set(_names(directory))
    problems = []
    for name, expected in found.files.items():
        path = directory / name
        if name not in present:
            problems.append(f"{path}: missing")
        elif path.stat().st_size != expected.size:
            problems.append(f"{path}: {path.stat().st_size} bytes, the seal says {expected.size}")
        elif file_sha256(path) != expected.sha256:
            problems.append(f"{path}: its sha256 is not the seal's")
    extra = sorted(present - set(found.files))
    return problems + [f"{directory / name}: not in the seal (a release that was killed leaves one)" for name in extra]


def with_inputs(store: Store, keys: Iterable[str]) -> dict[str, Path]:
    """The directories of the artifacts with these keys and of all that they were made from, by key, where they are."""
    found: dict[str, Path] = {}
    waiting = set(keys)
    while waiting:
        key = waiting.pop()
        path = store.locate(key)
        if path is None:
            continue
        found[key] = path
        try:
            manifest = read_manifest(path)
        except StoreError:
            continue  # what it was made from is not known; `quantize verify` names the manifest
        waiting |= set(manifest.inputs.values()) - set(found) if manifest is not None else set()
    return dict(sorted(found.items()))


def _parts(directories: Iterable[Path]) -> list[str]:
    """The keys of the parts that long stages say they kept."""
    keys: set[str] = set()
    for directory in directories:
        try:
            manifest = read_manifest(directory)
        except StoreError:
            continue
        keys |= set(manifest.summary.get("parts", ())) if manifest is not None else set()
    return sorted(keys)


def _names(directory: Path) -> list[str]:
    paths = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in paths if name != SEAL)


def _sealed(path: Path) -> SealedFile:
    sync(path)
    return SealedFile(size=path.stat().st_size, sha256=file_sha256(path))


def _text(made: Seal) -> bytes:
    return canonical_json({"seal": made, "sha256": made.digest()})
