"""Many chances, one error rate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from quantize.errors import QuantizeError
from quantize.stats import attempt_alpha, holm, least_clusters, spent_alpha


def test_all_attempts_together_spend_alpha_and_the_first_spends_most():
    levels = [attempt_alpha(0.05, k) for k in range(1, 20_001)]
    assert levels == sorted(levels, reverse=True)
    assert 0.04999 < sum(levels) < 0.05
    assert levels[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert levels[2] == pytest.approx(levels[0] / 9)


@pytest.mark.parametrize("attempt", [0, -1, 1.5, True])
def test_an_attempt_that_is_no_count_is_refused(attempt):
    with pytest.raises(QuantizeError, match="attempt is"):
        attempt_alpha(0.05, attempt)


def test_the_plan_uses_the_alpha_that_the_last_test_has():
    assert spent_alpha(0.05) == pytest.approx(0.8 * attempt_alpha(0.05, 1))
    assert spent_alpha(0.05, attempt=3, early=0.0) == attempt_alpha(0.05, 3)
    with pytest.raises(QuantizeError, match=r"share of alpha .* 1\.0"):
        spent_alpha(0.05, early=1.0)


def closed(ratios):
    """Holm as a closed test: rejected when every set of hypotheses that holds it is, by Bonferroni."""
    places = range(len(ratios))
    sets = [s for size in range(1, len(ratios) + 1) for s in itertools.combinations(places, size)]
    return [all(any(ratios[i] * len(s) <= 1 for i in s) for s in sets if place in s) for place in places]


def test_holm_rejects_what_the_closed_test_rejects():
    random = np.random.default_rng(0)
    for _ in range(500):
        ratios = random.choice([0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.2, 5.0], random.integers(1, 6)).tolist()
        assert holm(ratios) == closed(ratios)


def test_equal_ratios_share_one_answer_and_the_order_does_not_matter():
    assert holm([0.5, 0.5]) == [True, True]
    assert holm([0.6, 0.6]) == [False, False]
    assert holm([0.9, 0.3]) == holm([0.3, 0.9])[::-1] == [True, True]
    assert holm([1.0]) == [True]
    assert holm([]) == []


def test_what_could_not_be_judged_never_passes_but_counts():
    assert holm([math.nan, 0.5]) == [False, True]
    assert holm([math.nan, 0.6]) == [False, False]
    assert holm([math.nan, math.nan]) == [False, False]
    assert holm([math.inf, 0.1]) == [False, True]
    assert holm([0.3, math.nan, 0.4]) == [True, False, True]


def test_a_negative_ratio_is_refused():
    with pytest.raises(QuantizeError, match="negative"):
        holm([0.2, -0.1])


def test_no_mix_of_true_and_false_hypotheses_errs_beyond_alpha():
    random = np.random.default_rng(2)
    alpha, runs = 0.05, 4000
    for true, false in ((4, 0), (2, 2), (1, 3)):
        wrong = 0
        for _ in range(runs):
            p_values = np.concatenate([random.random(true), random.random(false) ** 6])
            wrong += any(holm((p_values / alpha).tolist())[:true])
        assert wrong / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("mean", "largest"), [(1.0, 1.0), (4.0, 4.0), (3.0, 10.0)])
def test_the_least_clusters_suffice_without_any_difference_and_one_fewer_does_not(mean, largest):
    least = least_clusters(0.05, 0.04, mean, largest)
    chance = [(1 - 0.05 * mean / largest) ** groups for groups in (least - 1, least)]
    assert chance[1] <= 0.04 < chance[0]
    with pytest.raises(QuantizeError, match="on average"):
        least_clusters(0.05, 0.04, largest + 1, largest)
