"""What the latency gate decides, measured: the tiny Llama in this process, TPOT only, in 60 pairs.

Everything is real: the sessions, the clock, the blocks in random order, the watch on the machine, the reading of the
artifact and the gate. Only the model is tiny, so that a block takes less than half a second. Half of what is shown is
that the gate cries no wolf: of 40 pairs of the model with itself hardly one may FAIL. The other half is that it sees: a
model whose every step really takes 15 % longer must FAIL, and one that is unchanged must pass, the A/A rule included.

Runs alone (`make test-rates`), about three minutes on two quiet cores. On a machine that others use too,
`QUANTIZE_SHARED_MACHINE=1` leaves out the watch, which would call every block invalid.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from quick_pairs import Watch, frozen, measured, quick, tiny
from scipy.stats import binom

from quantize.benchmark.config import Synchronous
from quantize.benchmark.reading import read
from quantize.benchmark.requests import Shape, Synthetic
from quantize.evidence import Comparison, Evidence
from quantize.gates import Latency
from quantize.stats import ratio_interval
from quantize.watching import Watch as RealWatch

pytestmark = [pytest.mark.slow, pytest.mark.rates]

METRIC = "load.tpot_p50/single"
SAME, PLANTED = 40, 20
LONGER = 0.15
ALPHA = 0.05

#: Eight blocks of six answers of 24 tokens: an arm takes a quarter of a second, and the logarithm of a block's ratio
#: scatters by 1 to 1.5 %, so that the interval of eight reaches about 1 % to either side; with one block far off, 5 %.
BENCHMARK = quick(
    requests=Synthetic(shapes=[Shape(input=16, output=24)]),
    loads=[Synchronous(name="single", requests=6)],
    blocks=8,
    reruns=100,
    drift=0.05,
)


def comparison(folder: Path, seed: int, second: Any) -> Comparison:
    """One pair, measured and read."""
    watch = Watch if os.environ.get("QUANTIZE_SHARED_MACHINE") else partial(RealWatch, "cpu")
    out = measured(folder, BENCHMARK, {"baseline": tiny, "variant": second}, seed=seed, watch=watch)
    return next(found for found in read(out).comparisons(None) if found.metric == METRIC)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> tuple[list[Comparison], list[Comparison]]:
    """The pairs of the model with itself, and those with the slower one, in turn, so that all meet the same hours."""
    folder = tmp_path_factory.mktemp("pairs")
    began = time.monotonic()
    same: list[Comparison] = []
    planted: list[Comparison] = []
    with frozen():
        for number in range(PLANTED):
            same += [comparison(folder / f"same-{number}-{half}", 2 * number + half, tiny) for half in (0, 1)]
            planted.append(comparison(folder / f"planted-{number}", 1000 + number, partial(tiny, longer=LONGER)))
    scatter = [statistics.stdev(pair.extra["logs"]) for pair in same if pair.n > 1]
    invalid = sum(pair.extra["invalid"] for pair in same + planted)
    print(
        f"\n{SAME + PLANTED} pairs of {BENCHMARK.blocks} blocks in {time.monotonic() - began:.0f} s, "
        f"{invalid} blocks invalid; TPOT {statistics.median(p.baseline for p in same) * 1000:.2f} ms; a block's log "
        f"ratio scatters by {statistics.median(scatter):.4f} (median of pairs; largest {max(scatter):.4f})"
    )
    for name, found in (("same", same), ("planted", planted)):
        ratios = sorted(pair.difference for pair in found)
        print(f"{name:8} ratio {ratios[0]:.4f} to {ratios[-1]:.4f}, median {statistics.median(ratios):.4f}")
    return same, planted


def outcomes(judged: list[Comparison], noise: list[Comparison]) -> Counter[str]:
    """What the gate says of each pair, beside another that says how noisy the machine is."""
    gate = Latency(metric=METRIC, alpha=ALPHA)
    found: Counter[str] = Counter()
    for pair, beside in zip(judged, noise, strict=True):
        evidence = Evidence(
            variant="variant",
            artifact_digest="0" * 64,
            baseline_digest="1" * 64,
            measurements=[],
            baseline_measurements=[],
            comparisons=[pair],
            hard_stops=[],
            noise=[beside],
        )
        found[gate.judge(evidence, {}).outcome] += 1
    return found


def tail(count: int, of: int, rate: float) -> float:
    """P(X >= count) where X is binomial."""
    return float(binom.sf(count - 1, of, rate))


def test_the_model_beside_itself_fails_no_more_often_than_the_nominal_rate(pairs):
    same, _ = pairs
    found = outcomes(same, same[1:] + same[:1])
    chance = tail(found["fail"], SAME, ALPHA)
    told = f"P(X >= {found['fail']} | {SAME}, {ALPHA}) = {chance:.3f}"
    print(f"\nA/A: {found['fail']} of {SAME} FAIL; {told}; {dict(found)}")
    assert chance >= 0.05


def test_the_interval_misses_a_ratio_of_one_no_more_often_than_it_says(pairs):
    """The gate's margin makes a FAIL of an unchanged model rarer than nominal. Without it, the rate is alpha itself."""
    same, _ = pairs
    intervals = [ratio_interval(pair.extra["logs"], ALPHA) for pair in same]
    for side, missed in (
        ("lower limit above 1", sum(interval.lower > 1 for interval in intervals)),
        ("upper limit below 1", sum(interval.upper < 1 for interval in intervals)),
    ):
        chance = tail(missed, SAME, ALPHA)
        print(f"\nA/A, no margin: {side} in {missed} of {SAME}; P(X >= {missed} | {SAME}, {ALPHA}) = {chance:.3f}")
        assert chance >= 0.001


def test_a_planted_slow_down_fails(pairs):
    same, planted = pairs
    found = outcomes(planted, same[:PLANTED])
    print(f"\nplanted {LONGER:.0%}: {found['fail']} of {PLANTED} FAIL; {dict(found)}")
    assert found["fail"] >= 18


def test_an_unchanged_arm_passes(pairs):
    same, _ = pairs
    found = outcomes(same[:PLANTED], same[PLANTED:])
    print(f"\nunchanged: {found['pass']} of {PLANTED} pass; {dict(found)}")
    assert found["pass"] >= 18
