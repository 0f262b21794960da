"""What waits for a person, what approving it moves, and the checklist that the person is shown.

A version waits when its variant's candidate alias points at it, and it has passed and was not promoted yet. Which
targets follow it is settled when it is decided, by the rule of a release: for each target, the versions in whose place
it would serve. So an approval needs nothing but the registry, and moves no target that has moved elsewhere meanwhile.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantize.errors import DataError, RegistryError
from quantize.promotion import alias_map, target_moves
from quantize.registry import Registry, TargetRule, VersionState
from quantize.review import Checklist

__all__ = [
    "CHECKLIST_FILE",
    "approval_tag",
    "approve_command",
    "fetch_checklist",
    "following",
    "follows",
    "follows_tag",
    "told_waiting",
    "waiting",
]

CHECKLIST_FILE = "checklist.json"
_APPROVAL, _WAITS = "approval", "waiting"
_FOLLOWS = "follows"
_MEND = "Do not promote it, and look at who can write to the registry's files."


def waiting(versions: Sequence[VersionState]) -> list[VersionState]:
    """The versions that passed and wait for a person."""
    asked = [v for v in versions if v.state == "passed" and v.tags.get(_APPROVAL) == _WAITS]
    return [v for v in asked if f"{v.variant}-candidate" in v.aliases]


def approval_tag(approve: str) -> dict[str, str]:
    """The tag of a version that says whether it waits: where there is a command that approves it."""
    return {_APPROVAL: _WAITS if approve else ""}


def approve_command(model: str, version: VersionState) -> str:
    """What to type to approve a version."""
    return f'quantize promote {shlex.quote(model)} {version.variant} --version {version.version} --reason "..."'


def told_waiting(model: str, version: VersionState) -> str:
    """Who waits since when, in a line."""
    since = version.tags.get("decided_at") or version.created
    command = approve_command(model, version)
    return f"version {version.version} ({version.variant}) waits for approval since {since}: {command}"


def follows(
    versions: Sequence[VersionState],
    targets: Mapping[str, TargetRule],
    number: str,
    may_replace: Callable[[VersionState, VersionState, int], bool],
) -> dict[str, list[str]]:
    """By target, the versions in whose place version `number` would serve, were it promoted now.

    Asked are the version that the target serves and, of those that wait beside it, each as if it were approved first.
    """
    ours = next(version for version in versions if version.version == number)
    aliases = alias_map(list(versions))
    found: dict[str, list[str]] = {}
    for target, rule in targets.items():
        if ours.variant not in rule.from_:
            continue
        first = [v.version for v in waiting(versions) if v.variant in rule.from_ and v.version != number]
        for before in (aliases.get(target), *first):
            if before is None:
                continue
            world = _champion(_champion(versions, before) if before in first else versions, number)
            moves = target_moves(_serving(world, target, before), {target: rule}, {ours.variant}, may_replace)
            if moves.get(target) == (before, number):
                found.setdefault(target, []).append(before)
    return found


def follows_tag(found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The tag of a version that keeps what `follows` found."""
    return {_FOLLOWS: json.dumps(found)}


def following(model: str, versions: Sequence[VersionState], version: VersionState) -> tuple[dict[str, str], list[str]]:
    """What approving a version that waits moves beside its champion, in order; and a sentence for what stays."""
    moves: dict[str, str] = {}
    stay: list[str] = []
    if version not in waiting(versions):
        return moves, stay
    aliases = alias_map(list(versions))
    for target, places in json.loads(version.tags.get(_FOLLOWS) or "{}").items():
        current = aliases.get(target)
        if current in places:
            moves |= {f"{target}-previous": str(current), target: version.version}
        elif current != version.version:
            stay.append(
                f"{target} stays at version {current or '(none)'}: when this was decided it served another. "
                f'`quantize promote {shlex.quote(model)} {target} --version {version.version} --reason "..."` moves it.'
            )
    return moves, stay


def fetch_checklist(registry: Registry, version: VersionState) -> Checklist | None:
    """The checklist of a version; None where it has none. Raises RegistryError for another than was written for it."""
    wanted, run = version.tags.get("review_digest"), version.tags.get("evidence_run")
    if not wanted or not run:
        return None
    where = f"{registry.name} version {version.version}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = registry.fetch(run, CHECKLIST_FILE, Path(scratch)).read_text(encoding="utf-8")
        checklist = Checklist.model_validate_json(found)
    except (DataError, ValueError) as error:
        raise RegistryError("its checklist is gone or cannot be read.", where=where, fix=_MEND) from error
    if checklist.digest() != wanted or checklist.artifact_digest != version.artifact_digest:
        raise RegistryError("its checklist is not the one that was written for it.", where=where, fix=_MEND)
    return checklist


def _champion(versions: Sequence[VersionState], number: str) -> list[VersionState]:
    """The versions as they would be, were version `number` the champion of its variant."""
    variant = next(version.variant for version in versions if version.version == number)
    before = f"{variant}-previous"
    found = []
    for version in versions:
        names = {alias for alias in version.aliases if alias != before}
        state = version.state
        if version.version == number:
            names, state = names | {variant}, "promoted"
        elif variant in names:
            names = (names - {variant}) | {before}
        found.append(replace(version, aliases=tuple(sorted(names)), state=state))
    return found


def _serving(versions: Sequence[VersionState], target: str, number: str) -> list[VersionState]:
    """The versions as they would be, did `target` point at version `number`."""
    found = []
    for version in versions:
        names = {alias for alias in version.aliases if alias != target}
        names |= {target} if version.version == number else set()
        found.append(replace(version, aliases=tuple(sorted(names))))
    return found
