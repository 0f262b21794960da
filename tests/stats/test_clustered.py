"""A fixed sample of clusters or graded scores: the error is held at the margin, and p and limits say one thing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulation import Situation, equal, unequal

from quantize.stats import clustered_no_flips_p_value, clustered_test, noninferiority
from quantize.stats.betting import betting_p_value
from quantize.stats.clustered import (
    LEAST_DIFFERING,
    Draws,
    bootstrap_p_value,
    draws,
    effective_differing,
    enough_differ,
)
from quantize.stats.intervals import studentized

LEVEL = 0.05


def shares(situation, margin, runs, seed):
    """Share of sets that pass, and that an analysis of the items as if independent would pass."""
    random = np.random.default_rng(seed)
    passed = naive = 0
    for run in range(runs):
        sample = situation.complete(random)
        sums, sizes = sample.sums()
        passed += clustered_test(sums, sizes, margin, LEVEL, seed=run).passes
        d = sample.differences
        error = d.std(ddof=1) / math.sqrt(len(d))
        naive += error > 0 and (d.mean() + margin) / error >= 1.6449
    return passed / runs, naive / runs


@pytest.mark.parametrize(
    ("situation", "margin"),
    [
        (Situation(equal(4, 100), 0.15, -0.05, uneven=0.2), 0.05),
        (Situation(equal(4, 100), 0.05, -0.05, uneven=0.5), 0.05),  # losses alone
        (Situation(equal(10, 120), 0.15, -0.05, uneven=0.2), 0.05),
        (Situation(unequal(250, 8), 0.12, -0.05, uneven=0.2), 0.05),
        (Situation(unequal(250, 8), 0.05, -0.05, uneven=0.5), 0.05),  # losses alone
        (Situation(equal(1, 300), 0.2, -0.05, graded=True), 0.05),
        (Situation(equal(1, 300), 0.02, -0.02, graded=True), 0.02),
    ],
)
def test_a_variant_at_the_margin_passes_at_most_alpha_of_the_time(situation, margin):
    runs = 400
    passed, _ = shares(situation, margin, runs, seed=1)
    assert passed <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / runs)


def test_items_of_one_cluster_counted_as_independent_would_pass_far_too_often():
    situation = Situation(equal(12, 120), 0.15, -0.05, uneven=0.2)
    passed, naive = shares(situation, 0.05, 400, seed=2)
    assert naive > 0.12
    assert passed <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 400)


def test_without_a_difference_enough_clusters_pass():
    situation = Situation(equal(4, 200), 0.06, 0.0, uneven=0.5)
    passed, _ = shares(situation, 0.05, 200, seed=3)
    assert passed > 0.9


def random_sets(seed, count):
    random = np.random.default_rng(seed)
    for _ in range(count):
        groups = int(random.integers(8, 120))
        sizes = random.integers(1, int(random.integers(2, 8)), groups).astype(float)
        shift = random.uniform(-0.2, 0.1)
        sums = np.clip(np.round(random.normal(shift, random.uniform(0.05, 0.6), groups) * sizes), -sizes, sizes)
        yield sums, sizes, float(random.choice([0.02, 0.05, 0.15])), float(random.choice([0.05, 0.04, 0.01, 0.0003]))


def test_p_and_limits_agree_whatever_the_test():
    methods = set()
    for seed, (sums, sizes, margin, level) in enumerate(random_sets(4, 150)):
        test = clustered_test(sums, sizes, margin, level, seed=seed)
        methods.add(test.method)
        assert (test.lower > -margin) == test.passes == (test.p_value <= level)
        assert (test.upper < -margin) == test.fails
        assert -1 <= test.lower <= test.upper <= 1
        assert not (test.passes and test.fails)
    assert methods == {"exact", "betting", "bootstrap-t"}


def test_the_limit_is_the_margin_that_would_just_not_pass():
    sums, sizes, *_ = next(s for s in random_sets(5, 50) if enough_differ(s[0]) and len(s[0]) > 60)
    drawn = draws(sums, sizes, 0)
    limit = clustered_test(sums, sizes, 0.3, LEVEL).lower
    assert bootstrap_p_value(drawn, limit - 1e-9) <= LEVEL < bootstrap_p_value(drawn, limit + 1e-6)


def test_a_resample_as_extreme_as_what_was_seen_counts():
    drawn = Draws(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), estimate=0.1, error=0.1)
    assert bootstrap_p_value(drawn, 0.0) == pytest.approx(3 / 6)
    assert bootstrap_p_value(drawn, -0.3) == pytest.approx(1 / 6)


def test_the_mirrored_set_has_mirrored_limits():
    situation = Situation(equal(3, 200), 0.2, 0.02, uneven=0.5)
    sums, sizes = situation.complete(np.random.default_rng(6)).sums()
    there, back = clustered_test(sums, sizes, 0.05, LEVEL), clustered_test(-sums, sizes, 0.05, LEVEL)
    assert there.method == "bootstrap-t"
    width = there.upper - there.lower
    assert there.lower == pytest.approx(-back.upper, abs=0.05 * width)
    assert there.upper == pytest.approx(-back.lower, abs=0.05 * width)


def test_clusters_of_one_item_give_nearly_the_limits_of_the_exact_test():
    differences = np.concatenate([np.full(60, -1.0), np.full(50, 1.0), np.zeros(890)])
    test = clustered_test(differences, np.ones(1000), 0.05, LEVEL)
    exact = noninferiority(60, 50, 1000, 0.05)
    assert test.method == "bootstrap-t"
    assert test.lower == pytest.approx(exact.lower, abs=1e-3)
    assert test.upper == pytest.approx(exact.upper, abs=1e-3)


def test_drawing_kinds_of_clusters_has_the_distribution_of_drawing_clusters():
    values, times = np.array([-1.3, -0.2, 0.1, 1.0]), np.array([4, 30, 60, 6])
    sizes = np.array([2.0, 1.0, 1.0, 3.0])
    grouped = studentized(values, sizes, 0, 9999, times)
    single = studentized(np.repeat(values, times), np.repeat(sizes, times), 1, 9999)
    for share in (0.01, 0.05, 0.5, 0.95, 0.99):
        assert np.quantile(grouped, share) == pytest.approx(np.quantile(single, share), abs=0.12)


def test_few_clusters_that_differ_are_left_to_the_bet_and_it_is_said():
    sums, sizes = np.zeros(400), np.full(400, 2.0)
    sums[:: 400 // (LEAST_DIFFERING - 1)] = -1.0
    sums[np.flatnonzero(sums)[LEAST_DIFFERING - 1 :]] = 0.0
    few = clustered_test(sums, sizes, 0.05, LEVEL)
    assert few.method == "betting"
    assert few.p_value == betting_p_value(sums, sizes, 2.0, -0.05)
    assert any("too few clusters" in warning for warning in few.warnings)
    sums[1] = -1.0
    assert clustered_test(sums, sizes, 0.05, LEVEL).method == "bootstrap-t"


def test_one_huge_loss_among_small_noise_is_not_taken_for_many_differences():
    sums = np.tile([0.02, -0.02], 100)
    assert effective_differing(sums) == pytest.approx(200)
    sums[3] = -1.0
    assert effective_differing(sums) < 2
    assert clustered_test(sums, np.ones(200), 0.05, LEVEL).method == "betting"


def test_equal_differences_everywhere_have_nothing_to_resample():
    test = clustered_test(np.full(100, -0.01), np.ones(100), 0.02, LEVEL)
    assert test.method == "betting"
    assert test.lower < -0.01 < test.upper


@pytest.mark.parametrize(("sizes", "mean", "largest"), [(np.full(80, 3.0), 3, 3), (np.array([1.0, 5.0] * 60), 3, 5)])
def test_without_a_difference_the_closed_form_decides(sizes, mean, largest):
    test = clustered_test(np.zeros(len(sizes)), sizes, 0.05, LEVEL)
    assert test.method == "exact"
    assert test.p_value == pytest.approx((1 - 0.05 * mean / largest) ** len(sizes))
    assert clustered_no_flips_p_value(len(sizes), -test.lower, mean, largest) == pytest.approx(LEVEL)
    assert test.upper == -test.lower


def test_a_set_too_small_to_pass_without_a_difference_does_not_pass_with_some():
    sums = np.tile([0.4, 0.5, 0.6], 16)
    test = clustered_test(sums, np.ones(48), 0.05, LEVEL)
    assert test.method == "bootstrap-t"
    assert test.p_value == pytest.approx(0.95**48)
    assert not test.passes
    assert test.lower <= -0.05


@pytest.mark.parametrize(("groups", "warned"), [(49, True), (50, False)])
def test_below_50_clusters_a_warning_is_given(groups, warned):
    sums = np.tile([1.0, -1.0], 25)[:groups]
    warnings = clustered_test(sums, np.full(groups, 4.0), 0.3, LEVEL).warnings
    assert any("below 50" in warning for warning in warnings) == warned


def test_a_level_that_the_resamples_hardly_resolve_is_said_and_one_beyond_them_never_passes():
    sums = np.tile([0.5, 0.5, 0.5, -0.5], 200)
    fine = clustered_test(sums, np.ones(800), 0.05, 0.0005)
    assert fine.passes
    assert any("resamples" in warning for warning in fine.warnings)
    beyond = clustered_test(sums, np.ones(800), 0.05, 0.00005)
    assert not beyond.passes
    assert beyond.lower == -1.0


def test_the_seed_decides_and_nothing_else():
    sums = np.random.default_rng(8).normal(0, 0.3, 90).clip(-1, 1)
    one, again = (clustered_test(sums, np.ones(90), 0.05, LEVEL, seed=3) for _ in range(2))
    assert one == again
    other = clustered_test(sums, np.ones(90), 0.05, LEVEL, seed=4)
    assert other.p_value == pytest.approx(one.p_value, abs=0.02)
    assert other != one
