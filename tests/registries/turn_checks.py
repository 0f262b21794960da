"""What must hold of a registry in which nothing is left to settle."""

from __future__ import annotations

from collections.abc import Callable

from release_world import World

from quantize.errors import RegistryError
from quantize.history import check_journal, history
from quantize.journal import Chain
from quantize.turn import read_journal

#: Calls that a counted piece of work made and others need not: the first release on a server lays out what all share,
#: and a lock is renewed by the clock.
NEVER = 3


def whole(world: World) -> Chain:
    """The journal of a registry in which nothing is left to settle."""
    checked = check_journal(world.registry)
    assert checked.problems == ()
    assert checked.astray == {}
    chain = read_journal(world.registry)
    assert chain.state.intent is None
    return chain


def told(world: World) -> list[str]:
    return [event.what for event in history(world.registry) if event.what != "registered"]


def moves(chain: Chain) -> list[tuple[str, str | None, str | None]]:
    """Every move that was done, in the journal's order: (alias, before, after)."""
    done = {linked.entry.closes for linked in chain.entries if linked.entry.kind == "done"}
    intents = [linked.entry.intent for linked in chain.entries if linked.number in done]
    return [(move.alias, move.before, move.after) for intent in intents if intent for move in intent.moves]


def serial(found: list[tuple[str, str | None, str | None]]) -> dict[str, str | None]:
    """Where aliases are after all moves. Fails where a move does not begin where the one before it ended."""
    where: dict[str, str | None] = {}
    for alias, before, after in found:
        assert where.get(alias) == before
        where[alias] = after
    return where


def refusal(work: Callable[[], None]) -> str:
    """What a piece of work ends with: an error's text, or nothing."""
    try:
        work()
    except RegistryError as error:
        return str(error)
    return ""
