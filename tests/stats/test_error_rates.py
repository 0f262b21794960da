"""How often the tests err, counted over every outcome there is."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.stats import noninferiority, passing_probability, planning_table, sample_size
from quantize.stats.exact import exact_p_value, score_test_size
from quantize.stats.tango import score, score_p_value

ALPHA = 0.05
ROUNDING = 1e-9


def flip_rates(margin, count=40):
    """From the least that the margin allows to one, dense near the least."""
    return margin + (1 - margin) * np.linspace(0, 1, count) ** 3


def rejected_by_exact_test(every, margin, alpha=ALPHA):
    """The outcomes with p <= alpha; p falls as z rises, so one search over the values of z finds them."""
    z = score(every.losses, every.gains, every.n, -margin)
    order = np.argsort(z)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        outcome = order[middle]
        passes = exact_p_value(int(every.losses[outcome]), int(every.gains[outcome]), every.n, -margin) <= alpha
        low, high = (low, middle) if passes else (middle + 1, high)
    rejected = np.zeros(len(order), dtype=bool)
    rejected[order[low:]] = True
    return rejected


@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("n", [30, 60, 150, 222, 600])
def test_the_exact_test_errs_at_most_alpha_of_the_time_at_the_margin(outcomes, n, margin):
    every = outcomes(n)
    rejected = rejected_by_exact_test(every, margin)
    worst = max(every.probabilities(rate, -margin)[rejected].sum() for rate in flip_rates(margin))
    assert worst <= ALPHA + ROUNDING
    if n >= 222:
        assert worst > 0.8 * ALPHA, "the error allowed should be spent, or power is given away"


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.2])
def test_every_single_outcome_judged_one_by_one_keeps_the_error_rate_within_h0_too(outcomes, margin):
    every = outcomes(30)
    passed = np.array(
        [exact_p_value(int(b), int(c), 30, -margin) <= ALPHA for b, c in zip(every.losses, every.gains, strict=True)]
    )
    assert passed.any()
    for difference in (-margin, -1.2 * margin, -2 * margin, -4 * margin):
        for rate in flip_rates(abs(difference)):
            assert every.probabilities(rate, difference)[passed].sum() <= ALPHA + ROUNDING


def test_tango_errs_up_to_6_24_percent_at_222_items_and_the_stated_size_is_the_enumerated_one(outcomes):
    every = outcomes(222)
    rejected = np.array(score(every.losses, every.gains, 222, -0.02) >= 1.6448536269514722)
    worst = max(every.probabilities(rate, -0.02)[rejected].sum() for rate in flip_rates(0.02, 400))
    assert worst == pytest.approx(0.0624, abs=1e-4)
    assert score_test_size(222, 0.02, ALPHA) == pytest.approx(worst, abs=3e-5)


def test_tango_is_close_to_its_alpha_where_it_decides():
    for n in (2001, 5000):
        assert ALPHA < score_test_size(n, 0.02, ALPHA) < 0.051


def test_the_exact_p_is_never_below_any_flip_rates_tail_and_not_far_above_the_largest(outcomes):
    random = np.random.default_rng(3)
    for n, margin in ((12, 0.2), (40, 0.1), (75, 0.04), (150, 0.02)):
        every = outcomes(n)
        z = score(every.losses, every.gains, n, -margin)
        grid = [every.probabilities(rate, -margin) for rate in flip_rates(margin, 150)]
        for _ in range(12):
            outcome = random.choice(np.flatnonzero(abs(z) < 3))
            tail = z >= z[outcome] - 1e-9
            worst = max(chance[tail].sum() for chance in grid)
            p = exact_p_value(int(every.losses[outcome]), int(every.gains[outcome]), n, -margin)
            assert worst - 1e-9 <= p <= worst + 3e-3


@pytest.mark.parametrize("rejecting", [True, False])
def test_the_limits_miss_the_truth_hardly_more_than_alpha_wherever_it_lies(outcomes, rejecting):
    n, margin = 30, 0.1
    every = outcomes(n)
    likely = every.losses + every.gains <= 12
    results = [
        noninferiority(int(b), int(c), n, margin)
        for b, c in zip(every.losses[likely], every.gains[likely], strict=True)
    ]
    lower, upper = np.array([r.lower for r in results]), np.array([r.upper for r in results])
    for difference in (-0.15, -0.1, -0.05, 0.0, 0.05):
        for rate in np.linspace(max(abs(difference), 0.02), 0.25, 8):
            chance = every.probabilities(rate, difference)[likely]
            unseen = 1 - chance.sum()
            missed = lower > difference if rejecting else upper < difference
            assert chance[missed].sum() <= 0.052 + unseen
    assert (lower < upper).all()


@pytest.mark.parametrize("flip_rate", [0.01, 0.03, 0.06])
def test_the_planned_size_gives_the_planned_power(outcomes, flip_rate):
    margin = 0.05
    n = sample_size(margin, flip_rate, ALPHA)
    every = outcomes(n)
    power = every.probabilities(flip_rate, 0.0)[rejected_by_exact_test(every, margin)].sum()
    assert 0.89 <= power <= 0.96
    assert passing_probability(n, margin, ALPHA, flip_rate) == pytest.approx(power, abs=1e-6)


def test_the_planning_table_delivers_its_power_at_two_points():
    table = planning_table(0.02, ALPHA)
    assert [row.flip_rate for row in table] == [0.01, 0.03, 0.06, 0.10]
    assert all(0.895 <= row.power <= 0.92 for row in table)
    assert [row.items for row in table] == sorted(row.items for row in table)


def test_a_baseline_against_itself_passes_and_a_variant_at_the_margin_seldom_does():
    random = np.random.default_rng(11)
    n, margin, flips = 2500, 0.02, 0.06
    same = random.multinomial(n, [flips / 2, flips / 2, 1 - flips], size=2000)
    at_margin = random.multinomial(n, [(flips + margin) / 2, (flips - margin) / 2, 1 - flips], size=2000)
    passes = [
        np.mean([noninferiority(int(b), int(c), n, margin).outcome == "pass" for b, c, _ in drawn])
        for drawn in (same, at_margin)
    ]
    assert passes[0] > 0.97
    assert 0.03 < passes[1] < 0.07
    assert np.mean([score_p_value(int(c), int(b), n, margin) <= ALPHA for b, c, _ in same]) < 0.001
