"""How a benchmark was done, in sentences: the loads, the blocks and what disturbed them, the curves, the servers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantize.benchmark.blockfile import CurvePoint
from quantize.benchmark.config import Benchmark, LoadConfig, Open
from quantize.benchmark.keeping import LoadRecord
from quantize.benchmark.reading import knee
from quantize.errors import DataError
from quantize.report.benchmarks import Artifact

__all__ = ["blocks_told", "curves_told", "facts_told", "loads_told"]

_ARRIVALS = {"poisson": "Poisson", "constant": "at even intervals"}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def loads_told(config: Benchmark | None, loads: LoadRecord | None) -> list[str]:
    """Each load in words; nothing where the recipe is not known."""
    if config is None:
        return []
    return [f"{load.name}: {_load(load, loads)}, {load.requests} requests in each block." for load in config.loads]


def _load(load: LoadConfig, loads: LoadRecord | None) -> str:
    if not isinstance(load, Open):
        return "one at a time" if load.streams == 1 else f"{load.streams} under way at any time"
    how = _ARRIVALS[load.kind]
    if load.rate is not None:
        return f"{how}, {load.rate:.3g} requests/s"
    share = f"{100 * load.of_knee:.0f} % of the baseline's knee"
    if loads is None or load.name not in loads.rates:
        return f"{how}, {share}"
    knee = f" of {loads.knee:.3g}" if loads.knee is not None else ""
    return f"{how}, {loads.rates[load.name]:.3g} requests/s = {share}{knee}"


def blocks_told(artifact: Artifact) -> list[str]:
    """How many blocks count, and why the others do not; and where a block was given up."""
    valid = len(artifact.valid())
    blocks = {block.block for block in artifact.blocks}
    lost = len(blocks - {block.block for block in artifact.valid()})
    told = f"{valid} of {len(artifact.blocks)} blocks that were run are valid"
    reasons = _alike([reason for block in artifact.blocks if not block.valid for reason in block.reasons])
    because = f"; the others were not: {'; '.join(reasons)}" if reasons else ""
    # A reason is a sentence of its own and may end in a full stop.
    found = [f"{told}{because}".rstrip(".") + "."]
    if lost:
        found.append(f"{lost} of {len(blocks)} blocks have no valid attempt: no reruns were left.")
    return found


def _alike(reasons: Sequence[str]) -> list[str]:
    """Reasons that differ in their numbers alone once, with the first one's numbers, and how often."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        found.setdefault(_NUMBER.sub("#", reason), []).append(reason.rstrip("."))
    return [f"{alike[0]} ({len(alike)} times)" if len(alike) > 1 else alike[0] for alike in found.values()]


def curves_told(own: Artifact | None, baseline: Artifact | None) -> list[str]:
    """What each arm completes at most, and what makes its curve doubtful."""
    parts, doubts = [], []
    for label, arm, artifact in (("it", "variant", own), ("the baseline", "baseline", baseline)):
        points = _points(artifact, arm)
        if artifact is None or not points:
            continue
        try:
            most = knee(points)
        except DataError as error:
            doubts.append(f"{label}: {error.what}")
            continue
        parts.append(f"{label} completes {most.rate:.3g} requests/s with {most.streams} under way")
        doubts += [f"{label}: {most.warning}."] if most.warning is not None else []
        reasons = artifact.loads.reasons.get(arm, []) if artifact.loads is not None else []
        doubts += [f"while the curve of {label} was measured: {reason}" for reason in _alike(reasons)]
    return [*([f"at most, {'; '.join(parts)}."] if parts else []), *doubts]


def _points(artifact: Artifact | None, arm: str) -> list[CurvePoint]:
    return [point for point in artifact.curve if point.arm == arm] if artifact is not None else []


def facts_told(engine: str, artifact: Artifact | None, *, served: bool) -> list[str]:
    """What the servers say that they chose, once where both arms say the same; and whether anybody would serve so."""
    told = []
    if not served:
        told.append("it was measured in one process without a server: no request had to wait for another.")
    elif engine == "transformers":
        told.append(
            "transformers' server is no production engine: its numbers compare the variant with the baseline, "
            "and promise nothing of either."
        )
    facts = {arm: _facts(artifact, arm) for arm in ("baseline", "variant")} if artifact is not None else {}
    both = [f"{name}: {value}" for name, value in facts.get("variant", {}).items() if _same(facts, name)]
    told += [f"both servers say: {'; '.join(both)}."] if both else []
    for arm, found in facts.items():
        own = [f"{name}: {value}" for name, value in found.items() if not _same(facts, name)]
        told += [f"the {arm}'s server says: {'; '.join(own)}."] if own else []
    return told


def _same(facts: dict[str, dict[str, str]], name: str) -> bool:
    values = [found.get(name) for found in facts.values()]
    return values[0] is not None and len(set(values)) == 1


def _facts(artifact: Artifact, arm: str) -> dict[str, str]:
    """By name, all that an arm said in its valid blocks: several where it chose anew."""
    found: dict[str, list[str]] = {}
    for block in artifact.valid():
        for name, value in block.facts.get(arm, {}).items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: " or ".join(values) for name, values in found.items()}
