"""What a benchmark found: its artifact read, checked, and turned into measurements and comparisons.

The block is the sample. A comparison of a quantity Q is r_k = ln(Q_variant / Q_baseline) of every valid block k, and
exp of their mean with its t interval; the gates judge the r_k themselves, at their own alpha. A measurement is what all
valid blocks say together, with a 95 % interval of the values of the blocks. Everything is computed of the files alone:
the same files give the same numbers, whoever reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.benchmark.blockfile import (
    FINGERPRINT_FILE,
    REQUESTS_FILE,
    ROWS_FILE,
    BlockRecord,
    CurvePoint,
    read_blocks,
    read_curve,
)
from quantize.benchmark.config import Slo
from quantize.benchmark.intervals import ratio_comparison, share_comparison, spread
from quantize.benchmark.quantities import (
    POOLED,
    direction_of,
    measured,
    percentiles,
    quantities,
    rates,
    saturated,
    unit_of,
)
from quantize.benchmark.requests import read as read_requests
from quantize.benchmark.rowfile import check_rows, read_rows
from quantize.errors import DataError
from quantize.evidence import Comparison, Measurement
from quantize.handed import Row
from quantize.stats import wilson_interval

__all__ = ["BASELINE", "Benchmarked", "Knee", "knee", "read"]

#: The arm that the other is compared with.
BASELINE = "baseline"

#: A last point that is this much above the one before is not the end of the rise.
_STILL_RISES = 1.1

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Knee:
    """The highest rate (requests/s) that a closed loop completes, at `streams` under way. `warning` qualifies it."""

    rate: float
    streams: int
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """A benchmark's artifact. `rows` are those of the `valid` blocks, of each the last attempt that is valid.

    `blocks` are all that were run; `longest` is the tokens of the longest request, its answer included.
    """

    rows: list[Row]
    all_rows: list[Row]
    blocks: list[BlockRecord]
    valid: list[BlockRecord]
    curve: list[CurvePoint]
    fingerprint: dict[str, str]
    longest: int

    @property
    def arms(self) -> list[str]:
        """The arms that were measured, the baseline first."""
        found = {arm for record in self.blocks for arm in record.order}
        return sorted(found, key=lambda arm: (arm != BASELINE, arm))

    @property
    def loads(self) -> list[str]:
        """The loads, in the order sent."""
        return list(dict.fromkeys(row["load"] for row in self.rows or self.all_rows))

    def measurements(self, arm: str, slo: Slo | None = None) -> list[Measurement]:
        """What `arm` took: percentiles of all valid blocks' requests together, rates and memory as means of blocks.

        `low` and `high` are a 95 % t interval of the blocks' own values, of their logarithms where all are positive;
        where that leaves the value out it is widened to hold it; there is none where a block does not have the
        quantity. `n` counts valid blocks; where it is 0 the values are those of the invalid ones, and show nothing.
        """
        if arm not in self.arms:
            return []
        found = []
        for load in self.loads:
            blocks = self._blocks(arm, load, slo)
            pooled = self._pooled(arm, load, slo) if blocks else self._typical(arm, load, slo)
            for name, value in pooled.items():
                low, high = spread([block.get(name) for block in blocks], value)
                if name == "failures" and blocks:
                    low, high = self._failures(arm, load, low, high)
                found.append(self._measurement(f"load.{name}/{load}", name, value, low, high))
        for name, values in self._memory(arm).items():
            value = sum(values) / len(values)
            found.append(self._measurement(f"load.{name}", name, value, *spread(values, value)))
        return found

    def comparisons(self, slo: Slo | None = None) -> list[Comparison]:
        """The other arm beside the baseline: times, rates and memory as ratios, failures as differences of shares.

        Empty where only one arm was measured. Without a valid block there are comparisons of no blocks, which show
        nothing: their values are those of the invalid ones. A quantity that a block does not have, or has as 0, has no
        ratio there: its comparison then has no blocks at all, for those that are left would be the good ones.
        """
        if len(self.arms) != 2 or self.arms[0] != BASELINE:
            return []
        other = self.arms[1]
        run = {"blocks": len(self.blocks), "invalid": sum(not record.valid for record in self.blocks)}
        found = []
        for load in self.loads:
            full = {"baseline": self._saturated(BASELINE, load), "variant": self._saturated(other, load)}
            facts = {**run, "saturated": full}
            both = [self._blocks(arm, load, slo) for arm in (BASELINE, other)]
            baseline, variant = (self._typical(arm, load, slo) for arm in (BASELINE, other))
            for name in baseline:
                if name not in variant:
                    continue
                metric, pair = f"load.{name}/{load}", (baseline[name], variant[name])
                values = [[block.get(name) for block in blocks] for blocks in both]
                if name == "failures":
                    (first, sent), (second, _) = self._failed(BASELINE, load), self._failed(other, load)
                    found.append(share_comparison(metric, pair, values, (first, second), sent, facts))
                else:
                    found += ratio_comparison(metric, direction_of(name), unit_of(name), pair, values, facts)
        return found + self._memory_comparisons(other, run)

    def _memory_comparisons(self, other: str, run: Mapping[str, Any]) -> list[Comparison]:
        baseline, variant = self._memory(BASELINE), self._memory(other)
        found = []
        for name in baseline:
            if name in variant:
                values: list[Sequence[float | None]] = [baseline[name], variant[name]]
                pair = (_mean(baseline[name]), _mean(variant[name]))
                facts = {**run, "tokens": self.longest} if name == "concurrency" else run
                found += ratio_comparison(f"load.{name}", direction_of(name), unit_of(name), pair, values, facts)
        return found

    def _of(self, arm: str, load: str) -> list[list[Row]]:
        """The rows of an arm at a load by valid block."""
        found: dict[int, list[Row]] = {record.block: [] for record in self.valid}
        for row in self.rows:
            if row["arm"] == arm and row["load"] == load:
                found[row["block"]].append(row)
        return list(found.values())

    def _blocks(self, arm: str, load: str, slo: Slo | None) -> list[Values]:
        return [quantities(rows, slo) for rows in self._of(arm, load)]

    def _pooled(self, arm: str, load: str, slo: Slo | None) -> Values:
        """Percentiles of all blocks' requests together; means of the blocks' rates and shares."""
        blocks = self._of(arm, load)
        each = [rates(rows, slo) for rows in blocks]
        together = percentiles([row for rows in blocks for row in rows], POOLED)
        return together | {name: _mean([block[name] for block in each]) for name in each[0]}

    def _typical(self, arm: str, load: str, slo: Slo | None) -> Values:
        """What all requests say together; of what only blocks tell, which need fewer, the mean of those that do."""
        blocks = self._blocks(arm, load, slo)
        if not blocks:
            return quantities([row for row in self.all_rows if row["arm"] == arm and row["load"] == load], slo)
        names = dict.fromkeys(name for block in blocks for name in block)
        means = {name: _mean([block[name] for block in blocks if name in block]) for name in names}
        return means | self._pooled(arm, load, slo)

    def _failed(self, arm: str, load: str) -> tuple[int, int]:
        """How many requests failed, and of how many."""
        rows = [row for block in self._of(arm, load) for row in measured(block)]
        return sum(row["error.type"] is not None for row in rows), len(rows)

    def _failures(self, arm: str, load: str, low: float | None, high: float | None) -> tuple[float, float]:
        """Blocks that all had no failure do not show that there are none: at least Wilson's interval of the share."""
        wilson = wilson_interval(*self._failed(arm, load))
        return (
            min(wilson.lower, low if low is not None else 1.0),
            min(1.0, max(wilson.upper, high if high is not None else 0.0)),
        )

    def _saturated(self, arm: str, load: str) -> bool:
        """In more than half of the blocks: in one it may be chance."""
        found = [saturated(rows) for rows in self._of(arm, load)]
        return 2 * sum(found) > len(found)

    def _memory(self, arm: str) -> dict[str, list[float]]:
        """Bytes, and requests of the longest kind that fit, in every valid block; what some do not know is left out."""
        longest = max(1, self.longest)
        wanted: dict[str, tuple[str, Callable[[int], float]]] = {
            "memory_peak": ("peak", float),
            "memory_kv": ("kv", float),
            "concurrency": ("kv_tokens", lambda tokens: float(tokens // longest)),
        }
        found = {}
        for name, (key, counted) in wanted.items():
            values = [record.memory[arm][key] for record in self.valid if key in record.memory.get(arm, {})]
            if values and len(values) == len(self.valid):
                found[name] = [counted(value) for value in values]
        slots = min((record.memory[arm].get("slots", math.inf) for record in self.valid), default=math.inf)
        if "concurrency" in found:
            found["concurrency"] = [min(value, slots) for value in found["concurrency"]]
        return found

    def _measurement(self, metric: str, name: str, value: float, low: float | None, high: float | None) -> Measurement:
        return Measurement(
            name=metric,
            value=value,
            unit=unit_of(name),
            n=len(self.valid),
            direction=direction_of(name),
            low=low,
            high=high,
        )


def read(directory: Path) -> Benchmarked:
    """Read and check a benchmark's artifact. Raises DataError naming the file and the block."""
    blocks = read_blocks(directory)
    path = directory / ROWS_FILE
    rows = read_rows(path)
    check_rows(rows, blocks, path)
    last: dict[int, BlockRecord] = {}
    for record in sorted(blocks, key=lambda record: (record.block, record.attempt)):
        if record.valid:
            last[record.block] = record
    valid = list(last.values())
    if len({frozenset(record.order) for record in valid}) > 1:
        raise DataError("the valid blocks do not all have the same arms.", where=str(path))
    attempts = {(record.block, record.attempt) for record in valid}
    requests = read_requests(directory / REQUESTS_FILE)
    return Benchmarked(
        rows=[row for row in rows if (row["block"], row["attempt"]) in attempts],
        all_rows=rows,
        blocks=blocks,
        valid=valid,
        curve=read_curve(directory),
        fingerprint=_fingerprint(directory / FINGERPRINT_FILE),
        longest=max((request.input_tokens + request.output_tokens for request in requests), default=0),
    )


def knee(points: Sequence[CurvePoint]) -> Knee:
    """The highest rate on one arm's curve, and the requests under way there.

    A server completes what arrives as long as that is less than this rate, and never more than this rate: so an open
    load at a share of it is a load that the server can keep up with. Raises DataError where nothing was completed.
    """
    ordered = sorted(points, key=lambda point: point.streams)
    arms = sorted({point.arm for point in ordered})
    if len(arms) > 1:
        raise DataError(f"these are points of several arms ({', '.join(arms)}), and each has a knee of its own.")
    best = max(ordered, key=lambda point: point.requests_per_second, default=None)
    if best is None or best.requests_per_second <= 0:
        raise DataError(
            "on its whole curve the server completed no request.",
            where=arms[0] if arms else None,
            fix="See the errors in the rows of the curve, and the server's log.",
        )
    warning = None
    if len(ordered) == 1:
        warning = "the curve has a single point: the server may do more with more requests under way"
    elif ordered[-1].requests_per_second > _STILL_RISES * ordered[-2].requests_per_second:
        warning = (
            f"the curve still rises at its last point ({ordered[-2].requests_per_second:.3g} requests/s with "
            f"{ordered[-2].streams} under way, {ordered[-1].requests_per_second:.3g} with {ordered[-1].streams}): "
            "add points to `benchmark.curve`"
        )
    return Knee(best.requests_per_second, best.streams, warning)


def _fingerprint(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the fingerprint cannot be read ({error}).", where=str(path)) from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError("a fingerprint is an object of texts.", where=str(path))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
