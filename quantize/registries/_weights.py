"""Weights that lie in a bucket or a shared folder, not with MLflow, which keeps their list and says where they are.

    <registry.weights>/<model>/<digest of the list>/<files>, and last quantize-manifest.json, the list itself

A folder's name is the digest that was judged, so equal files have one place, and a place is never written twice.
"""

from __future__ import annotations

import json
from pathlib import Path

from quantize.artifact import FileEntry, files_digest
from quantize.claims import listed_files
from quantize.errors import QuantizeError, RegistryError, StorageError
from quantize.handed import Progress
from quantize.registry import MANIFEST_FILE
from quantize.storage import address_problem, at, fetch, publish

__all__ = ["WEIGHTS", "fetch_weights", "is_place", "lay_pointer", "send_weights", "weights_problems"]

#: The tag of a version that says where its files are.
WEIGHTS = "weights_uri"
_PROBE = "quantize-probe"
_POINTER = """# The weights are not here

This version's files, as `{manifest}` beside this page lists them with their sha256, are in

    {uri}

`quantize pull NAME@ALIAS DIR` fetches them from there and verifies each.
"""


def is_place(uri: str) -> str:
    """`uri` without a slash at its end; raises ValueError for one that cannot be a place for weights."""
    problem = address_problem(uri)
    if problem:
        raise ValueError(problem)
    return uri.rstrip("/")


def weights_problems(uri: str, model: str) -> list[str]:
    """One sentence where the place is out of reach or may not be written to. Writes and deletes a few bytes there."""
    try:
        at(uri).probe(f"{model}/{_PROBE}")
    except QuantizeError as error:
        return [f"registry.weights: {error}"]
    return []


def send_weights(uri: str, model: str, checkpoint: Path, manifest: str, progress: Progress) -> str:
    """Publish the files of `checkpoint` that `manifest` lists; returns where. Raises StorageError."""
    files = listed_files(manifest, f"the list of {checkpoint}")
    under = f"{model}/{files_digest(files)}"
    there = publish(at(uri), under, checkpoint, files, (MANIFEST_FILE, manifest.encode()), progress)
    where = f"{uri}/{under}"
    if not _same(there, files, where):
        raise StorageError(
            f"the {MANIFEST_FILE} there is another one.",
            where=where,
            fix="Nothing was overwritten. Find out who wrote it and remove it, or name another registry.weights.",
        )
    return where


def lay_pointer(folder: Path, uri: str) -> Path:
    """Lay beside the list what tells a person, or a program that loads it with MLflow alone, where the files are."""
    (folder / "README.md").write_text(_POINTER.format(manifest=MANIFEST_FILE, uri=uri), encoding="utf-8")
    return folder


def fetch_weights(uri: str, manifest: str, wanted: str, out: Path, progress: Progress) -> None:
    """Copy what `manifest` lists from `uri` into `out`, and lay the list there.

    Nothing is fetched for a list whose digest is not `wanted`. Raises RegistryError, StorageError.
    """
    place = at(uri)
    files = listed_files(manifest, uri)
    if files_digest(files) != wanted:
        raise RegistryError(
            "the list of files is not the one that was judged.",
            where=f"the version with weights in {uri}",
            fix="Do not use it, and look at who can write to the registry's files.",
        )
    fetch(place, files, out, progress)
    (out / MANIFEST_FILE).write_text(manifest, encoding="utf-8")


def _same(there: bytes, files: list[FileEntry], where: str) -> bool:
    try:
        return files_digest(listed_files(there.decode(), where)) == files_digest(files)
    except (RegistryError, UnicodeDecodeError, json.JSONDecodeError):
        return False
