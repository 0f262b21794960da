"""How aliases move, and the journal of it: what a run's release and an operator's hand have in common.

MLflow moves one alias atomically, without compare-and-swap and without history. So every move is a sequence of
idempotent steps in an order that a crash may cut anywhere: `previous` is set while the old champion still serves, the
champion moves next, both are read back, and only then do tags say that it happened. Whoever runs it again finishes it.
What happened is written into the versions' own tags (`event.<time>`), because versions are never deleted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from quantize import faults
from quantize.errors import RegistryError
from quantize.handed import TargetRule, VersionState
from quantize.protocols import Registry

__all__ = [
    "BASELINE",
    "Event",
    "alias_map",
    "events",
    "journal",
    "move_champion",
    "now",
    "point_targets",
    "target_names",
]

BASELINE = "baseline"
_EVENT = "event."
_SENTENCE_LENGTH = 4000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a model.

    `what` is `registered`, `promoted`, `rejected`, `held` or `rolled back`; `against` is the version that was the
    champion before; the verdict with the digest `verdict` and its evidence lie in the MLflow run `run` (both are ""
    where a person decided).
    """

    when: str
    what: str
    variant: str
    version: str
    aliases: dict[str, str]
    against: str | None
    actor: str
    reason: str
    verdict: str = ""
    run: str = ""


def now() -> str:
    """The time as it is written into tags: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def alias_map(versions: list[VersionState]) -> dict[str, str]:
    """Alias -> version."""
    return {alias: version.version for version in versions for alias in version.aliases}


def target_names(versions: list[VersionState]) -> list[str]:
    """The aliases that consumers load: neither a variant's nor somebody's `-previous`."""
    aliases = alias_map(versions)
    variants = {version.variant for version in versions}
    taken = {f"{variant}{suffix}" for variant in variants for suffix in ("", "-previous", "-candidate")}
    taken |= {f"{alias}-previous" for alias in aliases}
    return sorted(set(aliases) - taken)


def events(version: VersionState) -> list[Event]:
    """What a version's tags tell of it, oldest first."""
    keys = sorted(key for key in version.tags if key.startswith(_EVENT))
    return [Event(**json.loads(version.tags[key])) for key in keys]


def journal(registry: Registry, version: VersionState, event: Event) -> None:
    """Write an event down. The same event again (a decision that is finished after a crash) replaces the first."""
    key = f"{_EVENT}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    known = sorted(name for name in version.tags if name.startswith(_EVENT))
    if known and _same(Event(**json.loads(version.tags[known[-1]])), event):
        key = known[-1]
    short = replace(event, reason=event.reason[:_SENTENCE_LENGTH])
    registry.tag(version.version, {key: json.dumps(asdict(short), ensure_ascii=False)})


def move_champion(registry: Registry, variant: str, version: str, tags: dict[str, str]) -> str | None:
    """Make `version` the champion of `variant`; returns the champion before it, None for the first.

    `tags` are set together with the state `promoted`. Raises RegistryError when the aliases do not read back.
    """
    previous = f"{variant}-previous"
    registry.set_alias(f"{variant}-candidate", version)
    faults.point("release.candidate")
    versions = registry.versions()
    aliases = alias_map(versions)
    expected = {variant: version}
    if aliases.get(variant) != version:
        # Where there was no champion, the baseline is what one can go back to.
        expected[previous] = aliases.get(variant, versions[0].version)
        registry.set_alias(previous, expected[previous])
        faults.point("release.previous")
        registry.set_alias(variant, version)
        faults.point("release.champion")
    read = registry.aliases()
    for alias, wanted in expected.items():
        if read.get(alias) != wanted:
            raise RegistryError(
                f"alias {alias!r} was set to version {wanted} and reads back as {read.get(alias)}.",
                where=registry.name,
                fix="Somebody else moves aliases of this model: find out who, then run again.",
            )
    faults.point("release.read_back")
    before = read.get(previous)
    if before is not None and before != version and _state(versions, before) == "promoted":
        registry.tag(before, {"state": "superseded"})
    faults.point("release.superseded")
    registry.tag(version, {**tags, "state": "promoted"})
    faults.point("release.promoted")
    first = before is None or before == versions[0].version
    return None if first else before


def point_targets(
    registry: Registry,
    targets: Mapping[str, TargetRule],
    promoted: set[str],
    may_replace: Callable[[VersionState, VersionState, int], bool],
) -> dict[str, tuple[str | None, str]]:
    """Point each target at the best champion of its variants; returns the moves, (before, after) by alias.

    The best is chosen among the champions whose verdicts survive Holm's correction for the variants that compete
    (`ratio`, the greatest p over alpha of a verdict's gates), and takes over only if `may_replace(it, current one,
    number of rivals)`; else the next best is asked.

    Only targets that draw from a variant in `promoted`, or that do not exist yet, are looked at: what an operator
    rolled back or set by hand stays until something new passes. With nothing that passed, a new target serves the
    baseline.
    """
    versions = registry.versions()
    aliases = alias_map(versions)
    moved: dict[str, tuple[str | None, str]] = {}
    for target, rule in targets.items():
        current = aliases.get(target)
        if current is not None and not promoted & set(rule.from_):
            continue
        fit = [v for v in versions if v.variant in rule.from_ and v.variant in v.aliases and v.state == "promoted"]
        if not fit and current is not None:
            continue
        fit = _surviving(fit, len(rule.from_))
        if not fit and current is not None:
            continue
        serving = next((v for v in versions if v.version == current), versions[0])
        ranked = sorted(fit, key=lambda v: _rank(v, rule.prefer)) or [versions[0]]
        able = (v for v in ranked if v is serving or serving is versions[0] or may_replace(v, serving, len(rule.from_)))
        best = next((v.version for v in able), current)
        if best is None or best == current:
            continue
        before = current or versions[0].version
        if before != best:
            registry.set_alias(f"{target}-previous", before)
            faults.point("release.target_previous")
        registry.set_alias(target, best)
        faults.point("release.target")
        moved[target] = (current, best)
    return moved


def _surviving(champions: list[VersionState], rivals: int) -> list[VersionState]:
    """The champions whose verdict also holds as one of `rivals`; a variant that has none counts as not passed."""
    from quantize.stats import holm

    ratios = [float(version.tags.get("ratio") or "nan") for version in champions]
    missing = [math.nan] * (rivals - len(champions))
    return [version for version, held in zip(champions, holm(ratios + missing), strict=False) if held]


def _same(one: Event, other: Event) -> bool:
    """Whether two events are one, told twice: by the same verdict, or by the same person for the same reason."""
    if one.verdict or other.verdict:
        return (one.what, one.verdict) == (other.what, other.verdict)
    return (one.what, one.aliases, one.actor, one.reason) == (other.what, other.aliases, other.actor, other.reason)


def _rank(version: VersionState, prefer: str) -> tuple[float, float]:
    """Smaller is better: by bytes, then by quality, or the other way round."""
    held = float(version.tags.get("weight_bytes", "inf"))
    loss = -float(version.tags.get("difference") or version.tags.get("lower") or "-inf")
    return (held, loss) if prefer == "bytes" else (loss, held)


def _state(versions: list[VersionState], number: str) -> str:
    return next((version.state for version in versions if version.version == number), "")
