"""What a registered model is and how it came to be: rows that a terminal or a program can show."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.errors import RegistryError
from quantize.journal import AliasMove, Chain, Event, Linked, head_problem
from quantize.promotion import BASELINE
from quantize.registry import Registry, VersionState
from quantize.turn import owner_is_gone, read_journal

__all__ = ["Begun", "Checked", "Held", "StatusRow", "check_journal", "history", "known_versions", "status"]


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

    What moved stands in the order of the journal, whatever clocks said. Raises RegistryError where there is no such
    model, or where its journal cannot be believed.
    """
    versions = known_versions(registry)
    found = _told(read_journal(registry))
    for version in versions:
        event = _registered(version)
        mentions = (i for i, told in enumerate(found) if told.version == version.version and told.what != "registered")
        later = (i for i, told in enumerate(found) if told.when >= event.when)
        found.insert(next(mentions, next(later, len(found))), event)
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds the lock, and since when. `gone`: that process is known to have died, and the next command takes it."""

    holder: str
    since: str
    gone: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """What was begun and neither finished nor undone: being done now, or left half done."""

    what: str
    variant: str
    version: str
    actor: str
    since: str
    aliases: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a journal was found to be: how many entries count and how many are void, its head, and what is wrong.

    `astray` are aliases that are not where the journal says, (said, actual). No break: the next turn settles them.
    """

    entries: int
    void: int
    head: str
    problems: tuple[str, ...]
    astray: dict[str, tuple[str | None, str | None]]
    begun: Begun | None
    lock: Held | None


def check_journal(registry: Registry) -> Checked:
    """Read the whole journal and say where its chain breaks, and what is out of order. Takes no lock.

    Raises RegistryError for a journal of a newer program.
    """
    mark = registry.head()
    chain = Chain()
    chain.extend(registry.entries(0))
    problem = head_problem(chain, mark)
    problems = (*chain.problems, *((problem,) if problem and not chain.problems else ()))
    astray = {} if problems else _astray(registry, chain)
    intent, lock = chain.state.intent, chain.state.lock
    return Checked(len(chain.entries), len(chain.void), chain.mark(), problems, astray, _begun(intent), _held(lock))


def _astray(registry: Registry, chain: Chain) -> dict[str, tuple[str | None, str | None]]:
    """Aliases elsewhere than the chain says, but for those that an open intent is moving. Reads the chain on."""
    actual = registry.aliases()
    while True:
        moving = {move.alias for move in _moves(chain.state.intent)}
        known = chain.state.aliases
        names = sorted({*known, *actual} - moving)
        found = {name: (known.get(name), actual.get(name)) for name in names if known.get(name) != actual.get(name)}
        if not found or not chain.entries:
            return {}  # what was there before the journal began is not astray
        newer = registry.entries(chain.read)
        if not newer:
            return found
        chain.extend(newer)  # somebody moved them between our two questions
        actual = registry.aliases()


def _moves(intent: Linked | None) -> list[AliasMove]:
    return intent.entry.intent.moves if intent is not None and intent.entry.intent is not None else []


def _begun(linked: Linked | None) -> Begun | None:
    if linked is None or linked.entry.intent is None:
        return None
    event, entry = linked.entry.intent.event, linked.entry
    aliases = {move.alias: move.after for move in _moves(linked)}
    return Begun(event.what, event.variant, event.version, entry.actor, entry.when, aliases)


def _held(lock: Linked | None) -> Held | None:
    if lock is None or lock.entry.owner is None:
        return None
    return Held(str(lock.entry.owner), lock.entry.when, owner_is_gone(lock))


def _told(chain: Chain) -> list[Event]:
    """What the entries tell: an intent where it was done, and all that carries an event of its own."""
    done = {linked.entry.closes for linked in chain.entries if linked.entry.kind == "done"}
    found = []
    for linked in chain.entries:
        if linked.entry.event is not None:
            found.append(linked.entry.event)
        elif linked.entry.intent is not None and linked.number in done:
            found.append(linked.entry.intent.event)
    return found


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
