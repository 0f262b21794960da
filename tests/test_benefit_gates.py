"""What a smaller model is for: the benefit gate."""

from __future__ import annotations

import pytest
from gate_comparisons import TPOT, compared, evidence, scattered

from quantize.evidence import Comparison
from quantize.gates import Benefit


def weights(share: float) -> Comparison:
    return Comparison(
        metric="weights.bytes", unit="share of the baseline", baseline=2e8, variant=share * 2e8, difference=share,
        low=None, high=None, level=None, n=1, method="file sizes", extra={},
    )  # fmt: skip


@pytest.mark.parametrize(("share", "outcome"), [(0.27, "pass"), (0.6, "pass"), (0.601, "fail"), (1.2, "fail")])
def test_fewer_bytes_are_a_benefit_without_any_benchmark(share, outcome):
    found = Benefit(metric="weights.bytes", at_least=0.4).judge(evidence(weights(share)), {})
    assert found.outcome == outcome
    assert found.numbers["ratio"] == share


def test_a_benefit_in_bytes_reads_well():
    found = Benefit(metric="weights.bytes", at_least=0.4).judge(evidence(weights(0.27)), {})
    assert found.sentence == (
        "The weights take 27 % of the baseline's bytes (54.0 MB beside 200.0 MB), as the gate asks for: at most 60 %."
    )


@pytest.mark.parametrize(
    ("metric", "ratio", "spread", "outcome"),
    [
        (TPOT, 0.6, 0.01, "pass"),
        (TPOT, 0.7, 0.01, "inconclusive"),
        (TPOT, 0.8, 0.01, "fail"),
        (TPOT, 1.4, 0.01, "fail"),
        ("load.memory_peak", 0.6, 0.0, "pass"),
        ("load.goodput/traffic", 1.4, 0.01, "pass"),
        ("load.goodput/traffic", 1.3, 0.01, "inconclusive"),
        ("load.goodput/traffic", 1.2, 0.01, "fail"),
        ("load.goodput/traffic", 0.6, 0.01, "fail"),
        ("load.concurrency", 1.4, 0.0, "pass"),
    ],
)
def test_the_whole_interval_must_reach_a_benefit_in_the_direction_that_is_better(metric, ratio, spread, outcome):
    found = Benefit(metric=metric, at_least=0.3).judge(evidence(compared(scattered(ratio, spread), metric)), {})
    assert found.outcome == outcome


def test_an_unclear_benefit_says_how_many_blocks_would_show_it():
    near = Benefit(metric=TPOT, at_least=0.3).judge(evidence(compared(scattered(0.68, 0.06))), {})
    assert near.outcome == "inconclusive"
    assert "If what was seen is true, about 39 blocks would show it nine times in ten." in near.sentence
    missed = Benefit(metric=TPOT, at_least=0.3).judge(evidence(compared(scattered(0.71, 0.06))), {})
    assert missed.outcome == "inconclusive"
    assert "nine times in ten" not in missed.sentence


def test_a_benefit_in_too_few_blocks_or_not_measured_decides_nothing():
    few = Benefit(metric=TPOT, at_least=0.3).judge(evidence(compared(scattered(0.3, blocks=5), invalid=2)), {})
    assert (few.outcome, few.numbers["blocks"]) == ("inconclusive", 5)
    none = Benefit(metric=TPOT, at_least=0.3).judge(evidence(weights(0.3)), {})
    assert none.outcome == "error"
    assert "weights.bytes" in none.sentence
