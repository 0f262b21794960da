"""A store with a finished run, what to run in it next, and what to look for afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from program import TINY, command, start, write_recipe

from quantize.artifact import Manifest
from quantize.record import file_sha256
from quantize.store import MANIFEST, Store

EVALS: list[dict[str, Any]] = [
    {"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")},
    {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")},
]
GATES = [
    {"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.05},
    {"kind": "limit", "metric": "prose.perplexity", "at_most": 0.1},
]
Q8 = {"name": "q8", "scheme": "Q8_0", "method": {"kind": "gguf"}}
NF4 = {"name": "nf4", "scheme": "NF4", "method": {"kind": "bitsandbytes"}}
W8A8 = {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}}


@dataclass(frozen=True)
class World:
    """A store, a recipe for runs in it, the variables that name interpreters, and the document of the last run."""

    store: Path
    recipe: dict[str, Any]
    variables: dict[str, str]
    document: dict[str, Any]

    def copy(self, folder: Path) -> World:
        """A world that a test may damage."""
        shutil.copytree(self.store, folder / "store", symlinks=True)
        return replace(self, store=folder / "store")

    def with_variants(self, *variants: dict[str, Any]) -> World:
        """The same store under a recipe with other variants."""
        return replace(self, recipe={**self.recipe, "variants": list(variants)})

    def command(self, verb: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command on the recipe and the store."""
        path = write_recipe(self.store.parent, self.recipe)
        given = {**self.variables, **variables}
        return command(verb, path, "--store", self.store, *arguments, seconds=1800, **given)

    def run(self, *arguments: str, **variables: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, document (empty where there is none) and what was said, of a run of the recipe."""
        done = self.command("run", "--json", *arguments, **variables)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr

    def begin(self) -> subprocess.Popen[str]:
        """A run in the background that releases nothing."""
        return start("run", write_recipe(self.store.parent, self.recipe), "--store", self.store, "--no-release")

    def find(self, kind: str, name: str) -> Path:
        """The directory of the one artifact with this name."""
        (place,) = (path for path, manifest in Store(self.store).manifests(kind) if manifest.name == name)
        return place

    def names(self, kind: str) -> list[str]:
        """The names of all artifacts of a kind."""
        return sorted(manifest.name for _, manifest in Store(self.store).manifests(kind))

    def forget(self, *kinds: str, arm: str) -> None:
        """Remove what an arm has of some kinds, so that it is made again."""
        for kind in kinds:
            for place, manifest in list(Store(self.store).manifests(kind)):
                if manifest.name.split()[0] == arm:
                    shutil.rmtree(place)

    def contents(self) -> dict[str, str]:
        """The digest of the bytes of everything committed, by key."""
        return {manifest.key: manifest.content_digest() for _, manifest in Store(self.store).manifests()}


def variants_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of a run's document by their names."""
    return {variant["name"]: variant for variant in document["variants"]}


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    """What became of every variant."""
    return {name: variant["verdict"]["outcome"] for name, variant in variants_of(document).items()}


def said_of(document: dict[str, Any], name: str) -> str:
    """All that the findings of a variant say."""
    return " ".join(finding["sentence"] for finding in variants_of(document)[name]["verdict"]["findings"])


def reseal(place: Path) -> None:
    """Write a manifest that fits the files as they are now, as if they had been made like that."""
    manifest = Manifest.model_validate_json((place / MANIFEST).read_bytes())
    files = []
    for entry in manifest.files:
        path = place / entry.path
        files.append(entry.model_copy(update={"size": path.stat().st_size, "sha256": file_sha256(path)}))
    sealed = manifest.model_copy(update={"files": files})
    (place / MANIFEST).write_text(sealed.model_dump_json(indent=1), encoding="utf-8")


def processes(*words: str | Path) -> list[int]:
    """Ids of the processes in whose command lines all `words` stand; those that have ended have none."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                line = (place / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if all(str(word) in line for word in words):
                found.append(int(place.name))
    return found
