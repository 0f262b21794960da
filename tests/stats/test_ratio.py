"""Times and failures over blocks: limits that err as often as they say, checked where the null ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from quantize.errors import DataError, QuantizeError
from quantize.stats import (
    blocks_for,
    blocks_needed,
    difference_limits,
    equivalent,
    ratio_interval,
    requests_needed,
    share_limits,
)

ALPHA, MARGIN = 0.05, 0.05
RUNS = 4000
# Four standard errors of a rate of 5 % in that many runs.
SLACK = 4 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


def logs(blocks, *, ratio=1.0, spread=0.03, runs=RUNS, seed=0):
    return math.log(ratio) + spread * np.random.default_rng(seed).normal(size=(runs, blocks))


def test_the_limits_are_those_of_the_t_test_on_the_logarithms():
    values = logs(8, ratio=1.2, runs=1)[0]
    found = ratio_interval(values, ALPHA)
    for limit, alternative in ((found.lower, "greater"), (found.upper, "less")):
        p_value = stats.ttest_1samp(values, math.log(limit), alternative=alternative).pvalue
        assert p_value == pytest.approx(ALPHA)
    assert found.lower < found.ratio < found.upper
    assert found.ratio == pytest.approx(stats.gmean(np.exp(values)))
    assert found.n == 8


def test_a_slower_variant_has_a_ratio_above_one_and_swapped_arms_its_inverse():
    values = logs(10, ratio=1.3, runs=1)[0]
    found, swapped = ratio_interval(values, ALPHA), ratio_interval(-values, ALPHA)
    assert found.lower > 1.2
    assert (swapped.ratio, swapped.lower, swapped.upper) == pytest.approx(
        (1 / found.ratio, 1 / found.upper, 1 / found.lower)
    )


@pytest.mark.parametrize("blocks", [6, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_a_ratio_at_the_margin_is_passed_and_failed_alpha_of_the_time(blocks, alpha):
    """The mutation "s instead of s/sqrt(n)" passes none of them, and the opposite sign of t nearly all."""
    found = [ratio_interval(row, alpha) for row in logs(blocks, ratio=1 + MARGIN)]
    passed = np.mean([f.upper <= 1 + MARGIN for f in found])
    failed = np.mean([f.lower > 1 + MARGIN for f in found])
    assert passed == pytest.approx(alpha, abs=SLACK)
    assert failed == pytest.approx(alpha, abs=SLACK)


@pytest.mark.parametrize("blocks", [6, 10])
def test_heavy_tails_and_skew_of_both_arms_alike_do_not_raise_the_error(blocks):
    random = np.random.default_rng(1)
    both = random.exponential(size=(RUNS, blocks)) - random.exponential(size=(RUNS, blocks))
    for noise in (random.standard_t(3, (RUNS, blocks)), both):
        found = [ratio_interval(row, ALPHA) for row in math.log1p(MARGIN) + 0.03 * noise]
        assert np.mean([f.upper <= 1 + MARGIN for f in found]) <= ALPHA + SLACK


@pytest.mark.parametrize("ratio", [1 + MARGIN, 1 / (1 + MARGIN)])
def test_a_baseline_that_differs_from_itself_by_the_margin_is_called_quiet_alpha_of_the_time(ratio):
    called = np.mean([equivalent(row, MARGIN, ALPHA) for row in logs(8, ratio=ratio)])
    assert called == pytest.approx(ALPHA, abs=SLACK)


def test_equivalent_needs_the_whole_interval_on_both_sides():
    tight = np.array([0.001, -0.001] * 4)
    assert equivalent(tight, MARGIN, ALPHA)
    assert not equivalent(tight + math.log(1.06), MARGIN, ALPHA)
    assert not equivalent(tight - math.log(1.06), MARGIN, ALPHA)
    assert not equivalent(50 * tight, 0.02, ALPHA), "a mean of 1 that scatters widely shows nothing"


@pytest.mark.parametrize(("values", "reason"), [([0.1], "1 block"), ([], "0 blocks"), ([0.1, math.nan], "finite")])
def test_too_few_or_unusable_blocks_are_refused(values, reason):
    with pytest.raises(DataError, match=reason):
        ratio_interval(values, ALPHA)


def test_without_a_failure_in_any_block_the_limit_is_not_zero():
    found = difference_limits([0.0] * 10, ALPHA, (0, 0), 640)
    assert found.upper == pytest.approx(1 - ALPHA ** (1 / 640))
    assert found.lower == pytest.approx(-found.upper)
    assert found.difference == 0


def test_the_exact_limits_of_a_share_are_where_the_binomial_tail_is_alpha():
    for count, n in ((1, 20), (7, 40), (39, 40)):
        lower, upper = share_limits(count, n, ALPHA)
        assert stats.binom.sf(count - 1, n, lower) == pytest.approx(ALPHA)
        assert stats.binom.cdf(count, n, upper) == pytest.approx(ALPHA)
    assert share_limits(0, 20, ALPHA)[0] == 0.0
    assert share_limits(20, 20, ALPHA)[1] == 1.0


@pytest.mark.parametrize(("share", "requests"), [(0.0, 64), (0.002, 64), (0.02, 64)])
def test_a_variant_that_fails_more_often_by_the_margin_passes_at_most_alpha_of_the_time(share, requests):
    """The t limit over blocks alone passes 17 % of those whose baseline never fails."""
    margin, runs, random = 0.005, 1500, np.random.default_rng(2)
    baseline = random.binomial(requests, share, (runs, 10))
    variant = random.binomial(requests, share + margin, (runs, 10))
    passed = [
        difference_limits((v - b) / requests, ALPHA, (b.sum(), v.sum()), 10 * requests).upper <= margin
        for b, v in zip(baseline, variant, strict=True)
    ]
    assert np.mean(passed) <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_failures_in_clusters_widen_the_limits_and_swapped_arms_mirror_them():
    even = difference_limits([0.01] * 10, ALPHA, (0, 64), 6400)
    crowded = difference_limits([0.1] + [0.0] * 9, ALPHA, (0, 64), 6400)
    assert crowded.upper > even.upper > even.difference > even.lower > 0 > crowded.lower
    swapped = difference_limits([-0.1] + [0.0] * 9, ALPHA, (64, 0), 6400)
    assert (swapped.lower, swapped.upper) == pytest.approx((-crowded.upper, -crowded.lower))


def test_requests_needed_are_the_fewest_that_show_the_margin_without_a_failure():
    n = requests_needed(0.005, ALPHA)
    assert n == 598
    assert share_limits(0, n, ALPHA)[1] <= 0.005 < share_limits(0, n - 1, ALPHA)[1]


@pytest.mark.parametrize("spread", [0.03, 0.06])
def test_the_blocks_needed_show_a_ratio_of_one_nine_times_in_ten_and_one_fewer_do_not(spread):
    n = blocks_needed(spread, MARGIN, ALPHA)
    assert n is not None
    rates = [
        np.mean([ratio_interval(row, ALPHA).upper <= 1 + MARGIN for row in logs(count, spread=spread)])
        for count in (n, n - 1)
    ]
    slack = 3 * math.sqrt(0.9 * 0.1 / RUNS)
    assert rates[0] >= 0.9 - slack
    assert rates[1] <= 0.9 + slack


def test_the_blocks_needed_rise_with_spread_and_there_are_none_beyond_the_margin():
    counts = [blocks_needed(spread, MARGIN, ALPHA) for spread in (0.0, 0.02, 0.05, 0.2, 1.0)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 5
    assert blocks_needed(0.03, MARGIN, ALPHA, ratio=1.06) is None
    assert blocks_needed(0.03, MARGIN, ALPHA, ratio=1.03) > blocks_needed(0.03, MARGIN, ALPHA)
    assert blocks_for(1e-9, 1.0, ALPHA) is None
    assert blocks_for(100.0, 1.0, ALPHA) == 2


@pytest.mark.parametrize("call", [
    lambda: ratio_interval([0.1, 0.2], 0.6),
    lambda: equivalent([0.1, 0.2], 0.0, ALPHA),
    lambda: requests_needed(1.0, ALPHA),
    lambda: difference_limits([0.0, 0.0], ALPHA, (0, 5), 4),
    lambda: difference_limits([0.0, 0.0], ALPHA, (0, 0), 0),
])  # fmt: skip
def test_what_means_nothing_is_refused(call):
    with pytest.raises(QuantizeError):
        call()
