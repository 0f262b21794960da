"""Gates are pure: the same evidence always gives the same finding, and the sentence says what was decided and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantize.evidence import Comparison, Evidence
from quantize.gates import Limit, NonInferiority
from quantize.verdict import Finding, combine


def evidence(*comparisons: Comparison) -> Evidence:
    """Evidence with nothing but comparisons."""
    return Evidence(
        variant="int8",
        artifact_digest="a" * 64,
        baseline_digest="b" * 64,
        measurements=[],
        baseline_measurements=[],
        comparisons=list(comparisons),
        hard_stops=[],
    )


def paired(n: int, losses: int, gains: int, metric: str = "facts.accuracy") -> Comparison:
    """What an eval of `n` items hands on; the limits are left out, as the gate computes its own."""
    return Comparison(
        metric=metric, unit="share", baseline=0.8, variant=0.8 + (gains - losses) / n, difference=(gains - losses) / n,
        low=None, high=None, level=None, n=n, method="paired", extra={"losses": losses, "gains": gains},
    )  # fmt: skip


def measured(difference: float, low: float | None, high: float | None, metric: str = "prose.perplexity") -> Comparison:
    """A difference with its interval."""
    return Comparison(
        metric=metric, unit="ln ratio", baseline=10.0, variant=11.0, difference=difference,
        low=low, high=high, level=0.95, n=100, method="bootstrap", extra={},
    )  # fmt: skip


def judged(n: int, losses: int, gains: int, **rule: Any) -> Finding:
    """The finding of a non-inferiority gate on these counts."""
    return NonInferiority(metric="facts.accuracy", **rule).judge(evidence(paired(n, losses, gains)))


@pytest.mark.parametrize(
    ("n", "losses", "gains", "outcome"),
    [
        (300, 0, 0, "pass"),
        (300, 30, 0, "fail"),
        (300, 0, 30, "pass"),
        (300, 15, 15, "inconclusive"),
        (3000, 30, 30, "pass"),
        (3000, 300, 30, "fail"),
        (3000, 30, 300, "pass"),
        (10, 0, 0, "inconclusive"),
    ],
)
def test_losses_beyond_the_margin_fail_and_gains_never_do(n, losses, gains, outcome):
    """The mutation "sign of delta" (gains and losses exchanged in gates or in stats) turns this test red.

    With the sign exchanged, (300, 30, 0) passes and (300, 0, 30) fails.
    """
    finding = judged(n, losses, gains)
    assert finding.outcome == outcome
    assert finding.numbers["difference"] == pytest.approx((gains - losses) / n)


def test_the_sentence_has_the_sign_of_the_change():
    """The mutation "sign of delta" turns this test red too: a loss reads as a gain."""
    assert "facts.accuracy changed by -10.0 points" in judged(300, 30, 0).sentence
    assert "facts.accuracy changed by +10.0 points" in judged(300, 0, 30).sentence
    assert "30 lost, 0 gained" in judged(300, 30, 0).sentence


def test_more_losses_never_turn_a_worse_finding_into_a_better_one():
    order = ["pass", "inconclusive", "fail"]
    ranks = [order.index(judged(400, losses, 2, margin=0.05).outcome) for losses in range(0, 81, 4)]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


def test_a_wider_margin_never_turns_a_pass_into_something_worse():
    order = ["fail", "inconclusive", "pass"]
    ranks = [order.index(judged(300, 12, 4, margin=m).outcome) for m in (0.01, 0.02, 0.03, 0.05, 0.08, 0.15)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (4, 4), (10, 0), (40, 2), (2, 30), (9, 3)])
@pytest.mark.parametrize("n", [200, 2500])
def test_the_outcome_the_limits_the_p_value_and_the_sentence_agree(n, losses, gains):
    finding = judged(n, losses, gains)
    numbers = finding.numbers
    assert (finding.outcome == "pass") == (numbers["p_value"] <= numbers["alpha"]) == (numbers["lower"] > -0.02)
    assert (finding.outcome == "fail") == (numbers["upper"] < -0.02)
    assert numbers["lower"] <= numbers["difference"] <= numbers["upper"]
    words = {"pass": "within the margin", "fail": "worse than the margin", "inconclusive": "neither shows nor excludes"}
    assert words[finding.outcome] in finding.sentence
    assert sum(word in finding.sentence for word in words.values()) == 1


def test_a_significant_loss_within_the_margin_passes_and_is_called_worse():
    finding = judged(3000, 40, 5, margin=0.03)
    assert finding.outcome == "pass"
    assert "worse, but within the margin of 3 points" in finding.sentence


def test_an_inconclusive_finding_says_how_many_items_would_decide():
    finding = judged(200, 3, 3)
    assert finding.outcome == "inconclusive"
    assert finding.numbers["needed"] > 200
    assert f"About {finding.numbers['needed']} items would decide." in finding.sentence


def test_the_gate_looks_at_its_own_metric_and_slice():
    seen = evidence(
        paired(300, 0, 0), paired(300, 90, 0, "facts.accuracy/reading"), paired(300, 90, 0, "other.accuracy")
    )
    assert NonInferiority(metric="facts.accuracy").judge(seen).outcome == "pass"
    assert NonInferiority(metric="facts.accuracy/reading").judge(seen).outcome == "fail"


@pytest.mark.parametrize(
    "comparisons", [[], [paired(300, 0, 0, "other.accuracy")], [measured(0.0, 0.0, 0.0, "facts.accuracy")]]
)
def test_what_was_not_measured_as_pairs_is_an_error_and_never_a_pass(comparisons):
    finding = NonInferiority(metric="facts.accuracy").judge(evidence(*comparisons))
    assert finding.outcome == "error"
    assert "facts.accuracy was not measured as paired items" in finding.sentence


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_level_of_the_interval_is_said_as_it_is(alpha):
    assert f"{100 * (1 - 2 * alpha):g} % interval" in judged(300, 3, 3, alpha=alpha).sentence
    assert judged(300, 3, 3, alpha=alpha).numbers["alpha"] == alpha


@pytest.mark.parametrize("rule", [{"margin": 0}, {"margin": -0.1}, {"margin": 1}, {"alpha": 0}, {"alpha": 0.5}])
def test_a_rule_that_decides_nothing_is_refused(rule):
    with pytest.raises(ValueError, match=next(iter(rule))):
        NonInferiority(metric="facts.accuracy", **rule)


@pytest.mark.parametrize(
    ("difference", "low", "high", "outcome"),
    [
        (0.05, 0.02, 0.08, "pass"),
        (0.05, 0.02, 0.10, "pass"),
        (0.05, 0.02, 0.1001, "inconclusive"),
        (0.15, 0.0999, 0.2, "inconclusive"),
        (0.15, 0.11, 0.2, "fail"),
        (0.05, None, None, "pass"),
        (0.15, None, None, "fail"),
        (-0.5, -0.6, -0.4, "pass"),
    ],
)
def test_a_limit_needs_the_whole_interval_on_one_side(difference, low, high, outcome):
    finding = Limit(metric="prose.perplexity", at_most=0.1).judge(evidence(measured(difference, low, high)))
    assert finding.outcome == outcome
    assert f"{difference:+.4f} ln ratio" in finding.sentence
    words = {"pass": "within the limit", "fail": "above the limit", "inconclusive": "too close to tell from the limit"}
    assert words[outcome] in finding.sentence


def test_a_limit_on_what_was_not_measured_is_an_error_that_names_what_was():
    finding = Limit(metric="prose.perplexity", at_most=0.1).judge(evidence(paired(10, 0, 0)))
    assert finding.outcome == "error"
    assert "measured: facts.accuracy" in finding.sentence


def test_an_advisory_finding_does_not_block_and_a_limit_is_advisory_unless_said_otherwise():
    bad = evidence(measured(0.5, 0.4, 0.6), paired(300, 0, 0))
    advisory = Limit(metric="prose.perplexity", at_most=0.1).judge(bad)
    blocking = Limit(metric="prose.perplexity", at_most=0.1, advisory=False).judge(bad)
    passed = NonInferiority(metric="facts.accuracy").judge(bad)
    assert advisory.advisory and not blocking.advisory and not passed.advisory
    assert combine([passed, advisory]) == "pass"
    assert combine([passed, blocking]) == "fail"
    assert combine([advisory]) == "error", "with nothing to judge there is no pass"


def test_a_gate_writes_nothing_and_gives_the_same_finding_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judged(500, 9, 3) == judged(500, 9, 3)
    assert not list(Path().iterdir())
