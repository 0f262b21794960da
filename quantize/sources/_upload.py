"""An already quantized checkpoint, wherever it lies: its digests, what it says of itself, and its files, checked.

A place is a GGUF file, a directory of safetensors, a directory that holds one GGUF file, or a repository on the hub
at a commit. What `quantize pull` laid down is taken file by file as its list says. Files are linked, not copied, where
the file system can: an upload may be large, and the artifact must not vanish with it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantize.artifact import FileEntry, ModelFacts
from quantize.claims import listed_files
from quantize.errors import RegistryError, SourceError
from quantize.gguf_file import read_gguf
from quantize.handed import Progress
from quantize.record import file_sha256
from quantize.registry import MANIFEST_FILE
from quantize.scheme import Scheme
from quantize.sources._check import PICKLES, check_checkpoint
from quantize.sources._digests import remembered_sha256
from quantize.sources._facts import config_facts, read_config, read_header, weight_files
from quantize.sources._held import scheme_of_config, scheme_of_gguf
from quantize.sources.directory import Directory
from quantize.sources.gguf import Gguf
from quantize.sources.hub import Hub, fetch_one

__all__ = ["GGUF_FILE", "Held", "bring", "held", "identify", "lacking"]

#: What a GGUF file is called in an artifact.
GGUF_FILE = "model.gguf"


@dataclass(frozen=True, slots=True)
class Held:
    """What a checkpoint says of itself; `scheme` and `facts` are None for a GGUF file that has to be fetched first.

    `ignored` are patterns of modules that were left alone, as far as it lists them.
    """

    format: str
    scheme: Scheme | None
    facts: ModelFacts | None
    ignored: tuple[str, ...] = ()


def identify(path: str | None, hub: Hub | None, file: str | None) -> dict[str, Any]:
    """Digests of the files, or the hub's commit: never a path. Raises SourceError."""
    if hub is not None:
        return {**hub.identity(), **({"file": file} if file is not None else {})}
    place = _local(path)
    listed = _listed(place)
    if listed is not None:
        return {"files": {entry.path: remembered_sha256(place / entry.path) for entry in listed}}
    gguf = _gguf(place)
    return {"gguf": remembered_sha256(gguf)} if gguf is not None else Directory(path=str(place)).identity()


def held(path: str | None, hub: Hub | None, file: str | None) -> Held:
    """Container, numbers and shapes. Of a repository `config.json` is asked for. Raises SourceError."""
    if hub is not None and file is not None:
        return Held("gguf", None, None)
    if hub is not None:
        config, where = read_config(fetch_one(hub, "config.json")), f"{hub.repo}@{hub.revision}"
    else:
        place = _local(path)
        gguf = _gguf(place)
        if gguf is not None:
            return Held("gguf", scheme_of_gguf(gguf), Gguf(path=str(gguf)).facts())
        config, where = read_config(place / "config.json"), str(place)
    format_, scheme, ignored = scheme_of_config(config, where)
    return Held(format_, scheme, config_facts(config), ignored)


def bring(path: str | None, hub: Hub | None, file: str | None, out: Path, progress: Progress) -> None:
    """Link the files into the empty `out` and check them: no pickle, nothing cut short, no NaN. Raises SourceError.

    A GGUF file becomes `model.gguf`; what belongs beside it is the caller's.
    """
    if hub is not None and file is None:
        scratch = out / ".hub"
        scratch.mkdir()
        hub.link(scratch)
        check_checkpoint(scratch, progress)
        for found in sorted(scratch.iterdir()):
            _link(found, out / found.name)
        shutil.rmtree(scratch)
        return
    place = fetch_one(hub, file) if hub is not None and file is not None else _local(path)
    listed = _listed(place)
    if listed is not None:
        _bring_listed(place, listed, out)
    elif (gguf := _gguf(place)) is not None:
        _link(gguf, out / GGUF_FILE)
    else:
        directory = Directory(path=str(place))
        directory.facts()  # refuses pickle before anything is linked
        for name in directory.identity()["files"]:
            _link(place / name, out / name)
    if (out / GGUF_FILE).is_file():
        read_gguf(out / GGUF_FILE)
    else:
        check_checkpoint(out, progress)


def lacking(checkpoint: Path, baseline: Path) -> str | None:
    """A module whose weights the baseline has and the checkpoint has not, by the names of their tensors; None: none.

    An output head that is the embedding may be left out.
    """
    ours, theirs = (
        {name.rpartition(".")[0] for path in weight_files(place) for name in read_header(path)}
        for place in (checkpoint, baseline)
    )
    tied = read_config(checkpoint / "config.json").get("tie_word_embeddings", False)
    missing = sorted(name for name in theirs - ours if not (tied and name.endswith("lm_head")))
    return missing[0] if missing else None


def _local(path: str | None) -> Path:
    place = Path(path or "")
    if not place.exists():
        raise SourceError("there is no such checkpoint.", where=str(place), fix="Check method.path in the recipe.")
    return place


def _gguf(place: Path) -> Path | None:
    """The GGUF file at a place: the file itself, or the only one of a directory without safetensors."""
    if place.is_file():
        return place
    found = sorted(place.glob("*.gguf"))
    if not found or any(place.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SourceError(f"there are several GGUF files ({names}).", where=str(place), fix="Name one of them.")
    return found[0]


def _listed(place: Path) -> list[FileEntry] | None:
    """The files that `quantize pull` laid down at a place; None where it did not."""
    listing = place / MANIFEST_FILE
    if not place.is_dir() or not listing.is_file():
        return None
    try:
        entries = listed_files(listing.read_text(encoding="utf-8"), str(place))
    except RegistryError as error:
        raise SourceError(error.what, where=str(listing), fix="Pull it again.") from error
    for entry in entries:
        name = PurePosixPath(entry.path)
        if name.is_absolute() or ".." in name.parts or name.suffix in PICKLES:
            raise SourceError(f"its list names {entry.path!r}.", where=str(listing), fix="Do not use it.")
        if not (place / name).is_file():
            raise SourceError(f"{entry.path} is missing.", where=str(place), fix="Pull it again.")
    return entries


def _bring_listed(place: Path, entries: list[FileEntry], out: Path) -> None:
    for entry in entries:
        target = out / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(place / entry.path, target)
        if file_sha256(target) != entry.sha256:
            raise SourceError(
                f"{entry.path} is not the file that its list names.", where=str(place), fix="Pull it again."
            )


def _link(source: Path, target: Path) -> None:
    """A second name for the file, or a copy where the file system gives none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
