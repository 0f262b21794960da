"""The journal of a registered model: one chain of entries that says who moved which alias, when, why, after what.

MLflow moves an alias without compare-and-swap and without history. What it does do atomically is to number the versions
of a registered model. So the entries of the model NAME are versions of the model `NAME--journal`, each with its text as
a tag, and two rules make a chain of them:

- an entry holds number and digest of the entry that its writer read last;
- it counts only where that one is the last that counts before it. Else somebody else was faster, and it is *void*.

Appending is therefore a compare-and-swap: of two processes that go on from one entry, one wins, everybody agrees which,
and the other finds out by reading. A lock is an entry too; its number is the *generation* of all that is written under
it. A holder that slept while somebody else took the lock can append nothing that counts.

`read_chain` is pure: lines in, chain out. What cannot be explained by a lost race is a *problem*: a text that is not
what its digest says, a number that is missing, an entry that names another predecessor than there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from quantize.errors import RegistryError
from quantize.record import Record
from quantize.registry import JournalLine

__all__ = [
    "FORMAT",
    "AliasMove",
    "Chain",
    "Entry",
    "Event",
    "Intent",
    "Late",
    "Linked",
    "Owner",
    "State",
    "head_problem",
    "read_chain",
]

#: Of the entries' form. A program that meets a greater one changes nothing.
FORMAT = 1

Kind = Literal["lock", "unlock", "intent", "done", "undone", "noticed", "decided"]


class Owner(Record):
    """The process that holds a lock. `boot` and `pids` are the machine's boot id and its process namespace.

    `started` is the process's start in clock ticks after boot: with it, a number that is used again is not mistaken.
    `seconds` is how long the lock holds without being renewed.
    """

    host: str
    boot: str
    pids: str
    pid: int
    started: int
    actor: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.actor} on {self.host} (pid {self.pid})"


class AliasMove(Record):
    """An alias, the version it pointed at and the one it shall point at; None: it is not there."""

    alias: str
    before: str | None
    after: str | None


class Event(Record):
    """What an entry tells a reader.

    `what` is `registered`, `promoted`, `rolled back`, `served` (a target moved), `rejected`, `held`, `stale`, `undone`,
    `rechecked`, `found` (where the journal began), `moved by hand`, `moved late` or `lock taken`. `against` is the
    version that was the champion before; the verdict with the digest `verdict` and its evidence lie in the MLflow run
    `run` (both are "" where a person decided). `proved` says of a rollback whether the version that serves again was
    opened before: `outcome` is `proved` or `unproven`; beside the first stand `engine`, `digest`, `when`, `sentence`.
    """

    when: str
    what: str
    variant: str
    version: str
    aliases: dict[str, str | None]
    against: str | None
    actor: str
    reason: str
    verdict: str = ""
    run: str = ""
    proved: dict[str, str] = Field(default_factory=dict)


class Intent(Record):
    """What is about to be done, all of it: `moves` in their order, then `tags` by version.

    `before` are the tags as they were, and `artifacts` the digests of the versions that will be pointed at.
    """

    event: Event
    moves: list[AliasMove]
    tags: dict[str, dict[str, str]] = Field(default_factory=dict)
    before: dict[str, dict[str, str]] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)


class Entry(Record):
    """One entry. `after` and `link` are number and digest of the one before; 0 and "" for the first.

    `generation` is the number of the lock that it was written under (of a lock: 0). A `lock` has an `owner`, and in
    `over` the generation that it took over; an `intent` has there the generation whose late move it puts back. `done`
    and `undone` name in `closes` the intent. `aliases` are those that a `noticed` entry found elsewhere, and those that
    an `undone` one left, as they are from here on.
    """

    version: Literal[1] = 1
    after: int
    link: str
    generation: int
    kind: Kind
    when: str
    actor: str
    program: str
    nonce: str
    reason: str = ""
    owner: Owner | None = None
    over: int | None = None
    intent: Intent | None = None
    closes: int | None = None
    aliases: dict[str, str | None] = Field(default_factory=dict)
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Linked:
    """An entry of the chain, with its number and digest. `renewed` changes while a lock's holder lives."""

    number: int
    digest: str
    entry: Entry
    renewed: str = ""


@dataclass(frozen=True, slots=True)
class Late:
    """A move that a holder may still make, though its lock was taken from it."""

    alias: str
    version: str | None
    generation: int


@dataclass(slots=True)
class State:
    """What the chain says: who holds the lock, what is begun and not closed, and where aliases point."""

    lock: Linked | None = None
    intent: Linked | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    late: set[Late] = field(default_factory=set)

    def take(self, linked: Linked) -> None:
        """Go on by one entry."""
        entry = linked.entry
        taken = self.lock is not None and entry.generation != self.lock.number and entry.kind in ("lock", "unlock")
        if taken and self.intent is not None and self.lock is not None:
            # Whoever had begun this may be asleep between its last look at the lock and the move.
            self._suspect(self.intent, self.lock.number)
        if entry.kind == "lock":
            self.lock = linked
        elif entry.kind == "unlock":
            self.lock = None
        elif entry.kind == "intent":
            self.intent = linked
        elif entry.kind == "done" and self.intent is not None and self.intent.entry.intent is not None:
            self._point({move.alias: move.after for move in self.intent.entry.intent.moves})
            # A holder that finds its lock gone after a move makes no other: what it did late, it did.
            self.late = {late for late in self.late if late.generation != self.intent.entry.over}
            self.intent = None
        elif entry.kind in ("undone", "noticed"):
            if entry.kind == "undone":
                self.intent = None
            self._point(entry.aliases)

    def _point(self, aliases: Mapping[str, str | None]) -> None:
        for alias, version in aliases.items():
            if version is None:
                self.aliases.pop(alias, None)
            else:
                self.aliases[alias] = version

    def _suspect(self, intent: Linked, generation: int) -> None:
        moves = intent.entry.intent.moves if intent.entry.intent is not None else []
        self.late |= {Late(move.alias, move.after, generation) for move in moves}


@dataclass(slots=True)
class Chain:
    """The entries that count, oldest first, the numbers of those that are void, and what cannot be explained."""

    entries: list[Linked] = field(default_factory=list)
    void: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    state: State = field(default_factory=State)
    #: The last number that was read, void or not.
    read: int = 0

    @property
    def head(self) -> tuple[int, str]:
        """Number and digest of the last entry that counts; 0 and "" where there is none."""
        return (self.entries[-1].number, self.entries[-1].digest) if self.entries else (0, "")

    def mark(self) -> str:
        """The head as it is written into the model's tag."""
        return "{} {}".format(*self.head)

    def extend(self, lines: Sequence[JournalLine]) -> None:
        """Read on, up to the first problem. Raises RegistryError for an entry of a newer program."""
        for line in lines:
            if self.problems:
                return
            if line.number != self.read + 1:
                last = line.number - 1
                gone = f"entry {last} is" if last == self.read + 1 else f"entries {self.read + 1} to {last} are"
                self.problems.append(f"{gone} missing: somebody deleted what was written down.")
                return
            self.read = line.number
            entry = _parsed(line, self.problems)
            if entry is not None:
                self._link(Linked(line.number, entry.digest(), entry, line.renewed))

    def _link(self, found: Linked) -> None:
        entry, (number, digest) = found.entry, self.head
        if (entry.after, entry.link) == (number, digest) and self._under_lock(entry):
            self.entries.append(found)
            self.state.take(found)
            return
        known = {old.number: old.digest for old in self.entries}
        if known.get(entry.after, "" if entry.after == 0 else None) == entry.link:
            self.void.append(found.number)  # it went on from an entry that others had gone on from already
        else:
            self.problems.append(
                f"entry {found.number} goes on from entry {entry.after} with digest {entry.link[:12]}, and "
                f"{'that one has ' + known[entry.after][:12] if entry.after in known else 'there is no such entry'}."
            )

    def _under_lock(self, entry: Entry) -> bool:
        """Whether it was written under the lock that holds. Locks need none, nor does unlocking by hand."""
        lock = self.state.lock
        if entry.kind == "lock" or (entry.kind == "unlock" and entry.generation == 0):
            return True
        return lock is not None and entry.generation == lock.number


def read_chain(lines: Sequence[JournalLine]) -> Chain:
    """The chain of all lines, in the order of their numbers. Raises RegistryError for an entry of a newer program."""
    chain = Chain()
    chain.extend(lines)
    return chain


def head_problem(chain: Chain, mark: str) -> str | None:
    """What the head that the model's tag names has to say against the chain.

    A tag that is behind is none: a process was killed between entry and tag.
    """
    if not mark:
        # Who began the journal may have been killed before it wrote the tag; nothing but locks is written before that.
        begun = all(linked.entry.kind == "lock" for linked in chain.entries)
        return None if begun else "the model's tag of the journal's head is gone."
    number, _, digest = mark.partition(" ")
    known = {str(linked.number): linked.digest for linked in chain.entries}
    if known.get(number) == digest:
        return None
    if number in known:
        return (
            f"the model's tag says that entry {number} has the digest {digest[:12]}, and it has {known[number][:12]}."
        )
    return f"the model's tag names entry {number}, and there is none: the journal's end was deleted."


def _parsed(line: JournalLine, problems: list[str]) -> Entry | None:
    """The entry of a line; None, and a problem, where its text is none. Raises RegistryError for a newer form."""
    try:
        found: Any = json.loads(line.text)
        form = found.get("version") if isinstance(found, dict) else None
        if isinstance(form, int) and form > FORMAT:
            raise RegistryError(
                f"entry {line.number} of the journal was written by a newer program ({found.get('program', '?')}).",
                fix="Update this one: it could not tell what it would undo. Nothing was changed.",
            )
        entry = Entry.model_validate(found)
    except (ValueError, ValidationError):
        problems.append(f"entry {line.number} cannot be read.")
        return None
    if entry.digest() != line.digest:
        problems.append(f"entry {line.number} was changed: its digest is not that of its text.")
        return None
    return entry
