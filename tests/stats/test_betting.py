"""Bets on bounded differences: fair at every cluster under H0, and their inversion covers the truth at every look."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from quantize.stats import betting_lower_limit, betting_p_value, log_capital
from quantize.stats.betting import BETS

MARGIN = 0.1


def every_path(values, items):
    """All sequences of ``items`` differences out of ``values``, and the place of each value in them."""
    places = np.array(list(itertools.product(range(len(values)), repeat=items)))
    return np.asarray(values)[places], places


def multiplied_out(sums, sizes, largest, difference):
    """K+ as the plain product of its definition."""
    capital = []
    for j in range(1, BETS + 1):
        stake = j / ((BETS + 1) * (1 + difference))
        capital.append(math.prod(1 + stake * (s - m * difference) / largest for s, m in zip(sums, sizes, strict=True)))
    return sum(capital) / BETS


def random_clusters(seed, count=40):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 6, count).astype(float)
    return np.array([random.uniform(-1, 1, int(m)).sum() for m in sizes]), sizes


@pytest.mark.parametrize("difference", [-0.7, -0.05, 0.0, 0.4])
def test_the_capital_is_the_mean_of_the_products(difference):
    sums, sizes = random_clusters(0)
    path = log_capital(sums, sizes, 5, difference)
    for end in (1, 7, 40):
        expected = multiplied_out(sums[:end], sizes[:end], 5, difference)
        assert math.exp(path[end - 1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "chances"),
    [
        ([-1.0, 0.0, 1.0], [0.1, 0.9, 0.0]),  # losses alone
        ([-1.0, 0.0, 1.0], [0.2, 0.7, 0.1]),
        ([-1.0, 0.0, 1.0], [0.55, 0.0, 0.45]),
        ([-0.5, 0.0, 0.25], [0.25, 0.65, 0.1]),
    ],
)
def test_at_the_margin_the_capital_is_fair_and_reaches_1_over_a_at_most_a_of_the_time(values, chances):
    # Enumerated: every path of 9 items, with its probability.
    assert np.dot(values, chances) == pytest.approx(-MARGIN)
    differences, places = every_path(values, 9)
    probability = np.asarray(chances)[places].prod(axis=1)
    path = log_capital(differences, np.ones(9), 1.0, -MARGIN)
    assert probability @ np.exp(path) == pytest.approx(np.ones(9))
    mirrored = log_capital(-differences, np.ones(9), 1.0, MARGIN)
    assert probability @ np.exp(mirrored) == pytest.approx(np.ones(9))
    for level in (0.5, 0.3, 0.1, 0.05):
        for capital in (path, mirrored):
            assert probability[capital.max(axis=1) >= -math.log(level)].sum() <= level


def test_below_the_margin_the_capital_shrinks_and_above_it_grows():
    differences, places = every_path([-1.0, 0.0, 1.0], 8)
    for chances, shrinks in (([0.3, 0.65, 0.05], True), ([0.05, 0.9, 0.05], False)):
        probability = np.asarray(chances)[places].prod(axis=1)
        expected = probability @ np.exp(log_capital(differences, np.ones(8), 1.0, -MARGIN))
        assert (np.diff(expected) < 0).all() == shrinks
        assert (expected < 1).all() == shrinks


def test_many_experiments_at_once_give_what_each_gives_alone():
    random = np.random.default_rng(1)
    sums = random.uniform(-2, 2, (4, 3, 25))
    together = log_capital(sums, np.full(25, 2.0), 4.0, -0.03)
    assert together.shape == (4, 3, 25)
    assert together[2, 1] == pytest.approx(log_capital(sums[2, 1], np.full(25, 2.0), 4.0, -0.03))


def test_capital_falls_in_the_difference_so_that_the_limits_leave_an_interval():
    for seed in range(10):
        sums, sizes = random_clusters(seed)
        greatest = [betting_p_value(sums, sizes, 5, d) for d in np.linspace(-0.99, 0.99, 80)]
        assert (np.diff(greatest) >= -1e-12).all()


@pytest.mark.parametrize("level", [0.2, 0.05, 0.001])
def test_the_limit_is_where_the_test_turns(level):
    for seed in range(10):
        sums, sizes = random_clusters(seed, 150)
        limit = betting_lower_limit(sums, sizes, 5, level)
        assert betting_p_value(sums, sizes, 5, limit) <= level < betting_p_value(sums, sizes, 5, limit + 1e-4)
        mirrored = -betting_lower_limit(-sums, sizes, 5, level)
        assert limit < mirrored


def test_a_larger_possible_cluster_makes_every_bet_smaller():
    sums, sizes = np.full(60, 1.0), np.full(60, 2.0)
    p_values = [betting_p_value(sums, sizes, largest, -MARGIN) for largest in (2, 4, 20)]
    assert p_values == sorted(p_values)
    assert p_values[0] < 0.01 * p_values[2]


def test_extremes_give_finite_limits():
    ones = np.ones(50)
    assert betting_lower_limit(-ones, ones, 1.0, 0.05) == -1.0
    assert 0.7 < betting_lower_limit(ones, ones, 1.0, 0.05) < 1.0
    assert betting_p_value(-ones, ones, 1.0, -0.02) == 1.0
    assert -1.0 <= betting_lower_limit(np.zeros(1), np.ones(1), 1.0, 0.01) < -0.9


@pytest.mark.parametrize("flips", [(0.02, 0.0), (0.06, 0.04), (0.3, 0.2)])
def test_the_sequence_covers_the_truth_at_every_look_at_once(flips):
    random = np.random.default_rng(5)
    truth = flips[1] - flips[0]
    draw = random.random((2000, 400))
    differences = np.where(draw < flips[0], -1.0, np.where(draw < sum(flips), 1.0, 0.0))
    above = log_capital(differences, np.ones(400), 1.0, truth).max(axis=1) >= -math.log(0.05)
    below = log_capital(-differences, np.ones(400), 1.0, -truth).max(axis=1) >= -math.log(0.05)
    bar = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert above.mean() <= bar
    assert below.mean() <= bar
    for row in np.flatnonzero(above)[:5]:
        assert betting_lower_limit(differences[row], np.ones(400), 1.0, 0.05) >= truth - 1e-4
