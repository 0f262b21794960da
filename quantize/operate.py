"""What an operator does to a registered model by hand: promote (or approve), roll back, reconcile.

Each is a transaction (`transaction.py`), and settles first what an earlier one left half done. Where that was the very
thing that is asked for, there is nothing more to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from quantize import faults
from quantize.claims import check_claims, check_rows
from quantize.errors import RegistryError
from quantize.history import known_versions
from quantize.journal import Event
from quantize.promoting import Promotion, Show, lay_out, named
from quantize.promotion import BASELINE, alias_map, now, target_names
from quantize.proved import Proved
from quantize.registry import Registry, VersionState
from quantize.review import Checklist
from quantize.story import retell
from quantize.transaction import Stale, settle, settled, transact, unsettled
from quantize.turn import holding

__all__ = ["Move", "Prove", "promote", "reconcile", "rollback"]

#: What a rollback may go to without being told: what served before (by a person's hand it need not have been promoted
#: by a run), or the model as given.
_SERVED = ("passed", "promoted", "superseded", BASELINE)
#: How the aliases end that move with another one and are never moved alone.
_KEPT = ("-previous", "-candidate")
#: Letters of what a proof said, in the journal.
_SENTENCE = 1000
Note = Callable[[str], None]
#: Opens a version in its engine and asks it, or raises RegistryError.
Prove = Callable[[VersionState], Proved]


def _silent(_sentence: str) -> None:
    """For callers that show nothing while they wait."""


def _unseen(_checklist: Checklist) -> None:
    """For callers that show no checklist."""


@dataclass(frozen=True, slots=True)
class Move:
    """An alias that was moved by hand, or in a dry run would be.

    `still` are other aliases that serve the version that was left; `also` are the targets that moved with it, with the
    versions that they served before. `checklist` is what the version was reviewed by, where it was.
    """

    alias: str
    before: str | None
    after: str
    reason: str
    actor: str
    still: tuple[str, ...] = ()
    also: dict[str, str | None] = field(default_factory=dict)
    checklist: Checklist | None = None
    proved: Proved | None = None
    dry_run: bool = False


def promote(
    registry: Registry,
    variant: str,
    version: str | None,
    reason: str,
    actor: str,
    *,
    force: bool,
    note: Note = _silent,
    show: Show = _unseen,
    dry_run: bool = False,
) -> Move:
    """Make a version the champion of `variant`; without `version`, the newest that passed.

    One that waits for approval takes the targets with it that its release found it fit for. `variant` may be a target's
    alias, then `version` is needed. `show` is given the checklist before anything moves. Raises RegistryError for a
    version that did not pass, was rolled back or whose checklist is not met, unless `force`, and for one that is not
    what it claims to be.
    """
    known = known_versions(registry)  # before anything is made for a model that is not there
    if dry_run:
        _warn_unsettled(registry, note)
        found = lay_out(registry, known, variant, version, reason, force=force, note=note, show=show)
        check_claims(registry, found.wanted)
        return _moved(variant, found, actor, dry_run=True)
    with settled(registry, note) as (turn, finished):
        if done := _same(finished, "promoted", variant, reason, actor):
            retell(registry, note)
            return Move(variant, done.against, str(done.aliases[variant]), reason, actor)
        found = lay_out(registry, known_versions(registry), variant, version, reason, force=force, note=note, show=show)
        event = Event(
            when=now(),
            what="promoted",
            variant=found.wanted.variant,
            version=found.wanted.version,
            aliases={},
            against=found.before,
            actor=actor,
            reason=found.reason,
        )
        check_rows(registry, found.wanted)  # by which whoever promotes it has judged it
        signed = _signed(f"Promoted by hand: {variant} points at version {found.wanted.version}.", event)
        own = {**found.tags.get(found.wanted.version, {}), **signed}
        transact(turn, event, found.moves, {**found.tags, found.wanted.version: own})
        faults.point("promote.done")
        retell(registry, note)
    return _moved(variant, found, actor)


def _moved(alias: str, found: Promotion, actor: str, *, dry_run: bool = False) -> Move:
    return Move(
        alias,
        found.before,
        found.wanted.version,
        found.reason,
        actor,
        also=found.also,
        checklist=found.checklist,
        dry_run=dry_run,
    )


def _warn_unsettled(registry: Registry, note: Note) -> None:
    if unsettled(registry):
        note("something was left half done or moved by hand: the real command settles that first")


def rollback(
    registry: Registry,
    alias: str | None,
    to: str | None,
    reason: str,
    actor: str,
    note: Note = _silent,
    *,
    prove: Prove | None = None,
    evidence: tuple[str, str] = ("", ""),
    dry_run: bool = False,
) -> Move:
    """Move an alias (of a variant or a target; None: the only target) back to its previous version, or to `to`.

    `prove` opens the version that will serve, before the lock is taken: that may take minutes. Without it the move is
    written down as unproven. `evidence` are the digest of a verdict and its MLflow run, where one asked for this.

    The version that is left is marked, and no run promotes it again; `<alias>-previous` then points at it. Raises
    RegistryError; Stale where the version to go back to is another one when the lock is there.
    """
    known = known_versions(registry)
    if dry_run:
        _warn_unsettled(registry, note)
        return _would_go_back(_way_back(registry, known, alias, to), reason, actor, prove)
    proved: Proved | None = None
    if prove is not None:
        if isinstance(opened := _open(registry, alias, to, reason, actor, note, prove), Move):
            return opened
        proved = opened
    with settled(registry, note) as (turn, finished):
        versions = known_versions(registry)
        if done := _rolled_back(finished, alias or _only_target(versions, registry), reason, actor):
            retell(registry, note)
            return done
        alias, left, after = _way_back(registry, versions, alias, to)
        if proved is not None and proved.artifact != after.artifact_digest:
            raise Stale(
                f"{alias} would go to version {after.version} by now, which is not the one that was opened.",
                where=registry.name,
                fix="Nothing was moved. The same command again opens that one.",
            )
        event = _left(left, reason, actor, evidence, proved)
        signed = _signed(f"Rolled back: {alias} went from version {left.version} to {after.version}.", event)
        state = BASELINE if left.variant == BASELINE else "rolled_back"
        tags = {left.version: {**signed, "rolled_back_at": event.when, "reason": reason, "state": state}}
        if after.state == "superseded" and after.variant == alias:
            tags[after.version] = {"state": "promoted"}
        transact(turn, event, {alias: after.version, f"{alias}-previous": left.version}, tags)
        faults.point("rollback.done")
        retell(registry, note)
    return Move(alias, left.version, after.version, reason, actor, _still(left, alias), proved=proved)


def _would_go_back(way: tuple[str, VersionState, VersionState], reason: str, actor: str, prove: Prove | None) -> Move:
    """What a rollback would move. The version that it goes to is opened all the same: that is what is asked."""
    alias, left, after = way
    proved = prove(after) if prove is not None else None
    return Move(alias, left.version, after.version, reason, actor, _still(left, alias), proved=proved, dry_run=True)


def _left(left: VersionState, reason: str, actor: str, evidence: tuple[str, str], proved: Proved | None) -> Event:
    """What the journal tells of a version that an alias leaves."""
    return Event(
        when=now(),
        what="rolled back",
        variant=left.variant,
        version=left.version,
        aliases={},
        against=left.version,
        actor=actor,
        reason=reason,
        verdict=evidence[0],
        run=evidence[1],
        proved=_as_told(proved),
    )


def _way_back(
    registry: Registry, versions: list[VersionState], alias: str | None, to: str | None
) -> tuple[str, VersionState, VersionState]:
    """The alias, the version that it leaves, and the one that it goes to. Raises RegistryError where there is none."""
    aliases = alias_map(versions)
    alias = alias or _only_target(versions, registry)
    served = sorted(name for name in aliases if not name.endswith(_KEPT))
    if alias not in served:
        names = ", ".join(served) or "none"
        raise RegistryError(f"it has no alias {alias!r} (there are {names}).", where=registry.name)
    return alias, named(versions, aliases[alias], registry), _destination(versions, alias, to, registry)


def _rolled_back(finished: list[Event], alias: str, reason: str, actor: str) -> Move | None:
    """The rollback that was settled just now, where it is the one that is asked for again."""
    found = _same(finished, "rolled back", alias, reason, actor)
    return Move(alias, found.version, str(found.aliases[alias]), reason, actor) if found is not None else None


def _still(left: VersionState, alias: str) -> tuple[str, ...]:
    return tuple(name for name in left.aliases if name != alias and not name.endswith(_KEPT))


def reconcile(registry: Registry, note: Note = _silent, *, undo: bool = False) -> list[Event]:
    """Finish what was begun and cut off, or `undo` it; put back what was moved late; note what was moved by hand.

    Returns what was done, nothing where all is in order. Raises RegistryError.
    """
    known_versions(registry)
    with holding(registry, note) as turn:
        done = settle(turn, undo=undo)
        faults.point("reconcile.done")
        if done:
            retell(registry, note)
    return done


def _open(
    registry: Registry, alias: str | None, to: str | None, reason: str, actor: str, note: Note, prove: Prove
) -> Proved | Move:
    """Open the version that a rollback goes to. The move itself, where an earlier one that was cut off just made it."""
    if unsettled(registry):
        with settled(registry, note) as (_, finished):
            served = alias or _only_target(known_versions(registry), registry)
            if found := _rolled_back(finished, served, reason, actor):
                return found
    _, _, after = _way_back(registry, known_versions(registry), alias, to)
    return prove(after)


def _as_told(proved: Proved | None) -> dict[str, str]:
    """What the journal says of a version's opening."""
    if proved is None:
        return {"outcome": "unproven"}
    told = {"engine": proved.engine, "digest": proved.artifact, "when": proved.when}
    return {"outcome": "proved", **told, "sentence": proved.sentence[:_SENTENCE]}


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
    found = named(versions, number, registry)
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


def _signed(what: str, event: Event) -> dict[str, str]:
    """The tags that say why a version is what it is, and who says so: the last decision's, a run's or a person's."""
    return {"decided_at": event.when, "actor": event.actor, "sentence": f"{what} {event.reason}"}


def _only_target(versions: list[VersionState], registry: Registry) -> str:
    names = target_names(versions)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise RegistryError(f"the model has not one target but: {listed}.", where=registry.name, fix="Name --alias.")
    return names[0]
