"""What an operator does to a registered model by hand: look, promote, roll back, pull."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from quantize.artifact import FileEntry, files_digest
from quantize.errors import RegistryError
from quantize.protocols import MANIFEST_FILE, Registry, VersionState
from quantize.record import file_sha256
from quantize.store import writing

__all__ = ["Event", "Move", "history", "promote", "pull", "rollback"]

_PROMOTABLE = ("passed", "promoted", "superseded")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a model, as its versions' tags tell it."""

    when: str
    version: str
    variant: str
    what: str
    by: str


@dataclass(frozen=True, slots=True)
class Move:
    """An alias that was moved by hand."""

    alias: str
    before: str | None
    after: str
    reason: str
    by: str


def history(registry: Registry) -> list[Event]:
    """Everything that happened, oldest first."""
    events = []
    for version in registry.versions():
        tags = version.tags
        made = "registered as the baseline" if version.variant == "baseline" else "registered"
        events.append(Event(version.created, version.version, version.variant, made, tags.get("program", "")))
        if "decided_at" in tags:
            events.append(
                Event(
                    tags["decided_at"],
                    version.version,
                    version.variant,
                    tags.get("sentence", ""),
                    tags.get("actor", ""),
                )
            )
        for verb in ("promoted", "rolled_back"):
            if f"{verb}_at" in tags:
                what = f"{verb.replace('_', ' ')} by hand: {tags.get(f'{verb}_reason', '')}"
                by = tags.get(f"{verb}_by", "")
                events.append(Event(tags[f"{verb}_at"], version.version, version.variant, what, by))
    return sorted(events, key=lambda event: (event.when, int(event.version)))


def promote(registry: Registry, variant: str, version: str | None, reason: str, actor: str, *, force: bool) -> Move:
    """Make a version the champion of its variant. Without `version`: the newest that passed. Raises RegistryError."""
    versions = {v.version: v for v in _known(registry)}
    mine = [v for v in versions.values() if v.variant == variant]
    if not mine:
        names = ", ".join(sorted({v.variant for v in versions.values()}))
        raise RegistryError(f"there is no variant {variant!r} (there are {names}).", where=registry.name)
    wanted = _choose(mine, version, registry, force=force)
    aliases = registry.aliases()
    before = aliases.get(variant)
    if before != wanted.version:
        registry.set_alias(f"{variant}-previous", before or _known(registry)[0].version)
        registry.set_alias(variant, wanted.version)
    if before is not None and before != wanted.version and versions[before].state == "promoted":
        registry.tag(before, {"state": "superseded"})
    registry.tag(wanted.version, {"state": "promoted", **_signed("promoted", reason, actor)})
    return Move(variant, before, wanted.version, reason, actor)


def rollback(registry: Registry, alias: str | None, to: str | None, reason: str, actor: str) -> Move:
    """Move an alias (of a variant or a target; None: the only target) back to its previous version, or to `to`.

    The version that is left is marked, and no run promotes it again. Raises RegistryError.
    """
    versions = {v.version: v for v in _known(registry)}
    aliases = registry.aliases()
    alias = alias or _only_target(registry, aliases)
    if alias not in aliases:
        names = ", ".join(sorted(name for name in aliases if not name.endswith(("-previous", "-candidate")))) or "none"
        raise RegistryError(f"there is no alias {alias!r} (there are {names}).", where=registry.name)
    before = aliases[alias]
    after = to or aliases.get(f"{alias}-previous")
    if after is None or after == before:
        raise RegistryError(
            f"{alias} points at version {before} and there is nothing before it to go back to.",
            where=registry.name,
            fix="Name a version with --to; `quantize status` lists them.",
        )
    if after not in versions:
        raise RegistryError(f"there is no version {after}.", where=registry.name)
    registry.set_alias(alias, after)
    if before != next(iter(versions)):
        registry.tag(before, {"state": "rolled_back", **_signed("rolled_back", reason, actor)})
    return Move(alias, before, after, reason, actor)


def pull(registry: Registry, reference: str, out: Path) -> VersionState:
    """Fetch the bytes behind an alias or a version into `out` and verify each of them. Raises RegistryError.

    `out` appears only when all of it is there and right.
    """
    versions = {v.version: v for v in _known(registry)}
    aliases = registry.aliases()
    number = aliases.get(reference, reference)
    if number not in versions:
        names = ", ".join(sorted(aliases)) or "none"
        raise RegistryError(f"there is no alias or version {reference!r} (aliases: {names}).", where=registry.name)
    version = versions[number]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RegistryError("the place is not empty.", where=str(out), fix="Name a new directory.")
    with writing(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        try:
            registry.download(version.version, scratch)
            _verify(scratch, version, registry)
            if out.exists():
                out.rmdir()
            scratch.chmod(0o755)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return version


def _known(registry: Registry) -> list[VersionState]:
    versions = registry.versions()
    if not versions:
        raise RegistryError("there is no such registered model.", where=registry.name, fix="`quantize run` makes one.")
    return versions


def _choose(mine: list[VersionState], version: str | None, registry: Registry, *, force: bool) -> VersionState:
    if version is None:
        fit = [v for v in mine if v.state in _PROMOTABLE] or (mine if force else [])
        if not fit:
            states = ", ".join(f"{v.version} {v.state}" for v in mine)
            raise RegistryError(f"no version passed ({states}).", where=registry.name, fix="--force overrides that.")
        return fit[-1]
    found = next((v for v in mine if v.version == version), None)
    if found is None:
        raise RegistryError(f"version {version} is not one of this variant.", where=registry.name)
    if found.state not in _PROMOTABLE and not force:
        raise RegistryError(f"version {version} is {found.state}.", where=registry.name, fix="--force overrides that.")
    return found


def _only_target(registry: Registry, aliases: dict[str, str]) -> str:
    """The one alias that is not a variant's: what consumers load."""
    variants = {version.variant for version in registry.versions()}
    names = {name for name in aliases if not name.endswith(("-previous", "-candidate"))} - variants
    if len(names) != 1:
        listed = ", ".join(sorted(names)) or "none"
        raise RegistryError(f"the model has not one target but: {listed}.", where=registry.name, fix="Name --alias.")
    return names.pop()


def _signed(verb: str, reason: str, actor: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {f"{verb}_at": now, f"{verb}_by": actor, f"{verb}_reason": reason}


def _verify(directory: Path, version: VersionState, registry: Registry) -> None:
    """Every file listed is there with its digest, nothing else is, and the list is the version's."""
    where = f"{registry.name} version {version.version}"
    listing = directory / MANIFEST_FILE
    if not listing.is_file():
        raise RegistryError("it holds no list of files; quantize did not make it.", where=where)
    entries = [FileEntry(**row) for row in json.loads(listing.read_text(encoding="utf-8"))["files"]]
    if files_digest(entries) != version.artifact_digest:
        raise RegistryError("its list of files is not the one that was judged.", where=where, fix="Do not use it.")
    for entry in entries:
        path = directory / PurePosixPath(entry.path)
        if ".." in PurePosixPath(entry.path).parts or not path.is_file() or file_sha256(path) != entry.sha256:
            raise RegistryError(f"{entry.path} is not the file that was judged.", where=where, fix="Do not use it.")
    extra = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    extra -= {entry.path for entry in entries} | {MANIFEST_FILE}
    if extra:
        raise RegistryError(f"{min(extra)} was added after it was judged.", where=where, fix="Do not use it.")
