"""How often the whole rule errs and delivers: early stopping, the end, several gates, variants and attempts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulation import Gate, Situation, clopper_pearson, decided_passes, equal, promotes

from quantize.stats import judge_pairs, look, sample_size, spent_alpha

ALPHA = 0.05


def bar(alpha, runs):
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("early", [0.2, 0.5])
@pytest.mark.parametrize(
    ("n", "margin", "flips"),
    [(300, 0.02, 0.02), (300, 0.02, 0.06), (150, 0.05, 0.05), (600, 0.05, 0.15), (600, 0.02, 0.3)],
)
def test_with_early_stopping_a_variant_at_the_margin_passes_at_most_alpha_of_the_time(n, margin, flips, early):
    runs = 4000
    passed = decided_passes(np.random.default_rng(0), n, margin, ALPHA, flips, -margin, runs, early)
    assert passed.mean() <= bar(ALPHA, runs)


def test_the_vectorised_rule_is_the_rule_that_judges():
    # The simulation above decides by enumeration and capital alone; here the program decides the same sets.
    n, margin, flips, runs = 150, 0.05, 0.12, 150
    fast = decided_passes(np.random.default_rng(7), n, margin, ALPHA, flips, 0.0, runs)
    random = np.random.default_rng(7)
    draw = random.random((runs, n))
    differences = np.where(draw < flips / 2, -1.0, np.where(draw < flips, 1.0, 0.0))
    everything = Situation(equal(1, n), flips, 0.0)
    slow = [judge_pairs(everything.pairs(d, np.zeros(n)), margin, ALPHA).outcome == "pass" for d in differences]
    assert fast.tolist() == slow
    assert 0.2 < fast.mean() < 0.95


@pytest.mark.parametrize("flips", [0.03, 0.06, 0.1])
def test_the_planned_items_give_90_percent_power_with_early_stopping_and_a_first_attempt(flips):
    margin, runs = 0.05, 4000
    n = sample_size(margin, flips, spent_alpha(ALPHA))
    passed = decided_passes(np.random.default_rng(1), n, margin, spent_alpha(ALPHA, early=0.0), flips, 0.0, runs)
    assert passed.mean() > 0.9 - 3 * math.sqrt(0.09 / runs)


def test_the_number_needed_by_clusters_gives_90_percent_power():
    margin = 0.05
    pilot = Situation(equal(4, 400), 0.2, 0.0, uneven=0.5)
    random = np.random.default_rng(2)
    # A stricter alpha makes the large pilot inconclusive, so that it says what it would have needed.
    test = next(
        t for t in (judge_pairs(pilot.complete(random), 0.02, 0.001) for _ in range(50)) if t.needed is not None
    )
    assert test.needed > 1600
    needed = [
        t.needed
        for t in (
            judge_pairs(Situation(equal(4, 60), 0.2, 0.0, 0.5).complete(random), margin, ALPHA) for _ in range(60)
        )
        if t.needed is not None and abs(t.difference) < 0.02
    ]
    groups = round(float(np.median(needed)) / 4)
    planned = Situation(equal(4, groups), 0.2, 0.0, uneven=0.5)
    passed = [judge_pairs(planned.complete(random), margin, ALPHA).outcome == "pass" for _ in range(300)]
    assert 0.8 < np.mean(passed) < 0.99


def items_until_stop(situation, margin, random, items=40):
    baseline = situation.baseline(random)
    answers = situation.answers(random, baseline)
    for end in situation.looks(items):
        if (said := look(situation.pairs(answers, baseline, end), margin, ALPHA)) is not None:
            return said, end
    return None, len(answers)


def test_bad_variants_stop_early_and_good_ones_are_seldom_stopped():
    random = np.random.default_rng(3)
    bad = [items_until_stop(Situation(equal(1, 600), 0.3, -0.15), 0.02, random) for _ in range(60)]
    assert all(said in ("fail", "futile") for said, _ in bad)
    assert np.mean([end for _, end in bad]) < 200
    good = [items_until_stop(Situation(equal(1, 600), 0.06, 0.0), 0.05, random) for _ in range(60)]
    assert sum(said in ("fail", "futile") for said, _ in good) <= 1
    assert sum(said == "pass" for said, _ in good) > 10


def test_early_fail_errs_at_most_5_percent_of_the_time_on_a_variant_at_the_margin():
    random = np.random.default_rng(4)
    runs = 400
    stops = [items_until_stop(Situation(equal(1, 300), 0.14, -0.05), 0.05, random) for _ in range(runs)]
    assert sum(said == "fail" for said, _ in stops) / runs <= bar(0.05, runs)


@pytest.mark.slow
def test_2000_series_of_promotions_end_to_end_promote_a_variant_at_the_margin_at_most_alpha_of_the_time():
    """Two variants of one target, two gates each, looks, up to three attempts each on one eval set, Holm among them.

    Every variant is worse by exactly the margin on the first gate and better on the second: the worst case of "all
    gates must pass". A series counts as false if any of its attempts promotes.
    """
    margin, runs = 0.1, 2000
    gates = [
        Gate(Situation(equal(1, 60), 0.16, -margin), margin),
        Gate(Situation(equal(1, 60), 0.06, 0.05), margin),
    ]
    random = np.random.default_rng(1)
    false = sum(promotes(random, gates, variants=2, attempts=3, look_items=20) for _ in range(runs))
    low, high = clopper_pearson(false, runs)
    print(f"{false} of {runs} series promoted falsely: {false / runs:.2%} (95 % interval {low:.2%} to {high:.2%})")
    assert low <= ALPHA
    assert false / runs <= ALPHA
    assert false > 0, "a rule that never passes anything would show nothing"


def test_a_series_of_good_variants_is_promoted():
    gates = [Gate(Situation(equal(1, 120), 0.06, 0.03), 0.08), Gate(Situation(equal(1, 120), 0.06, 0.05), 0.08)]
    random = np.random.default_rng(2)
    promoted = [promotes(random, gates, variants=2, attempts=1) for _ in range(40)]
    assert np.mean(promoted) > 0.9
