"""What a registered model is and how it came to be: rows that a terminal or a program can show."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.promotion import BASELINE, Event, events
from quantize.protocols import Registry

__all__ = ["Event", "StatusRow", "history", "known_versions", "status"]


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One version: what it is, which aliases serve it, and the last decision about it."""

    version: str
    variant: str
    state: str
    aliases: tuple[str, ...]
    artifact_digest: str
    weight_bytes: int | None
    created: str
    decided_at: str
    actor: str
    sentence: str


def known_versions(registry: Registry) -> list[VersionState]:
    """All versions, oldest first. Raises RegistryError where there is no such model."""
    versions = registry.versions()
    if not versions:
        raise RegistryError(
            "there is no such registered model.",
            where=registry.name,
            fix="Check the name, --store and --registry; `quantize run` makes one.",
        )
    return versions


def status(registry: Registry) -> list[StatusRow]:
    """One row a version, oldest first. Raises RegistryError where there is no such model."""
    return [_row(version) for version in known_versions(registry)]


def history(registry: Registry) -> list[Event]:
    """Everything that happened, oldest first: what, when, by whom, on which evidence, against which champion.

    Raises RegistryError where there is no such model.
    """
    found = []
    for version in known_versions(registry):
        found.append(_registered(version))
        found += events(version)
    return sorted(found, key=lambda event: (event.when, int(event.version)))


def _row(version: VersionState) -> StatusRow:
    tags = version.tags
    return StatusRow(
        version=version.version,
        variant=version.variant,
        state=version.state,
        aliases=version.aliases,
        artifact_digest=version.artifact_digest,
        weight_bytes=int(tags["weight_bytes"]) if "weight_bytes" in tags else None,
        created=version.created,
        decided_at=tags.get("decided_at", ""),
        actor=tags.get("actor", ""),
        sentence=tags.get("sentence", ""),
    )


def _registered(version: VersionState) -> Event:
    as_what = " as the baseline" if version.variant == BASELINE else ""
    return Event(
        when=version.created,
        what="registered",
        variant=version.variant,
        version=version.version,
        aliases={},
        against=None,
        actor=version.tags.get("program", ""),
        reason=f"Registered{as_what} by the run {version.tags.get('run', '?')}.",
        run=version.run_id or "",
    )
