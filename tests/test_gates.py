"""Gates are pure: the same pairs always give the same finding, and the sentence says what was decided and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.evidence import Comparison, Evidence, Measurement, Spending
from quantize.gates import Limit, NonInferiority
from quantize.stats import Pairs
from quantize.verdict import Finding, combine

FIXED = Spending(early=0.0)


def evidence(*comparisons: Comparison, spending: Spending = FIXED, known: tuple[str, ...] = ()) -> Evidence:
    """Evidence with comparisons, how alpha is spent, and what the baseline was measured on."""
    accuracy = Measurement(name="", value=0.8, unit="share", n=300, direction="higher")
    return Evidence(
        variant="int8",
        artifact_digest="a" * 64,
        baseline_digest="b" * 64,
        measurements=[],
        baseline_measurements=[accuracy.model_copy(update={"name": name}) for name in known],
        comparisons=list(comparisons),
        hard_stops=[],
        spending=spending,
    )


def pairs(n: int, losses: float, gains: float, *, size: int = 1, total: int | None = None, by: float = 1.0) -> Pairs:
    """`n` items in clusters of `size`, some of which lose or gain `by`; `total` with those to come.

    Losses and gains are scattered, whole clusters at a time. The baseline had all the items to come right.
    """
    units = n // size
    changes = np.zeros(units)
    changes[: int(losses) // size] = -by
    changes[int(losses) // size : int(losses + gains) // size] = by
    changes = np.random.default_rng(3).permutation(changes)
    labels = np.repeat(np.arange((total or n) // size), size)
    rest = (total or n) - n
    return Pairs(np.repeat(changes, size), labels[:n], np.zeros(rest), labels[n:], binary=by == 1.0)


def measured(difference: float, low: float | None, high: float | None, metric: str = "prose.perplexity") -> Comparison:
    """A difference with its interval."""
    return Comparison(
        metric=metric, unit="ln ratio", baseline=10.0, variant=11.0, difference=difference,
        low=low, high=high, level=0.95, n=100, method="bootstrap", extra={},
    )  # fmt: skip


def judged(n: int, losses: float, gains: float, *, spending: Spending = FIXED, **rule: Any) -> Finding:
    """The finding of a non-inferiority gate on these counts."""
    sample = {"facts.accuracy": pairs(n, losses, gains)}
    return NonInferiority(metric="facts.accuracy", **rule).judge(evidence(spending=spending), sample)


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
@pytest.mark.parametrize(("n", "early"), [(200, 0.0), (2500, 0.0), (200, 0.2), (2500, 0.2)])
def test_the_outcome_the_limits_the_p_value_and_the_sentence_agree(n, early, losses, gains):
    finding = judged(n, losses, gains, spending=Spending(early=early))
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


def test_losses_that_outnumber_gains_raise_an_alarm_which_decides_nothing():
    finding = judged(3000, 40, 5, margin=0.03)
    assert finding.outcome == "pass"
    assert "Regression alarm: losses outnumber gains (p = " in finding.sentence
    assert finding.numbers["mcnemar"] < 1e-5
    quiet = judged(3000, 22, 23, margin=0.03)
    assert quiet.numbers["mcnemar"] > 0.05
    assert "alarm" not in quiet.sentence
    assert "alarm" not in judged(300, 30, 0).sentence, "what failed needs no alarm"


def test_the_alarm_counts_clusters_and_not_their_items():
    """Red when items are counted: 24 losses of one passage's items would be an alarm, and they are four passages."""
    gate = NonInferiority(metric="facts.accuracy", margin=0.15)
    loose, grouped = (gate.judge(evidence(), {"facts.accuracy": pairs(1200, 24, 0, size=size)}) for size in (1, 6))
    assert (loose.outcome, grouped.outcome) == ("pass", "pass")
    assert (loose.numbers["losses"], grouped.numbers["losses"]) == (24, 24)
    assert loose.numbers["mcnemar"] == pytest.approx(0.5**24)
    assert grouped.numbers["mcnemar"] == pytest.approx(0.5**4)
    assert "alarm" in loose.sentence
    assert "alarm" not in grouped.sentence


@pytest.mark.parametrize(
    ("spending", "total", "level"),
    [
        (FIXED, 300, 94),  # a first attempt has 0.030 of the 0.05, below and above
        (Spending(attempt=3, early=0.0), 300, 99),
        (Spending(early=0.5), 300, 95),  # half of the 0.030 above
        (Spending(early=0.5), 1000, 93),  # half of the 0.030 below, and what an early fail may miss above
    ],
)
def test_the_sentence_says_the_level_of_its_interval(spending, total, level):
    """Red when the limits are called a 90 % interval whatever was spent on them."""
    sample = {"facts.accuracy": pairs(300, 0, 0, total=total)}
    finding = NonInferiority(metric="facts.accuracy", margin=0.05).judge(evidence(spending=spending), sample)
    missed = finding.numbers["lower_level"] + finding.numbers["upper_level"]
    assert round(100 * (1 - missed)) == level
    assert f"({level} % interval " in finding.sentence


def test_an_inconclusive_finding_says_how_many_items_would_probably_decide():
    finding = judged(200, 3, 3)
    assert finding.outcome == "inconclusive"
    assert finding.numbers["needed"] > 200
    assert f"About {finding.numbers['needed']} items would show it nine times in ten." in finding.sentence


def test_items_that_hang_together_count_for_less_than_as_many_that_do_not():
    """Red when clusters are ignored: 18 losses among 600 items are 3 points, and here only three passages of six."""
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    loose = gate.judge(evidence(), {"facts.accuracy": pairs(600, 18, 0)})
    grouped = gate.judge(evidence(), {"facts.accuracy": pairs(600, 18, 0, size=6)})
    assert loose.numbers["difference"] == pytest.approx(grouped.numbers["difference"])
    assert (loose.outcome, grouped.outcome) == ("pass", "inconclusive")
    assert grouped.numbers["clusters"] == 100
    assert "600 items in 100 clusters" in grouped.sentence
    assert "clusters" not in loose.sentence
    many = gate.judge(evidence(), {"facts.accuracy": pairs(12000, 360, 0, size=6)})
    assert many.outcome == "pass"


def test_scores_in_between_are_judged_as_they_are():
    """A loss of half a point on an item is half a loss, neither a whole one nor none."""
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    half = gate.judge(evidence(), {"facts.accuracy": pairs(1000, 60, 0, by=0.5)})
    assert half.numbers["difference"] == pytest.approx(-0.03)
    assert (half.numbers["losses"], half.numbers["gains"]) == (60, 0)
    assert half.outcome == "pass"
    assert half.numbers["lower"] < -0.03 < half.numbers["upper"]
    assert gate.judge(evidence(), {"facts.accuracy": pairs(1000, 200, 0, by=0.5)}).outcome == "fail"


def test_the_gate_looks_at_its_own_metric_and_slice_by_its_own_margin():
    seen = {
        "facts.accuracy": pairs(300, 0, 0),
        "facts.accuracy/reading": pairs(300, 30, 0),
        "other.accuracy": pairs(300, 90, 0),
    }
    assert NonInferiority(metric="facts.accuracy").judge(evidence(), seen).outcome == "pass"
    assert NonInferiority(metric="facts.accuracy/reading").judge(evidence(), seen).outcome == "fail"
    wide = NonInferiority(metric="facts.accuracy/reading", margin=0.2).judge(evidence(), seen)
    assert wide.outcome == "pass"
    assert "within the margin of 20 points" in wide.sentence
    assert "facts.accuracy/reading not worse than 20 points" in wide.gate


@pytest.mark.parametrize(
    "seen", [{}, {"other.accuracy": pairs(300, 0, 0)}, {"facts.accuracy/reading": pairs(300, 0, 0)}]
)
def test_what_was_not_measured_as_pairs_is_an_error_and_never_a_pass(seen):
    told = evidence(measured(0.0, 0.0, 0.0, "facts.accuracy"))
    finding = NonInferiority(metric="facts.accuracy").judge(told, seen)
    assert finding.outcome == "error"
    assert (
        f"facts.accuracy was not measured as paired items (measured: {', '.join(seen) or 'none'})" in finding.sentence
    )


def test_a_slice_of_which_nothing_was_reached_is_inconclusive():
    """The baseline has the slice; the variant was stopped before its first item."""
    seen = {"facts.accuracy": pairs(48, 20, 0, total=300)}
    told = evidence(known=("facts.accuracy", "facts.accuracy/rare"))
    finding = NonInferiority(metric="facts.accuracy/rare").judge(told, seen)
    assert finding.outcome == "inconclusive"
    assert "none of its items was reached before the variant was stopped" in finding.sentence
    assert NonInferiority(metric="facts.accuracy/none").judge(told, seen).outcome == "error"


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_an_attempt_is_judged_at_its_own_alpha_and_said(attempt):
    finding = judged(300, 0, 0, spending=Spending(attempt=attempt, early=0.0), margin=0.05)
    alpha = 0.05 * 6 / (math.pi * attempt) ** 2
    assert finding.numbers["alpha"] == pytest.approx(alpha)
    assert finding.numbers["attempt"] == attempt
    said = f"Attempt {attempt} on this eval set, judged at alpha {alpha:.2g}."
    assert (said in finding.sentence) == (attempt > 1)


def test_what_passes_at_the_first_attempt_may_be_too_little_at_the_third():
    outcomes = [judged(160, 0, 0, spending=Spending(attempt=k, early=0.0)).outcome for k in (1, 3)]
    assert outcomes == ["inconclusive", "inconclusive"], "at no attempt is less asked than the first alpha"
    outcomes = [judged(200, 0, 0, spending=Spending(attempt=k, early=0.0)).outcome for k in (1, 3)]
    assert outcomes == ["pass", "inconclusive"]


def test_only_the_confirmation_counts_attempts_where_there_is_one():
    spending = Spending(attempt=3, early=0.0, confirmation="fresh")
    seen = {"facts.accuracy": pairs(300, 0, 0), "fresh.accuracy": pairs(300, 0, 0)}
    told = evidence(spending=spending)
    first = NonInferiority(metric="facts.accuracy").judge(told, seen)
    last = NonInferiority(metric="fresh.accuracy").judge(told, seen)
    assert (first.numbers["attempt"], last.numbers["attempt"]) == (1, 3)
    assert first.numbers["alpha"] == pytest.approx(9 * last.numbers["alpha"])
    assert "Attempt" not in first.sentence


@pytest.mark.parametrize(
    ("n", "losses", "total", "stopped", "outcome", "said"),
    [
        (400, 0, 1000, "pass", "pass", "Decided after 400 of 1000 items: a loss of the margin was already excluded"),
        (150, 60, 1000, "fail", "fail", "Decided after 150 of 1000 items: a loss beyond the margin was already shown"),
        (280, 15, 300, "futile", "inconclusive", "Ended after 280 of 300 items: even with every other item right"),
    ],
)
def test_an_early_stop_is_said_with_the_items_answered(n, losses, total, stopped, outcome, said):
    sample = {"facts.accuracy": pairs(n, losses, 0, total=total)}
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    spending = Spending()
    assert gate.look(sample["facts.accuracy"], spending) == stopped
    finding = gate.judge(evidence(spending=spending), sample)
    assert (finding.outcome, finding.numbers["stopped"]) == (outcome, stopped)
    assert said in finding.sentence
    assert finding.looks[-1].items == n
    assert all(look.lower <= look.upper for look in finding.looks)


def test_a_sample_that_nothing_stopped_is_not_said_to_have_stopped():
    finding = judged(1000, 5, 5, spending=Spending(), margin=0.05)
    assert finding.outcome == "pass"
    assert finding.numbers["stopped"] is None
    assert not {"Decided", "Ended"} & set(finding.sentence.split())
    assert finding.looks, "it was looked at all the same"
    assert not judged(1000, 5, 5, margin=0.05).looks, "nobody looks at a fixed sample"


def test_an_incomplete_sample_that_shows_nothing_yet_never_passes():
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    few = pairs(48, 0, 0, total=1000)
    assert gate.look(few, Spending()) is None
    assert gate.judge(evidence(spending=Spending()), {"facts.accuracy": few}).outcome == "inconclusive"


def test_more_rivals_for_one_target_ask_for_more_items_before_an_early_pass():
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)

    def first(choices: int) -> int:
        sizes = range(50, 1000, 5)
        return next(n for n in sizes if gate.look(pairs(n, 0, 0, total=1000), Spending(choices=choices)) == "pass")

    assert first(1) < first(2) < first(4)


@pytest.mark.parametrize(
    "rule",
    [{"margin": 0}, {"margin": -0.1}, {"margin": 1}, {"margin": 1.5}, {"alpha": 0}, {"alpha": 0.5}],
)
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
    finding = Limit(metric="prose.perplexity", at_most=0.1).judge(evidence(measured(difference, low, high)), {})
    assert finding.outcome == outcome
    assert f"{difference:+.4f} ln ratio" in finding.sentence
    assert ("interval" in finding.sentence) == (low is not None), "what has no interval is not given one"
    words = {"pass": "within the limit", "fail": "above the limit", "inconclusive": "too close to tell from the limit"}
    assert words[outcome] in finding.sentence


def test_a_limit_on_what_was_not_measured_is_an_error_that_names_what_was():
    told = evidence(measured(0.0, 0.0, 0.0, "facts.accuracy"))
    finding = Limit(metric="prose.perplexity", at_most=0.1).judge(told, {})
    assert finding.outcome == "error"
    assert "measured: facts.accuracy" in finding.sentence


def test_an_advisory_finding_does_not_block_and_a_limit_is_advisory_unless_said_otherwise():
    bad = evidence(measured(0.5, 0.4, 0.6))
    advisory = Limit(metric="prose.perplexity", at_most=0.1).judge(bad, {})
    blocking = Limit(metric="prose.perplexity", at_most=0.1, advisory=False).judge(bad, {})
    passed = judged(300, 0, 0)
    assert advisory.advisory and not blocking.advisory and not passed.advisory
    assert combine([passed, advisory]) == "pass"
    assert combine([passed, blocking]) == "fail"
    assert combine([advisory]) == "error", "with nothing to judge there is no pass"


def test_a_gate_writes_nothing_and_gives_the_same_finding_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judged(500, 9, 3) == judged(500, 9, 3)
    sample = {"facts.accuracy": pairs(600, 60, 30, size=3)}
    gate = NonInferiority(metric="facts.accuracy")
    assert gate.judge(evidence(), sample) == gate.judge(evidence(), sample), "resamples are seeded"
    assert not list(Path().iterdir())
