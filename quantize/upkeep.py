"""`quantize gc`: what no run refers to any more."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import QuantizeError, StoreError
from quantize.run import RUN, RunRecord, read_record
from quantize.store import Store, writing

__all__ = ["Garbage", "delete", "disk_use", "find_garbage", "run_directories"]


@dataclass(frozen=True, slots=True)
class Garbage:
    """A directory that may go, and the bytes that would come back."""

    path: Path
    bytes: int


def run_directories(store: Store) -> list[Path]:
    """The store's run folders, oldest first."""
    return sorted(
        (path for path in (store.root / "runs").glob("*") if path.is_dir()),
        key=lambda path: path.name.rsplit("-", 1)[-1],
    )


def disk_use(store: Store) -> dict[str, int]:
    """Bytes of all that lies in the store by its top-level name, the largest first; links are not followed."""
    found = {path.name: _held(path) if path.is_dir() else path.stat().st_size for path in store.root.glob("*")}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def find_garbage(store: Store, keep_runs: int | None) -> list[Garbage]:
    """Artifacts that no kept run reached, half-made ones, and the folders of runs that are not kept or were cut off.

    `keep_runs` is how many runs of each recipe are kept, newest first; None keeps all of them. Where any is, so is the
    last run that promoted each variant: `recheck` and `rollback` ask for its recipe and record.
    """
    keep: set[str] = set()
    by_recipe: dict[str, list[tuple[Path, RunRecord]]] = {}
    directories = run_directories(store)
    dropped = _cut_off(store, directories)
    for directory in directories:
        try:
            record = read_record(directory)
        except QuantizeError:
            # Another program's run, an older one's say, is not ours to judge: what it names stays.
            keep |= _named(directory)
            continue
        by_recipe.setdefault(record.recipe, []).append((directory, record))
    for runs in by_recipe.values():
        kept = runs if keep_runs is None else runs[len(runs) - min(keep_runs, len(runs)) :]
        if keep_runs:
            kept = [*_deciding(runs, {path for path, _ in kept}), *kept]
        dropped += [directory for directory, _ in runs if directory not in {path for path, _ in kept}]
        for _, record in kept:
            keep |= record.keys()
    manifests = [manifest for _, manifest in store.manifests()]
    keep |= {key for manifest in manifests if manifest.key in keep for key in manifest.inputs.values()}
    keep |= {key for manifest in manifests if manifest.key in keep for key in manifest.summary.get("parts", ())}
    return [Garbage(path, _held(path)) for path in (*store.garbage(keep), *dropped)]


def _deciding(runs: list[tuple[Path, RunRecord]], kept: set[Path]) -> list[tuple[Path, RunRecord]]:
    """The last run that promoted each variant, where it is not kept already."""
    last: dict[str, tuple[Path, RunRecord]] = {}
    for directory, record in runs:
        for variant in record.variants:
            if variant.decision is not None and variant.decision.action == "promote":
                last[variant.name] = (directory, record)
    found = {directory: (directory, record) for directory, record in last.values() if directory not in kept}
    return list(found.values())


def _cut_off(store: Store, directories: list[Path]) -> list[Path]:
    """Folders of runs that were killed or failed before they had a record, once a later run of the recipe has one.

    Until then somebody may want to read why it ended. While any run is going on, nobody knows which those are: it is
    asked for after the folders were listed, so that one that ended meanwhile has its record by now.
    """
    if store.held(RUN):
        return []
    finished: dict[str, str] = {}
    unfinished: list[tuple[str, str, Path]] = []
    for directory in directories:
        recipe, _, stamp = directory.name.rpartition("-")
        if (directory / "run.json").exists():
            finished[recipe] = max(stamp, finished.get(recipe, ""))
        else:
            unfinished.append((recipe, stamp, directory))
    return [directory for recipe, stamp, directory in unfinished if stamp < finished.get(recipe, "")]


def _named(directory: Path) -> set[str]:
    """Every key that a run record names, whatever else it holds; nothing where there is none."""
    try:
        return set(re.findall(r"\b[0-9a-f]{64}\b", (directory / "run.json").read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return set()


def delete(store: Store, garbage: list[Garbage]) -> None:
    """Remove what was found. The manifest goes first, so that a crash leaves garbage and never half an artifact.

    Raises StoreError while a run is going on: what it has made, no record names yet.
    """
    if store.held(RUN):
        raise StoreError(
            "a run is going on, and what it has made so far would go too.",
            where=str(store.root),
            fix="Wait until it is over.",
        )
    for item in garbage:
        with writing(item.path):
            (item.path / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(item.path)


def _held(path: Path) -> int:
    """Bytes of the files below `path`; what a running stage removes meanwhile counts for nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            with suppress(FileNotFoundError):
                total += 0 if file.is_symlink() else file.stat().st_size
    return total
