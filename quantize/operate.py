"""What an operator does to a registered model by hand: promote, roll back, reconcile.

Each is a transaction (`transaction.py`), and settles first what an earlier one left half done. Where that was the very
thing that is asked for, there is nothing more to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantize import faults
from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.history import known_versions
from quantize.journal import Event
from quantize.promotion import BASELINE, alias_map, champion_moves, now, target_names
from quantize.protocols import Registry
from quantize.transaction import settle, settled, transact
from quantize.turn import holding

__all__ = ["Move", "promote", "reconcile", "rollback"]

_PROMOTABLE = ("passed", "promoted", "superseded")
#: What a rollback may go to without being told: what served before, or the model as given.
_SERVED = ("promoted", "superseded", BASELINE)
#: How the aliases end that move with another one and are never moved alone.
_KEPT = ("-previous", "-candidate")
Note = Callable[[str], None]


def _silent(_sentence: str) -> None:
    """For callers that show nothing while they wait."""


@dataclass(frozen=True, slots=True)
class Move:
    """An alias that was moved by hand. `still` are other aliases that serve the version that was left."""

    alias: str
    before: str | None
    after: str
    reason: str
    actor: str
    still: tuple[str, ...] = ()


def promote(
    registry: Registry, variant: str, version: str | None, reason: str, actor: str, *, force: bool, note: Note = _silent
) -> Move:
    """Make a version the champion of `variant`; without `version`, the newest that passed.

    `variant` may be a target's alias, then `version` is needed. Raises RegistryError for a version that did not pass or
    was rolled back, unless `force`, and for one that is not what it claims to be.
    """
    known_versions(registry)  # before anything is made for a model that is not there
    with settled(registry, note) as (turn, finished):
        versions = known_versions(registry)
        aliases = alias_map(versions)
        if found := _same(finished, "promoted", variant, reason, actor):
            return Move(variant, found.against, str(found.aliases[variant]), reason, actor)
        before = aliases.get(variant)
        if variant in target_names(versions) and version is not None:
            wanted = _fit(_named(versions, version, registry), (*_PROMOTABLE, BASELINE), registry, force=force)
            moved = before != wanted.version and before is not None
            moves = {**({f"{variant}-previous": before} if moved and before else {}), variant: wanted.version}
            tags: dict[str, dict[str, str]] = {}
        else:
            wanted = _candidate(versions, variant, version, registry, force=force)
            moves, tags = champion_moves(versions, variant, wanted.version)
        event = Event(
            when=now(),
            what="promoted",
            variant=wanted.variant,
            version=wanted.version,
            aliases={},
            against=before,
            actor=actor,
            reason=reason,
        )
        signed = _signed(f"Promoted by hand: {variant} points at version {wanted.version}.", event)
        transact(turn, event, moves, {**tags, wanted.version: {**tags.get(wanted.version, {}), **signed}})
        faults.point("promote.done")
    return Move(variant, before, wanted.version, reason, actor)


def rollback(
    registry: Registry, alias: str | None, to: str | None, reason: str, actor: str, note: Note = _silent
) -> Move:
    """Move an alias (of a variant or a target; None: the only target) back to its previous version, or to `to`.

    The version that is left is marked, and no run promotes it again; `<alias>-previous` then points at it. Raises
    RegistryError.
    """
    known_versions(registry)
    with settled(registry, note) as (turn, finished):
        versions = known_versions(registry)
        aliases = alias_map(versions)
        alias = alias or _only_target(versions, registry)
        served = sorted(name for name in aliases if not name.endswith(_KEPT))
        if alias not in served:
            names = ", ".join(served) or "none"
            raise RegistryError(f"it has no alias {alias!r} (there are {names}).", where=registry.name)
        if found := _same(finished, "rolled back", alias, reason, actor):
            return Move(alias, found.version, str(found.aliases[alias]), reason, actor)
        left = _named(versions, aliases[alias], registry)
        after = _destination(versions, alias, to, registry)
        event = Event(
            when=now(),
            what="rolled back",
            variant=left.variant,
            version=left.version,
            aliases={},
            against=left.version,
            actor=actor,
            reason=reason,
        )
        signed = _signed(f"Rolled back: {alias} went from version {left.version} to {after.version}.", event)
        state = BASELINE if left.variant == BASELINE else "rolled_back"
        tags = {left.version: {**signed, "rolled_back_at": event.when, "reason": reason, "state": state}}
        if after.state == "superseded" and after.variant == alias:
            tags[after.version] = {"state": "promoted"}
        transact(turn, event, {alias: after.version, f"{alias}-previous": left.version}, tags)
        faults.point("rollback.done")
    rest = (name for name in left.aliases if name != alias and not name.endswith(_KEPT))
    return Move(alias, left.version, after.version, reason, actor, tuple(rest))


def reconcile(registry: Registry, note: Note = _silent, *, undo: bool = False) -> list[Event]:
    """Finish what was begun and cut off, or `undo` it; put back what was moved late; note what was moved by hand.

    Returns what was done, nothing where all is in order. Raises RegistryError.
    """
    known_versions(registry)
    with holding(registry, note) as turn:
        done = settle(turn, undo=undo)
        faults.point("reconcile.done")
    return done


def _same(finished: list[Event], what: str, alias: str, reason: str, actor: str) -> Event | None:
    """What was settled just now, where it is what the same person asks for again."""
    return next(
        (
            event
            for event in finished
            if (event.what, event.actor) == (what, actor) and event.reason.endswith(reason) and alias in event.aliases
        ),
        None,
    )


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
            f"version {number} is one of {found.variant or 'those of others'}, and {alias} serves only its own.",
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
