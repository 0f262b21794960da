"""Which aliases a promotion moves and where to: what a run's release and an operator's hand have in common.

Pure: versions in, moves out. `transaction.py` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from quantize.registry import TargetRule, VersionState

__all__ = ["BASELINE", "alias_map", "champion_moves", "now", "target_moves", "target_names"]

BASELINE = "baseline"


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


def champion_moves(
    versions: list[VersionState], variant: str, version: str
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What makes `version` the champion of `variant`: aliases in the order of their moves, and tags by version.

    `<variant>-previous` is set while the old champion still serves; where there was none, it is the baseline.
    """
    moves = {f"{variant}-candidate": version}
    tags = {version: {"state": "promoted"}}
    current = alias_map(versions).get(variant)
    if current != version:
        moves |= {f"{variant}-previous": current or versions[0].version, variant: version}
        if current is not None and _state(versions, current) == "promoted":
            tags[current] = {"state": "superseded"}
    return moves, tags


def target_moves(
    versions: list[VersionState],
    targets: Mapping[str, TargetRule],
    promoted: set[str],
    may_replace: Callable[[VersionState, VersionState, int], bool],
) -> dict[str, tuple[str | None, str]]:
    """Where each target shall point that moves: (before, after) by alias.

    That is the best champion of its variants, chosen among those whose verdicts survive Holm's correction for the
    variants that compete (`ratio`, the greatest p over alpha of a verdict's gates), if `may_replace(it, current one,
    number of rivals)`; else the next best is asked.

    Only targets that draw from a variant in `promoted`, or that do not exist yet, are looked at: what an operator
    rolled back or set by hand stays until something new passes. With nothing that passed, a new target serves the
    baseline.
    """
    aliases = alias_map(versions)
    moved: dict[str, tuple[str | None, str]] = {}
    for target, rule in targets.items():
        current = aliases.get(target)
        if current is not None and not promoted & set(rule.from_):
            continue
        fit = [v for v in versions if v.variant in rule.from_ and v.variant in v.aliases and v.state == "promoted"]
        fit = _surviving(fit, len(rule.from_)) if fit else []
        if not fit and current is not None:
            continue
        serving = next((v for v in versions if v.version == current), versions[0])
        ranked = sorted(fit, key=lambda v: _rank(v, rule.prefer)) or [versions[0]]
        able = (v for v in ranked if v is serving or serving is versions[0] or may_replace(v, serving, len(rule.from_)))
        best = next((v.version for v in able), current)
        if best is not None and best != current:
            moved[target] = (current, best)
    return moved


def _surviving(champions: list[VersionState], rivals: int) -> list[VersionState]:
    """The champions whose verdict also holds as one of `rivals`; a variant that has none counts as not passed."""
    from quantize.stats import holm

    ratios = [float(version.tags.get("ratio") or "nan") for version in champions]
    missing = [math.nan] * (rivals - len(champions))
    return [version for version, held in zip(champions, holm(ratios + missing), strict=False) if held]


def _rank(version: VersionState, prefer: str) -> tuple[float, float]:
    """Smaller is better: by bytes, then by quality, or the other way round."""
    held = float(version.tags.get("weight_bytes", "inf"))
    loss = -float(version.tags.get("difference") or version.tags.get("lower") or "-inf")
    return (held, loss) if prefer == "bytes" else (loss, held)


def _state(versions: list[VersionState], number: str) -> str:
    return next((version.state for version in versions if version.version == number), "")
