"""A promotion or a rollback as one transaction, and what finishes or undoes one that was cut off.

    lock      a turn (`turn.py`); what an earlier one left is settled first
    compare   each alias is where it was when the decision was made, else `Stale`
    verify    list of files and verdict of each version that will serve (`claims.py`)
    intent    all that will be done goes into the journal
    moves     the lock is asked for, an alias moves; `previous` before the champion, so that there always is one
    read back every alias is where it was put
    tags      of the versions: state, who, when, why
    done      the intent is closed; what it tells is the history

Each step can be done again. So whoever comes next reads the journal and goes on: an intent that is open is finished,
or, where an alias is neither where it was nor where it should go, undone as far as nobody else has touched it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from quantize import faults
from quantize.actor import actor
from quantize.claims import check_claims
from quantize.errors import RegistryError
from quantize.journal import AliasMove, Chain, Event, Intent, Linked
from quantize.promotion import alias_map, now
from quantize.registry import Registry, VersionState
from quantize.turn import Turn, holding, read_journal

__all__ = ["Stale", "settle", "settled", "tell", "transact", "unsettled"]

_SENTENCE_LENGTH = 4000
_PREVIOUS = "-previous"


class Stale(RegistryError):
    """An alias is no longer where it was when the decision was made. Nothing was moved."""


@contextmanager
def settled(registry: Registry, note: Callable[[str], None]) -> Iterator[tuple[Turn, list[Event]]]:
    """A turn in which nothing is left half done, for the time of a `with`; and what was settled at its beginning."""
    with holding(registry, note) as turn:
        yield turn, settle(turn)


def transact(turn: Turn, event: Event, moves: Mapping[str, str], tags: Mapping[str, Mapping[str, str]]) -> Event | None:
    """Carry out moves (alias -> version) in their order, then set tags by version. None where there is nothing to do.

    Raises Stale where an alias moved since the turn began, RegistryError where a version is not what it claims to be
    or where an alias does not read back; then the intent stays open, and the next turn settles it.
    """
    registry, state = turn.registry, turn.chain.state
    versions = registry.versions()
    actual = alias_map(versions)
    strange = {alias: actual.get(alias) for alias in moves if actual.get(alias) != state.aliases.get(alias)}
    if strange:
        told = ", ".join(f"{a} was {state.aliases.get(a, 'nowhere')} and is {v or 'gone'}" for a, v in strange.items())
        _notice(turn, strange, versions)
        raise Stale(
            f"an alias was moved by somebody else since this was decided ({told}).",
            where=registry.name,
            fix="Nothing was moved. The same command again decides against what is there now.",
        )
    known = {version.version: version for version in versions}
    gone = {*moves.values(), *tags} - set(known)
    if gone:
        raise RegistryError(f"version {min(gone)} is gone.", where=registry.name, fix="Nothing was moved. Run again.")
    planned = [AliasMove(alias=a, before=actual.get(a), after=v) for a, v in moves.items() if actual.get(a) != v]
    new = {number: {**found} for number, found in tags.items() if not found.items() <= known[number].tags.items()}
    if not planned and not new:
        return None
    serving = {v: known[v].artifact_digest for a, v in moves.items() if not a.endswith(_PREVIOUS)}
    for number in serving:
        check_claims(registry, known[number])
    before = {number: {key: known[number].tags.get(key, "") for key in found} for number, found in new.items()}
    told_moves = {move.alias: move.after for move in planned}
    event = event.model_copy(update={"aliases": told_moves, "reason": event.reason[:_SENTENCE_LENGTH]})
    faults.point("transaction.verified")
    intent = Intent(event=event, moves=planned, tags=new, before=before, artifacts=serving)
    linked = turn.append("intent", intent=intent)
    faults.point("transaction.intent")
    _carry_out(turn, linked, actual)
    return event


def tell(turn: Turn, event: Event) -> None:
    """Write down what moved nothing: a version that was rejected, held or found stale. Once for a verdict."""
    if event.verdict and any(_same(event, known) for known in _told(turn.chain)):
        return
    turn.append("decided", event=event.model_copy(update={"reason": event.reason[:_SENTENCE_LENGTH]}))
    faults.point("transaction.told")


def unsettled(registry: Registry) -> bool:
    """Whether a turn would find something to settle. Takes no lock. Raises RegistryError as `read_journal`."""
    chain = read_journal(registry)
    return chain.state.intent is not None or registry.aliases() != chain.state.aliases


def settle(turn: Turn, *, undo: bool = False) -> list[Event]:
    """Finish what was begun (or, with `undo`, take it back), put back what was moved late, note what was moved by hand.

    Returns what it did, and says it to `turn.note`.
    """
    versions = turn.registry.versions()
    actual = alias_map(versions)
    done = []
    if turn.chain.state.intent is not None:
        done.append(_close(turn, turn.chain.state.intent, versions, undo=undo))
        versions = turn.registry.versions()
        actual = alias_map(versions)
    known = turn.chain.state.aliases
    strange = {a: actual.get(a) for a in sorted({*actual, *known}) if actual.get(a) != known.get(a)}
    late = {(move.alias, move.version): move.generation for move in turn.chain.state.late}
    for alias, version in strange.items():
        if (alias, version) in late:
            done.append(_put_back(turn, alias, version, late[alias, version]))
    by_hand = {alias: version for alias, version in strange.items() if (alias, version) not in late}
    if by_hand:
        done.append(_notice(turn, by_hand, versions))
    for event in done:
        turn.note(f"{turn.registry.name}: {event.reason}")
    return done


def _carry_out(turn: Turn, linked: Linked, actual: Mapping[str, str]) -> None:
    """Do what an intent says, as far as it is not done. `actual` is where aliases point."""
    registry, intent = turn.registry, linked.entry.intent
    if intent is None:
        return
    for move in intent.moves:
        if actual.get(move.alias) != move.after:
            turn.check()
            faults.point("transaction.checked")
            registry.set_alias(move.alias, move.after)
            faults.point("transaction.moved")
    read = registry.aliases()
    for move in intent.moves:
        if read.get(move.alias) != move.after:
            raise RegistryError(
                f"alias {move.alias!r} was set to version {move.after} and reads back as {read.get(move.alias)}.",
                where=registry.name,
                fix="Somebody else moves aliases of this model: find out who, then run again.",
            )
    faults.point("transaction.read_back")
    turn.check()
    for number, tags in intent.tags.items():
        registry.tag(number, tags)
        faults.point("transaction.tagged")
    turn.append("done", closes=linked.number)
    faults.point("transaction.done")


def _close(turn: Turn, linked: Linked, versions: list[VersionState], *, undo: bool) -> Event:
    """Finish an intent, or undo it where it cannot be finished or shall not be."""
    intent = linked.entry.intent
    if intent is None:
        raise RegistryError(f"entry {linked.number} is an intent of nothing.", where=f"journal of {turn.registry.name}")
    actual, known = alias_map(versions), {version.version for version in versions}
    strays = [move.alias for move in intent.moves if actual.get(move.alias) not in (move.before, move.after)]
    gone = [move.after for move in intent.moves if move.after is not None and move.after not in known]
    if not (undo or strays or gone):
        _carry_out(turn, linked, actual)
        faults.point("settle.finished")
        reason = f"Finished what {linked.entry.actor} began at {linked.entry.when}: {intent.event.reason}"
        return intent.event.model_copy(update={"reason": reason})
    why = (
        f"{', '.join(strays)} moved elsewhere meanwhile"
        if strays
        else f"version {gone[0]} is gone"
        if gone
        else "an operator asked for it"
    )
    for move in reversed(intent.moves):
        if actual.get(move.alias) == move.after and (move.before is None or move.before in known):
            turn.check()
            turn.registry.set_alias(move.alias, move.before)
            faults.point("settle.undoing")
    for number, tags in intent.before.items():
        if number in known:
            turn.registry.tag(number, tags)
    read = turn.registry.aliases()
    aliases = {move.alias: read.get(move.alias) for move in intent.moves}
    reason = f"Undone, because {why}: {intent.event.what} {intent.event.variant} version {intent.event.version}."
    event = intent.event.model_copy(
        update={"what": "undone", "when": now(), "actor": actor(), "aliases": aliases, "reason": reason, "verdict": ""}
    )
    turn.append("undone", closes=linked.number, aliases=aliases, event=event)
    faults.point("settle.undone")
    return event


def _put_back(turn: Turn, alias: str, version: str | None, generation: int) -> Event:
    """Undo a move that came after its lock had been taken over: the journal knows where the alias belongs."""
    belongs = turn.chain.state.aliases.get(alias)
    who = next((found.entry.owner for found in turn.chain.entries if found.number == generation), None)
    reason = f"{alias} was moved to version {version} by {who} after its lock had been taken over; it is put back "
    reason += f"to {f'version {belongs}' if belongs is not None else 'nothing'}."
    event = _event("moved late", {alias: belongs}, reason)
    linked = turn.append(
        "intent",
        over=generation,
        intent=Intent(event=event, moves=[AliasMove(alias=alias, before=version, after=belongs)]),
    )
    faults.point("settle.late")
    _carry_out(turn, linked, {} if version is None else {alias: version})
    return event


def _notice(turn: Turn, aliases: Mapping[str, str | None], versions: list[VersionState]) -> Event:
    """Write down aliases that somebody moved past this program: from here on that is where they are."""
    ours = {version.version for version in versions if version.variant and version.artifact_digest}
    told = []
    for alias, version in aliases.items():
        foreign = " (which quantize did not make)" if version is not None and version not in ours else ""
        before = turn.chain.state.aliases.get(alias)
        told.append(f"{alias}: {before or 'nothing'} → {version or 'nothing'}{foreign}")
    begins = all(linked.entry.kind in ("lock", "unlock") for linked in turn.chain.entries)
    what, how = ("found", "stood when this journal began") if begins else ("moved by hand", "were moved past quantize")
    event = _event(what, dict(aliases), f"Aliases {how}: {'; '.join(told)}.")
    turn.append("noticed", aliases=dict(aliases), event=event)
    faults.point("settle.noticed")
    return event


def _event(what: str, aliases: dict[str, str | None], reason: str) -> Event:
    return Event(
        when=now(), what=what, variant="", version="", aliases=aliases, against=None, actor=actor(), reason=reason
    )


def _told(chain: Chain) -> list[Event]:
    events = [linked.entry.event for linked in chain.entries]
    intents = [linked.entry.intent for linked in chain.entries]
    return [*(event for event in events if event), *(intent.event for intent in intents if intent)]


def _same(one: Event, other: Event) -> bool:
    """Whether two events tell of one decision."""
    return (one.what, one.verdict, one.version) == (other.what, other.verdict, other.version)
