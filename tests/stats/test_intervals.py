"""Intervals cover what they say they cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantize.errors import QuantizeError
from quantize.stats import document_bootstrap, mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (142, 300), (1, 57), (299, 300)])
def test_wilsons_ends_are_the_shares_that_the_score_test_just_accepts(successes, n):
    interval = wilson_interval(successes, n)
    for end in (interval.lower, interval.upper):
        z = (successes / n - end) / np.sqrt(end * (1 - end) / n)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), rel=1e-9)
    assert interval.lower < interval.estimate < interval.upper


def test_wilson_stays_inside_0_and_1_and_is_not_empty_at_the_ends():
    none, all_of_them = wilson_interval(0, 20), wilson_interval(20, 20)
    assert none.lower == 0
    assert 0.1 < none.upper < 0.25
    assert all_of_them.upper == 1
    assert all_of_them.lower == pytest.approx(1 - none.upper)


def test_wilson_covers_on_average_what_it_claims():
    n, shares = 40, np.linspace(0.02, 0.98, 97)
    intervals = [wilson_interval(k, n) for k in range(n + 1)]
    covered = [
        sum(stats.binom.pmf(k, n, p) for k, i in enumerate(intervals) if i.lower <= p <= i.upper) for p in shares
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.88


def documents(random, count, spread=0.6):
    tokens = random.integers(50, 500, count).astype(float)
    return tokens * random.lognormal(0.0, spread, count), tokens


def test_the_document_bootstrap_covers_skewed_documents_better_than_percentiles_would():
    random = np.random.default_rng(0)
    truth, runs, covered, percentile = np.exp(0.5), 250, 0, 0
    for seed in range(runs):
        sums, counts = documents(random, 20, 1.0)
        interval = document_bootstrap(sums, counts, seed=seed, resamples=999)
        covered += interval.lower <= truth <= interval.upper
        drawn = np.random.default_rng(seed).multinomial(20, np.full(20, 1 / 20), size=999)
        low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
        percentile += low <= truth <= high
    assert covered / runs > 0.88
    assert covered > percentile + 0.02 * runs


def test_the_bootstrap_sees_documents_not_tokens():
    random = np.random.default_rng(1)
    sums, counts = documents(random, 60)
    once = document_bootstrap(sums, counts)
    longer = document_bootstrap(sums * 100, counts * 100)
    assert longer.upper - longer.lower == pytest.approx(once.upper - once.lower, rel=1e-6)
    more = document_bootstrap(np.tile(sums, 4), np.tile(counts, 4))
    assert (more.upper - more.lower) / (once.upper - once.lower) == pytest.approx(0.5, abs=0.06)


def test_the_bootstrap_agrees_with_the_normal_theory_on_many_plain_documents():
    random = np.random.default_rng(2)
    values = random.normal(2.0, 0.3, 400)
    interval = document_bootstrap(values, np.ones(400))
    reach = 1.96 * values.std(ddof=1) / 20
    assert interval.method == "bootstrap-t"
    assert interval.lower == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert interval.upper == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same():
    sums, counts = documents(np.random.default_rng(3), 50)
    first = document_bootstrap(sums, counts, seed=7)
    assert first == document_bootstrap(sums, counts, seed=7)
    other = document_bootstrap(sums, counts, seed=8)
    assert other != first
    assert other.upper == pytest.approx(first.upper, rel=0.05)


def test_the_bootstrap_shifts_with_the_values():
    sums, counts = documents(np.random.default_rng(4), 30)
    plain, shifted = document_bootstrap(sums, counts), document_bootstrap(sums + 0.7 * counts, counts)
    for end in ("estimate", "lower", "upper"):
        assert getattr(shifted, end) == pytest.approx(getattr(plain, end) + 0.7)


def test_few_documents_fall_back_to_students_t_and_say_so():
    values = np.array([1.0, 1.4, 0.7, 1.1])
    interval = document_bootstrap(values, np.ones(4))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (interval.method, interval.lower, interval.upper) == ("student-t", pytest.approx(low), pytest.approx(high))


def test_one_document_that_differs_among_many_still_gives_a_finite_interval():
    values = np.zeros(40)
    values[3] = 1.0
    interval = document_bootstrap(values, np.ones(40))
    assert interval.method == "student-t"
    assert np.isfinite([interval.lower, interval.upper]).all()
    assert interval.lower < interval.estimate < interval.upper


def test_equal_documents_give_an_interval_of_no_width():
    interval = document_bootstrap(np.full(20, 6.0), np.full(20, 3.0))
    assert (interval.lower, interval.estimate, interval.upper) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("sums", "counts", "message"),
    [
        ([1.0, 2.0], [1.0], "shape"),
        ([1.0], [1.0], "1 document"),
        ([1.0, float("nan")], [1.0, 1.0], "not finite"),
        ([1.0, 2.0], [1.0, 0.0], "no scored token"),
    ],
)
def test_documents_that_cannot_be_averaged_are_refused(sums, counts, message):
    with pytest.raises(QuantizeError, match=message):
        document_bootstrap(sums, counts)


def test_a_confidence_that_is_no_share_is_refused():
    with pytest.raises(QuantizeError, match="confidence is 95"):
        wilson_interval(3, 10, confidence=95)


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (5, 0), (0, 5), (9, 4), (31, 30)])
def test_mcnemars_p_is_the_sign_tests(losses, gains):
    expected = stats.binomtest(losses, losses + gains, alternative="greater").pvalue if losses + gains else 1.0
    assert mcnemar_p_value(losses, gains) == pytest.approx(expected)
