"""What a registered model is and how it came to be: rows that a terminal or a program can show."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.errors import RegistryError
from quantize.handed import VersionState
from quantize.journal import Chain, Event, head_problem
from quantize.promotion import BASELINE
from quantize.protocols import Registry
from quantize.turn import read_journal

__all__ = ["Checked", "StatusRow", "check_journal", "history", "known_versions", "status"]


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
class Checked:
    """What a journal was found to be: how many entries count and how many are void, its head, and what is wrong."""

    entries: int
    void: int
    head: str
    problems: tuple[str, ...]
    #: Aliases that are not where the journal says. No break: the next turn settles them.
    astray: dict[str, tuple[str | None, str | None]]


def check_journal(registry: Registry) -> Checked:
    """Read the whole journal and say where its chain breaks. Raises RegistryError for one of a newer program."""
    known_versions(registry)
    mark = registry.head()
    chain = Chain()
    chain.extend(registry.entries(0))
    problem = head_problem(chain, mark)
    problems = (*chain.problems, *((problem,) if problem and not chain.problems else ()))
    known, actual = chain.state.aliases, registry.aliases()
    names = sorted({*known, *actual}) if not problems and chain.state.intent is None else []
    astray = {name: (known.get(name), actual.get(name)) for name in names if known.get(name) != actual.get(name)}
    return Checked(len(chain.entries), len(chain.void), chain.mark(), problems, astray)


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
