"""What an operator does to a registered model by hand: promote, roll back."""

from __future__ import annotations

from dataclasses import dataclass

from quantize import faults
from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.history import known_versions
from quantize.promotion import BASELINE, Event, alias_map, journal, move_champion, now, target_names
from quantize.protocols import Registry

__all__ = ["Move", "promote", "rollback"]

_PROMOTABLE = ("passed", "promoted", "superseded")
#: What a rollback may go to without being told: what served before, or the model as given.
_SERVED = ("promoted", "superseded", BASELINE)
_PENDING = "rollback_pending"
#: How the aliases end that move with another one and are never moved alone.
_KEPT = ("-previous", "-candidate")


@dataclass(frozen=True, slots=True)
class Move:
    """An alias that was moved by hand. `still` are other aliases that serve the version that was left."""

    alias: str
    before: str | None
    after: str
    reason: str
    actor: str
    still: tuple[str, ...] = ()


def promote(registry: Registry, variant: str, version: str | None, reason: str, actor: str, *, force: bool) -> Move:
    """Make a version the champion of `variant`; without `version`, the newest that passed.

    `variant` may be a target's alias, then `version` is needed. Raises RegistryError for a version that did not pass or
    was rolled back, unless `force`.
    """
    versions = known_versions(registry)
    aliases = alias_map(versions)
    if variant in target_names(versions) and version is not None:
        wanted = _fit(_named(versions, version, registry), (*_PROMOTABLE, BASELINE), registry, force=force)
        if aliases[variant] != wanted.version:
            registry.set_alias(f"{variant}-previous", aliases[variant])
            registry.set_alias(variant, wanted.version)
        before: str | None = aliases[variant]
    else:
        wanted = _candidate(versions, variant, version, registry, force=force)
        before = aliases.get(variant)
        move_champion(registry, variant, wanted.version, {})
    faults.point("promote.moved")
    event = Event(now(), "promoted", wanted.variant, wanted.version, {variant: wanted.version}, before, actor, reason)
    journal(registry, wanted, event)
    faults.point("promote.journaled")
    registry.tag(wanted.version, _signed(f"Promoted by hand: {variant} points at version {wanted.version}.", event))
    return Move(variant, before, wanted.version, reason, actor)


def rollback(registry: Registry, alias: str | None, to: str | None, reason: str, actor: str) -> Move:
    """Move an alias (of a variant or a target; None: the only target) back to its previous version, or to `to`.

    The version that is left is marked first, and no run promotes it again; `<alias>-previous` then points at it. A
    rollback that was cut off is finished by the next one. Raises RegistryError.
    """
    versions = known_versions(registry)
    aliases = alias_map(versions)
    alias = alias or _only_target(versions, registry)
    served = sorted(name for name in aliases if not name.endswith(_KEPT))
    if alias not in served:
        names = ", ".join(served) or "none"
        raise RegistryError(f"it has no alias {alias!r} (there are {names}).", where=registry.name)
    left, after = _begun(versions, alias, aliases[alias]) or (
        _named(versions, aliases[alias], registry),
        _destination(versions, alias, to, registry),
    )
    mark = {_PENDING: f"{alias} {after.version}", "rolled_back_at": now(), "reason": reason}
    registry.tag(left.version, {**mark, "state": BASELINE if left.variant == BASELINE else "rolled_back"})
    faults.point("rollback.marked")
    registry.set_alias(alias, after.version)
    faults.point("rollback.moved")
    registry.set_alias(f"{alias}-previous", left.version)
    faults.point("rollback.previous")
    if after.state == "superseded" and after.variant == alias:
        registry.tag(after.version, {"state": "promoted"})
    event = Event(now(), "rolled back", left.variant, left.version, {alias: after.version}, left.version, actor, reason)
    journal(registry, left, event)
    faults.point("rollback.journaled")
    signed = _signed(f"Rolled back: {alias} went from version {left.version} to {after.version}.", event)
    registry.tag(left.version, {**signed, _PENDING: ""})
    rest = (name for name in left.aliases if name != alias and not name.endswith(_KEPT))
    return Move(alias, left.version, after.version, reason, actor, tuple(rest))


def _begun(versions: list[VersionState], alias: str, points_at: str) -> tuple[VersionState, VersionState] | None:
    """The two ends of a rollback of this alias that was cut off, unless the alias has gone elsewhere since."""
    for left in versions:
        name, _, number = left.tags.get(_PENDING, "").partition(" ")
        after = next((version for version in versions if version.version == number), None)
        if name == alias and after is not None and points_at in (left.version, after.version):
            return left, after
    return None


def _destination(versions: list[VersionState], alias: str, to: str | None, registry: Registry) -> VersionState:
    """The version to go back to: `to`, or what the alias served before."""
    aliases = alias_map(versions)
    before = aliases[alias]
    number = to or aliases.get(f"{alias}-previous")
    if number is None or number == before:
        raise RegistryError(
            f"{alias} points at version {before}, and there is nothing else to go back to.",
            where=registry.name,
            fix="Name a version with --to; `quantize status` lists them.",
        )
    found = _named(versions, number, registry)
    if alias in {version.variant for version in versions} and found.variant not in (alias, BASELINE):
        raise RegistryError(
            f"version {number} is one of {found.variant}, and {alias} serves only its own.",
            where=registry.name,
            fix="`quantize status` lists them.",
        )
    if to is None and found.state not in _SERVED:
        raise RegistryError(
            f"{alias} was version {number} before, and that one is {found.state.replace('_', ' ')}.",
            where=registry.name,
            fix=f"Name a version with --to (--to {number} goes there all the same); `quantize status` lists them.",
        )
    return found


def _candidate(
    versions: list[VersionState], variant: str, number: str | None, registry: Registry, *, force: bool
) -> VersionState:
    mine = [version for version in versions if version.variant == variant]
    if not mine or variant == BASELINE:
        names = ", ".join(sorted({v.variant for v in versions} - {BASELINE})) or "none"
        targets = ", ".join(target_names(versions))
        also = f"; with --version also a target: {targets}" if targets else ""
        raise RegistryError(f"it has no variant {variant!r} (there are {names}{also}).", where=registry.name)
    if number is None:
        passed = [version for version in mine if version.state in _PROMOTABLE]
        return passed[-1] if passed else _fit(mine[-1], _PROMOTABLE, registry, force=force)
    found = next((version for version in mine if version.version == number), None)
    if found is None:
        numbers = ", ".join(version.version for version in mine)
        raise RegistryError(f"version {number} is not one of {variant} (those are {numbers}).", where=registry.name)
    return _fit(found, _PROMOTABLE, registry, force=force)


def _fit(version: VersionState, states: tuple[str, ...], registry: Registry, *, force: bool) -> VersionState:
    if version.state in states or force:
        return version
    raise RegistryError(
        f"version {version.version} is {version.state.replace('_', ' ')}.",
        where=registry.name,
        fix="--force promotes it all the same.",
    )


def _named(versions: list[VersionState], number: str, registry: Registry) -> VersionState:
    found = next((version for version in versions if version.version == number), None)
    if found is None:
        raise RegistryError(
            f"there is no version {number} (the newest is {versions[-1].version}).", where=registry.name
        )
    return found


def _signed(what: str, event: Event) -> dict[str, str]:
    """The tags that say why a version is what it is, and who says so: the last decision's, a run's or a person's."""
    return {"decided_at": event.when, "actor": event.actor, "sentence": f"{what} {event.reason}"}


def _only_target(versions: list[VersionState], registry: Registry) -> str:
    names = target_names(versions)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise RegistryError(f"the model has not one target but: {listed}.", where=registry.name, fix="Name --alias.")
    return names[0]
