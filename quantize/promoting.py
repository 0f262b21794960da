"""Which version a promotion by hand takes, what it is reviewed by, and which aliases and tags that would move.

Nothing is moved here: `operate.py` does that, or, in a dry run, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantize.approval import fetch_checklist, following, waiting
from quantize.errors import RegistryError
from quantize.promotion import BASELINE, alias_map, champion_moves, target_names
from quantize.registry import Registry, VersionState
from quantize.review import Checklist

__all__ = ["Promotion", "Show", "lay_out", "named", "reviewable"]

_PROMOTABLE = ("passed", "promoted", "superseded")
Show = Callable[[Checklist], None]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion by hand would do, in the order of the aliases' moves."""

    wanted: VersionState
    before: str | None
    moves: dict[str, str]
    tags: dict[str, dict[str, str]]
    also: dict[str, str | None]
    checklist: Checklist | None
    reason: str


def lay_out(
    registry: Registry,
    versions: list[VersionState],
    variant: str,
    version: str | None,
    reason: str,
    *,
    force: bool,
    note: Callable[[str], None],
    show: Show,
) -> Promotion:
    """Choose the version, show its checklist and lay out the moves. Raises RegistryError for what may not be."""
    before = alias_map(versions).get(variant)
    also: dict[str, str | None] = {}
    if variant in target_names(versions) and version is not None:
        wanted = _fit(named(versions, version, registry), (*_PROMOTABLE, BASELINE), registry, force=force)
        moved = before != wanted.version and before is not None
        moves = {**({f"{variant}-previous": before} if moved and before else {}), variant: wanted.version}
        tags: dict[str, dict[str, str]] = {}
    else:
        wanted = _candidate(versions, variant, version, registry, force=force)
        moves, tags = champion_moves(versions, variant, wanted.version)
        taken, stay = following(registry.name, versions, wanted)
        moves |= taken
        also = {target: taken[f"{target}-previous"] for target in taken if f"{target}-previous" in taken}
        for sentence in stay:
            note(sentence)
        judged = wanted.tags.get("against") or None
        if wanted in waiting(versions) and judged != before:
            note(f"it was judged against version {judged or '(none)'}, and {variant} is version {before} now")
    checklist, reason = _reviewed(registry, wanted, reason, force=force, show=show)
    return Promotion(wanted, before, moves, tags, also, checklist, reason)


def _reviewed(
    registry: Registry, wanted: VersionState, reason: str, *, force: bool, show: Show
) -> tuple[Checklist | None, str]:
    """The checklist of a version, shown, and the reason: after what stood against it, where that is forced."""
    if wanted.variant == BASELINE:
        return None, reason  # it is what others are reviewed against
    checklist = fetch_checklist(registry, wanted)
    if checklist is not None:
        show(checklist)
    if wanted.state not in _PROMOTABLE:
        return checklist, f"Forced, although it was {_word(wanted)}. {reason}"  # `_fit` let it through
    missing = checklist.unmet() if checklist is not None else ["there is none"]
    if not missing:
        return checklist, reason
    told = ", ".join(missing)
    if not force:
        raise RegistryError(
            f"the review of version {wanted.version} is not met: {told}.",
            where=registry.name,
            fix="--force promotes it all the same, and that is written down.",
        )
    return checklist, f"Forced, although its review was not met ({told}). {reason}"


def reviewable(
    versions: list[VersionState], variant: str | None, number: str | None, registry: Registry
) -> list[VersionState]:
    """Version `number`, or the candidate of `variant` (else its newest), or of each variant. Raises RegistryError."""
    if number is not None:
        found = named(versions, number, registry)
        return [found if variant is None else _own(versions, variant, number, registry)]
    names = dict.fromkeys(v.variant for v in versions if v.variant not in ("", BASELINE))
    chosen = []
    for name in (variant,) if variant is not None else names:
        mine = _mine(versions, name, registry)
        chosen.append(next((v for v in mine if f"{name}-candidate" in v.aliases), mine[-1]))
    return chosen


def _candidate(
    versions: list[VersionState], variant: str, number: str | None, registry: Registry, *, force: bool
) -> VersionState:
    """Version `number` of a variant, or its newest that passed. Raises RegistryError."""
    if number is not None:
        return _fit(_own(versions, variant, number, registry), _PROMOTABLE, registry, force=force)
    mine = _mine(versions, variant, registry)
    passed = [version for version in mine if version.state in _PROMOTABLE]
    return passed[-1] if passed else _fit(mine[-1], _PROMOTABLE, registry, force=force)


def _mine(versions: list[VersionState], variant: str, registry: Registry) -> list[VersionState]:
    """The versions of a variant, oldest first. Raises RegistryError where there are none."""
    mine = [version for version in versions if version.variant == variant]
    if not mine or variant == BASELINE:
        names = ", ".join(sorted({v.variant for v in versions} - {BASELINE})) or "none"
        targets = ", ".join(target_names(versions))
        also = f"; with --version also a target: {targets}" if targets else ""
        raise RegistryError(f"it has no variant {variant!r} (there are {names}{also}).", where=registry.name)
    return mine


def _own(versions: list[VersionState], variant: str, number: str, registry: Registry) -> VersionState:
    """A version of a variant by its number. Raises RegistryError where it is not one."""
    mine = _mine(versions, variant, registry)
    found = next((version for version in mine if version.version == number), None)
    if found is None:
        numbers = ", ".join(version.version for version in mine)
        raise RegistryError(f"version {number} is not one of {variant} (those are {numbers}).", where=registry.name)
    return found


def _fit(version: VersionState, states: tuple[str, ...], registry: Registry, *, force: bool) -> VersionState:
    if version.state in states or force:
        return version
    raise RegistryError(
        f"version {version.version} is {_word(version)}.",
        where=registry.name,
        fix="--force promotes it all the same.",
    )


def _word(version: VersionState) -> str:
    return version.state.replace("_", " ")


def named(versions: list[VersionState], number: str, registry: Registry) -> VersionState:
    """The version of that number. Raises RegistryError where there is none."""
    found = next((version for version in versions if version.version == number), None)
    if found is None:
        raise RegistryError(
            f"there is no version {number} (the newest is {versions[-1].version}).", where=registry.name
        )
    return found
