"""How a benchmark was done, in sentences: the loads, the blocks and what disturbed them, the curves, the servers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from quantize.benchmark.blockfile import CurvePoint
from quantize.benchmark.config import Benchmark, Concurrent, LoadConfig, Open, Synchronous
from quantize.benchmark.keeping import LoadRecord
from quantize.benchmark.reading import knee
from quantize.errors import DataError
from quantize.report.benchmarks import Artifact
from quantize.roofline import Roofline, Work, decode_share, prefill_share

__all__ = ["blocks_told", "curves_told", "facts_told", "loads_told", "roofline_told"]

#: Measured values by metric.
Values = Mapping[str, float]

_ARRIVALS = {"poisson": "Poisson", "constant": "at even intervals"}
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*")
#: So many different reasons are told; whoever wants to know the rest reads `blocks.json`.
_TOLD_REASONS = 3


def loads_told(config: Benchmark | None, loads: LoadRecord | None) -> list[str]:
    """Each load in words; nothing where the recipe is not known."""
    if config is None:
        return []
    return [f"{load.name}: {_load(load, loads)}, {load.requests} requests in each block." for load in config.sent]


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
    """The commonest reasons; those that differ in their numbers alone once, with the first one's, and how often."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        found.setdefault(_NUMBER.sub("#", reason), []).append(reason.rstrip("."))
    often = sorted(found.values(), key=len, reverse=True)
    told = [f"{alike[0]} ({len(alike)} times)" if len(alike) > 1 else alike[0] for alike in often[:_TOLD_REASONS]]
    rest = sum(len(alike) for alike in often[_TOLD_REASONS:])
    return [*told, f"{rest} other reasons"] if rest else told


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
    what = "server" if served else "session"
    told += [f"both {what}s say: {'; '.join(both)}."] if both else []
    for arm, found in facts.items():
        own = [f"{name}: {value}" for name, value in found.items() if not _same(facts, name)]
        told += [f"the {arm}'s {what} says: {'; '.join(own)}."] if own else []
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


def roofline_told(config: Benchmark | None, artifact: Artifact | None, arms: Mapping[str, Values]) -> list[str]:
    """How near models that were timed in process come to what their device can do; `arms` are their measured values."""
    if config is None or artifact is None or artifact.loads is None or not artifact.loads.ceilings:
        return []
    roofline = Roofline(**artifact.loads.ceilings)
    shown = f"of {roofline.flops / 1e9:,.0f} GFLOP/s and {roofline.bandwidth / 1e9:,.1f} GB/s that the device showed"
    told = []
    for load in config.sent:
        if isinstance(load, Open):
            continue
        shares = [
            f"the {arm}'s prefill reached {100 * prefill:.0f} % and its decode {100 * decode:.0f} %"
            for arm, values in arms.items()
            for prefill, decode in _shares(roofline, artifact, arm, load, values)
        ]
        told += [f"{shown}, at {load.name} {', '.join(shares)}."] if shares else []
    return told


def _shares(
    roofline: Roofline, artifact: Artifact, arm: str, load: Synchronous | Concurrent, values: Values
) -> list[tuple[float, float]]:
    """Of the compute and of the bandwidth ceiling, by the medians of a load; nothing where something is not known."""
    took = [block.memory.get(arm, {}) for block in artifact.valid()]
    ttft, tpot = (values.get(f"load.{time}_p50/{load.name}") for time in ("ttft", "tpot"))
    needed = {"parameters", "read", "kv_token"}
    if not took or not needed <= set(took[-1]) or not ttft or not tpot or artifact.shape is None:
        return []
    work = Work(took[-1]["parameters"], took[-1]["read"])
    prompt, answer = artifact.shape
    prefill = prefill_share(work, roofline, tokens=round(load.streams * prompt), seconds=ttft)
    # The cache that a step reads grows: half of the answer on average.
    cache = took[-1]["kv_token"] * load.streams * (prompt + answer / 2)
    return [(prefill, decode_share(work, roofline, kv_bytes=cache, seconds=tpot))]
