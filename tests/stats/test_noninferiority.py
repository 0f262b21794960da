"""What the paired test promises: decision and interval agree, losses never help, nonsense is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from quantize.errors import QuantizeError
from quantize.stats import least_items, no_flips_p_value, noninferiority, passing_probability, sample_size
from quantize.stats.exact import critical_score, exact_p_value
from quantize.stats.tango import score


def random_cases(seed, count, largest):
    random = np.random.default_rng(seed)
    for _ in range(count):
        n = int(random.integers(1, largest))
        flips = random.beta(0.6, 3)
        losses, gains, _ = random.multinomial(n, [flips * (share := random.uniform()), flips * (1 - share), 1 - flips])
        yield int(losses), int(gains), n, float(random.choice([0.005, 0.02, 0.05, 0.15]))


def numerical_score(losses, gains, n, difference):
    """z with the restricted likelihood maximised numerically over the flip rate."""

    def surprise(flip_rate):
        rates = ((flip_rate - difference) / 2, (flip_rate + difference) / 2, 1 - flip_rate)
        counts = (losses, gains, n - losses - gains)
        return -sum(k * np.log(max(rate, 1e-300)) for k, rate in zip(counts, rates, strict=True) if k)

    flip_rate = minimize_scalar(surprise, bounds=(abs(difference), 1), method="bounded", options={"xatol": 1e-12}).x
    return (gains - losses - n * difference) / np.sqrt(n * (flip_rate - difference**2))


@pytest.mark.parametrize("difference", [-0.3, -0.05, -0.02, 0.02, 0.2])
def test_tangos_z_is_the_one_of_the_maximised_likelihood(difference):
    for losses, gains, n, _ in random_cases(1, 60, 400):
        expected = numerical_score(losses, gains, n, difference)
        assert float(score(losses, gains, n, difference)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_z_changes_sign_when_the_arms_are_exchanged():
    for losses, gains, n, margin in random_cases(2, 100, 900):
        there, back = score(losses, gains, n, -margin), score(gains, losses, n, margin)
        assert float(there) == pytest.approx(-float(back), abs=1e-9)


@pytest.mark.parametrize("difference", [-0.3, -0.02, 0.02])
@pytest.mark.parametrize("n", [7, 60, 222])
def test_a_loss_less_or_a_gain_more_never_lowers_z(n, difference):
    # The exact test's supremum over H0 lies on its boundary because of this.
    losses, gains = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    z = np.where(losses + gains <= n, score(losses, gains, n, difference), np.nan)
    assert np.nanmax(np.diff(z, axis=0)) <= 1e-9
    assert np.nanmin(np.diff(z, axis=1)) >= -1e-9


@pytest.mark.parametrize(("n", "margin"), [(45, 0.1), (150, 0.02), (400, 0.02), (2500, 0.02)])
def test_one_more_loss_never_helps_and_one_more_gain_never_hurts(n, margin):
    for losses in (0, 1, 4, 9):
        for gains in (0, 2, 7):
            here = noninferiority(losses, gains, n, margin)
            worse = noninferiority(losses + 1, gains, n, margin)
            better = noninferiority(losses, gains + 1, n, margin)
            assert better.p_value <= here.p_value + 2e-5
            assert here.p_value <= worse.p_value + 2e-5
            assert worse.lower <= here.lower + 2e-5
            assert here.lower <= better.lower + 2e-5


def agrees(result):
    assert (result.lower > -result.margin) == (result.p_value <= result.alpha)
    assert (result.outcome == "pass") == (result.lower > -result.margin)
    assert (result.outcome == "fail") == (result.upper < -result.margin)
    assert (result.needed is None) or result.outcome == "inconclusive"
    assert -1 <= result.lower <= result.difference <= result.upper <= 1


@pytest.mark.parametrize("alpha", [0.05, 0.0076])
def test_decision_and_interval_agree(alpha):
    for losses, gains, n, margin in random_cases(4, 60, 400):
        agrees(noninferiority(losses, gains, n, margin, alpha))
    for losses, gains, n, margin in random_cases(5, 200, 100_000):
        if n > 2000:
            agrees(noninferiority(losses, gains, n, margin, alpha))


@pytest.mark.parametrize("n", [149, 222, 400, 2400])
def test_decision_and_interval_agree_on_both_sides_of_the_edge(n):
    for gains in range(0, 12, 3):
        outcomes = []
        for losses in range(gains % 2, gains + n // 30, 2):
            result = noninferiority(losses, gains, n, 0.02)
            agrees(result)
            outcomes.append(result.outcome)
        assert outcomes[-1] != "pass"
        assert "pass" in outcomes or n == 149


def test_the_limit_is_where_the_decision_turns():
    for losses, gains, n in ((3, 2, 150), (12, 16, 300), (10, 3, 333), (60, 45, 2400)):
        lower = noninferiority(losses, gains, n, 0.03).lower
        assert noninferiority(losses, gains, n, -lower + 2e-4).outcome == "pass"
        assert noninferiority(losses, gains, n, -lower - 2e-4).outcome != "pass"


def test_exchanging_the_arms_mirrors_the_interval():
    for losses, gains, n in ((3, 2, 150), (12, 16, 300), (0, 5, 80), (60, 45, 2400)):
        there, back = noninferiority(losses, gains, n, 0.02), noninferiority(gains, losses, n, 0.02)
        assert there.lower == pytest.approx(-back.upper, abs=3e-5)
        assert there.upper == pytest.approx(-back.lower, abs=3e-5)


def test_more_losses_than_the_margin_fail_and_the_same_number_of_gains_pass():
    assert noninferiority(60, 5, 600, 0.02).outcome == "fail"
    assert noninferiority(5, 60, 600, 0.02).outcome == "pass"
    assert noninferiority(190, 40, 2600, 0.02).outcome == "fail"
    assert noninferiority(40, 190, 2600, 0.02).outcome == "pass"


@pytest.mark.parametrize(("n", "margin"), [(149, 0.02), (150, 0.02), (59, 0.05), (299, 0.01)])
def test_the_exact_p_without_flips_is_the_formula(n, margin):
    assert exact_p_value(0, 0, n, -margin) == pytest.approx(no_flips_p_value(n, margin), abs=1.1e-5)
    assert no_flips_p_value(n, margin) == pytest.approx((1 - margin) ** n)


def test_the_exact_p_without_flips_is_never_below_the_formula():
    for n in range(20, 420, 20):
        for margin in (0.02, 0.1):
            assert exact_p_value(0, 0, n, -margin) >= no_flips_p_value(n, margin)
    assert exact_p_value(0, 0, 300, -0.02) > 1.5 * no_flips_p_value(300, 0.02)


@pytest.mark.parametrize(("margin", "alpha"), [(0.02, 0.05), (0.05, 0.05), (0.02, 0.0076), (0.0013, 0.05)])
def test_the_least_items_pass_without_flips_and_one_fewer_does_not(margin, alpha):
    n = least_items(margin, alpha)
    assert noninferiority(0, 0, n, margin, alpha).outcome == "pass"
    if n != 2001:
        assert noninferiority(0, 0, n - 1, margin, alpha).outcome == "inconclusive"


def test_an_inconclusive_test_says_how_many_items_would_do():
    result = noninferiority(5, 4, 100, 0.05)
    assert result.outcome == "inconclusive"
    assert result.needed == sample_size(0.05, 0.09, 0.05) > 100
    assert passing_probability(result.needed, 0.05, 0.05, 0.09) > 0.89
    unflipped = noninferiority(0, 0, 100, 0.02)
    assert unflipped.needed == sample_size(0.02, 1 / 100, 0.05) >= least_items(0.02, 0.05)


def test_a_variant_observed_worse_needs_more_items_and_one_beyond_the_margin_no_number():
    worse = noninferiority(40, 18, 1500, 0.02)
    assert worse.outcome == "inconclusive"
    assert worse.needed is not None
    assert worse.needed > 1500 > sample_size(0.02, 58 / 1500, 0.05)
    beyond = noninferiority(120, 60, 2000, 0.02)
    assert beyond.outcome == "inconclusive"
    assert beyond.needed is None


def test_which_test_decides_is_named_and_changes_after_2000_items():
    assert noninferiority(60, 45, 2000, 0.02).method == "exact"
    assert noninferiority(60, 45, 2001, 0.02).method == "tango"


@pytest.mark.parametrize(("losses", "gains"), [(0, 40), (40, 0), (20, 20), (0, 0)])
@pytest.mark.parametrize("n", [40, 4000])
def test_extreme_counts_give_finite_ordered_limits(losses, gains, n):
    scale = n // 40
    result = noninferiority(losses * scale, gains * scale, n, 0.1)
    agrees(result)
    assert all(np.isfinite([result.lower, result.upper, result.p_value]))


def test_a_single_item_decides_nothing():
    assert noninferiority(0, 0, 1, 0.02).outcome == "inconclusive"
    assert noninferiority(1, 0, 1, 0.02).outcome == "inconclusive"


def test_the_critical_score_is_what_separates_passing_outcomes():
    critical = critical_score(150, 0.02, 0.05)
    for losses in range(4):
        for gains in range(8):
            passes = noninferiority(losses, gains, 150, 0.02).outcome == "pass"
            assert passes == (float(score(losses, gains, 150, -0.02)) >= critical - 1e-5)


def test_a_result_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        noninferiority(1, 1, 60, 0.05).outcome = "pass"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 10, 0.02, 0.05), "losses is -1"),
        ((0, -2, 10, 0.02, 0.05), "gains is -2"),
        ((0.5, 0, 10, 0.02, 0.05), "losses is 0.5"),
        ((float("nan"), 0, 10, 0.02, 0.05), "losses is nan"),
        ((0, 0, 0, 0.02, 0.05), "no items"),
        ((6, 5, 10, 0.02, 0.05), "more than the 10 items"),
        ((0, 0, 10, 0.0, 0.05), "margin is 0.0"),
        ((0, 0, 10, -0.02, 0.05), "margin is -0.02"),
        ((0, 0, 10, 1.0, 0.05), "margin is 1.0"),
        ((0, 0, 10, float("nan"), 0.05), "margin is nan"),
        ((0, 0, 10, 0.02, 0.0), "alpha is 0.0"),
        ((0, 0, 10, 0.02, 0.5), "alpha is 0.5"),
    ],
)
def test_nonsense_is_refused_with_its_name_and_a_mend(arguments, message):
    with pytest.raises(QuantizeError, match=message) as refusal:
        noninferiority(*arguments)
    assert refusal.value.fix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0.02, "flip_rate": 1.2, "alpha": 0.05}, "flip rate is 1.2"),
        ({"margin": 0.02, "flip_rate": -0.1, "alpha": 0.05}, "flip rate is -0.1"),
        ({"margin": 2.0, "flip_rate": 0.1, "alpha": 0.05}, "margin is 2.0"),
        ({"margin": 0.02, "flip_rate": 0.1, "alpha": 0.05, "power": 1.0}, "power is 1.0"),
        ({"margin": 0.02, "flip_rate": 0.1, "alpha": 0.05, "difference": -0.02}, "no number of items"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(QuantizeError, match=message):
        sample_size(**arguments)
