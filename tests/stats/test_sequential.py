"""The verdict of a growing sample: when it stops, what it then shows, and that p, limits and outcome are one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulation import Situation, equal, unequal

from quantize.errors import QuantizeError
from quantize.stats import (
    Pairs,
    betting_p_value,
    clustered_test,
    confidence_path,
    judge_pairs,
    look,
    mcnemar_p_value,
    noninferiority,
    sample_size,
)
from quantize.stats.sequential import FAIL_LEVEL

MARGIN, ALPHA = 0.05, 0.05


def binary(losses, gains, n, rest=(), *, seed=0):
    """Shuffled flips among ``n`` answered items; ``rest`` are the possible differences of those still to come."""
    differences = np.zeros(n)
    differences[:losses], differences[losses : losses + gains] = -1.0, 1.0
    possible = np.array(rest, dtype=float)
    order = np.random.default_rng(seed).permutation(n)
    return Pairs(differences[order], np.arange(n), possible, np.arange(n, n + len(possible)), binary=True)


def of_differences(differences, size=1, rest=0):
    d = np.asarray(differences, dtype=float)
    labels = np.arange(len(d) + rest) // size
    return Pairs(d, labels[: len(d)], np.full(rest, 0.5), labels[len(d) :], binary=False)


def consistent(test, early, choices):
    """Everything that a result promises about itself."""
    assert -1 <= test.lower <= test.upper <= 1
    assert 0 <= test.p_value <= 1
    if test.n == test.total:
        assert test.stopped is None
        assert (test.lower > -test.margin) == (test.p_value <= test.alpha) == (test.outcome == "pass")
        assert test.spent == (1 - early) * test.alpha
    else:
        assert (test.lower > -test.margin) == (test.stopped == "pass") == (test.outcome == "pass")
        assert (test.p_value <= test.alpha / choices) >= (test.stopped == "pass")
        assert test.spent == early * test.alpha / choices
        assert (test.stopped == "fail") == (test.outcome == "fail")
    assert (test.upper < -test.margin) == (test.outcome == "fail")
    assert test.needed is None or test.outcome == "inconclusive"


SITUATIONS = [
    Situation(equal(1, 160), 0.16, -0.08),
    Situation(equal(1, 160), 0.08, 0.0),
    Situation(equal(1, 160), 0.4, -0.3),
    Situation(equal(1, 160), 0.0, 0.0),
    Situation(equal(4, 60), 0.15, -0.05, uneven=0.5),
    Situation(equal(4, 60), 0.06, 0.05, uneven=0.5),
    Situation(unequal(80, 8), 0.3, -0.2, uneven=0.5),
    Situation(equal(1, 160), 0.1, -0.05, graded=True),
    Situation(equal(1, 160), 0.3, -0.3, graded=True),
]


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("early", [0.2, 0.0, 0.5])
def test_p_limits_and_outcome_are_one_at_every_look_and_at_the_end(situation, early):
    random = np.random.default_rng(1)
    for run in range(2):
        baseline = situation.baseline(random)
        answers = situation.answers(random, baseline)
        choices = 1 + run
        for end in [*situation.looks(40), None]:
            sample = situation.pairs(answers, baseline, end)
            test = judge_pairs(sample, MARGIN, ALPHA, early=early, choices=choices)
            consistent(test, early, choices)
            assert test.stopped == look(sample, MARGIN, ALPHA, early=early, choices=choices)
            sums = sample.sums()[0]
            assert test.clusters == len(sums)
            assert test.mcnemar == mcnemar_p_value(int((sums < 0).sum()), int((sums > 0).sum()))
            assert max(test.levels) <= max(ALPHA, FAIL_LEVEL)


def test_a_hopeless_variant_fails_after_the_first_look():
    sample = binary(25, 1, 60, rest=[1.0] * 940)
    test = judge_pairs(sample, MARGIN, ALPHA)
    assert (test.stopped, test.outcome, test.method) == ("fail", "fail", "betting")
    assert test.upper < -MARGIN
    assert test.n == 60
    assert test.total == 1000


def test_an_early_fail_needs_20_times_the_stake():
    words = []
    for losses in range(1, 16):
        sample = binary(losses, 0, 60, rest=[1.0] * 940)
        capital = 1 / betting_p_value(-sample.sums()[0], sample.sums()[1], 1, MARGIN)
        words.append((capital >= 20, look(sample, MARGIN, ALPHA) == "fail"))
    assert all(enough == failed for enough, failed in words)
    assert {failed for _, failed in words} == {True, False}


def test_a_clear_variant_passes_before_the_end_of_a_large_set():
    sample = binary(2, 12, 400, rest=[1.0] * 600)
    test = judge_pairs(sample, MARGIN, ALPHA)
    assert (test.stopped, test.outcome) == ("pass", "pass")
    assert test.lower > -MARGIN
    assert test.p_value == pytest.approx(betting_p_value(*sample.sums(), 1, -MARGIN) / 0.2)
    assert test.p_value <= ALPHA


def test_an_early_pass_among_several_variants_asks_for_more_so_that_holm_lets_it_stand():
    passes = [
        next(n for n in range(20, 2000, 10) if look(binary(0, 0, n, rest=[0.0]), MARGIN, ALPHA, choices=c) == "pass")
        for c in (1, 2, 8)
    ]
    assert passes[0] < passes[1] < passes[2]
    test = judge_pairs(binary(0, 0, passes[2], rest=[0.0]), MARGIN, ALPHA, choices=8)
    assert test.p_value <= ALPHA / 8


def test_what_even_perfect_answers_could_not_save_is_futile_not_failed():
    sample = binary(12, 2, 185, rest=[0.0] * 15)
    assert look(sample, MARGIN, ALPHA) == "futile"
    test = judge_pairs(sample, MARGIN, ALPHA)
    assert (test.stopped, test.outcome) == ("futile", "inconclusive")
    assert test.needed is None or test.needed > 200
    rescued = binary(12, 2, 185, rest=[1.0] * 15)
    assert look(rescued, MARGIN, ALPHA) is None
    assert judge_pairs(binary(12, 17, 200), MARGIN, ALPHA).outcome == "pass"


def test_futile_is_exactly_when_the_best_completion_does_not_pass():
    random = np.random.default_rng(2)
    seen = set()
    for _ in range(60):
        n, rest = int(random.integers(60, 150)), int(random.integers(1, 25))
        losses, gains = int(random.integers(2, 14)), int(random.integers(0, 6))
        possible = (random.random(rest) < 0.3).astype(float)
        said = look(binary(losses, gains, n, rest=possible), MARGIN, ALPHA)
        if said in ("pass", "fail"):
            continue
        parts = binary(losses, gains, n)
        best = Pairs(
            np.concatenate([parts.differences, possible]), np.arange(n + rest), np.zeros(0),
            np.zeros(0, dtype=np.int64), binary=True,
        )  # fmt: skip
        assert (said == "futile") == (judge_pairs(best, MARGIN, ALPHA).outcome != "pass")
        seen.add(said)
    assert seen == {"futile", None}


def test_clusters_stop_as_futile_only_where_no_completion_can_pass():
    losing = np.concatenate([np.full(20, -1.0), np.zeros(172)])
    order = np.random.default_rng(3).permutation(48)
    sample = of_differences(losing.reshape(48, 4)[order].ravel(), size=4, rest=8)
    assert look(sample, MARGIN, ALPHA) == "futile"
    assert look(of_differences(np.zeros(40), rest=8), MARGIN, ALPHA) == "futile", "too few clusters to pass at all"
    assert look(of_differences(np.zeros(40), rest=80), MARGIN, ALPHA) is None


def test_without_early_stopping_nothing_stops_and_all_of_alpha_is_left_for_the_end():
    for sample in (binary(40, 0, 60, rest=[0.0] * 10), binary(0, 0, 600, rest=[0.0] * 10)):
        assert look(sample, MARGIN, ALPHA, early=0.0) is None
        test = judge_pairs(sample, MARGIN, ALPHA, early=0.0)
        assert (test.outcome, test.stopped, test.p_value) == ("inconclusive", None, 1.0)
    test, fixed = judge_pairs(binary(9, 4, 200), MARGIN, ALPHA, early=0.0), noninferiority(9, 4, 200, MARGIN, ALPHA)
    assert (test.p_value, test.lower, test.upper) == (fixed.p_value, fixed.lower, fixed.upper)
    assert (test.outcome, test.method, test.needed) == (fixed.outcome, "exact", fixed.needed)


def test_at_the_end_alpha_is_split_between_the_way_and_the_whole():
    sample = binary(9, 4, 200)
    test, fixed = judge_pairs(sample, MARGIN, ALPHA), noninferiority(9, 4, 200, MARGIN, 0.8 * ALPHA)
    way = betting_p_value(*sample.sums(), 1, -MARGIN) / 0.2
    assert test.p_value == pytest.approx(min(way, fixed.p_value / 0.8))
    assert (test.lower, test.upper, test.spent) == (fixed.lower, fixed.upper, 0.8 * ALPHA)
    assert sample.n == test.total == 200


def test_a_way_that_passed_counts_even_where_the_whole_only_just_does_not():
    # 175 items without a flip, then losses: at the end the fixed test alone would not pass.
    sample = of_differences(np.concatenate([np.zeros(175), np.tile([-1.0] + [0.0] * 12, 23)]))
    fixed = clustered_test(*sample.sums(), MARGIN, 0.8 * ALPHA)
    test = judge_pairs(sample, MARGIN, ALPHA)
    assert not fixed.passes
    assert not fixed.fails
    assert test.outcome == "pass"
    consistent(test, 0.2, 1)


def test_a_way_that_contradicts_the_whole_set_is_left_out_and_it_is_said():
    sample = of_differences(np.concatenate([np.ones(60), np.full(400, -1.0), np.tile([-1.0, 1.0], 50)]))
    assert betting_p_value(*sample.sums(), 1, -MARGIN) / 0.2 <= ALPHA
    test = judge_pairs(sample, MARGIN, ALPHA)
    assert test.outcome == "fail"
    assert test.p_value > ALPHA
    assert any("contradict" in warning for warning in test.warnings)
    consistent(test, 0.2, 1)


def test_a_sample_read_midway_is_inconclusive_and_says_so():
    test = judge_pairs(binary(5, 3, 100, rest=[1.0] * 400), MARGIN, ALPHA)
    assert (test.outcome, test.stopped, test.method) == ("inconclusive", None, "betting")
    assert test.needed is not None
    assert test.needed > 100


def test_the_method_is_named():
    assert judge_pairs(binary(3, 2, 100), MARGIN, ALPHA).method == "exact"
    assert judge_pairs(binary(30, 20, 2100), MARGIN, ALPHA).method == "tango"
    assert judge_pairs(of_differences(np.tile([0.3, -0.3, 0.0], 60)), MARGIN, ALPHA).method == "bootstrap-t"
    assert judge_pairs(of_differences([0.3, -0.3] + [0.0] * 100), MARGIN, ALPHA).method == "betting"
    assert judge_pairs(of_differences(np.zeros(100)), MARGIN, ALPHA).method == "exact"


@pytest.mark.parametrize("situation", [s for s in SITUATIONS if s.flips == 0.0])
@pytest.mark.parametrize("n", [1, 10, 59, 130])
def test_a_baseline_measured_against_itself_never_fails_and_passes_when_there_are_enough(situation, n):
    random = np.random.default_rng(4)
    baseline = situation.baseline(random)
    for end in (n, None):
        sample = situation.pairs(situation.answers(random, baseline), baseline, end)
        for margin in (0.005, 0.02, 0.2):
            test = judge_pairs(sample, margin, ALPHA)
            assert test.outcome != "fail"
            assert test.difference == 0
            assert test.mcnemar == 1
    assert judge_pairs(situation.pairs(np.zeros(160), baseline), 0.05, ALPHA).outcome == "pass"
    clustered = of_differences(np.zeros(4 * 80), size=4)
    assert judge_pairs(clustered, 0.05, ALPHA).outcome == "pass"


def test_a_baseline_against_itself_with_noise_hardly_ever_fails():
    random = np.random.default_rng(5)
    noisy = Situation(equal(1, 120), 0.1, 0.0)
    outcomes = [judge_pairs(noisy.complete(random), MARGIN, ALPHA).outcome for _ in range(150)]
    assert "fail" not in outcomes


def test_the_needed_number_is_planned_at_the_alpha_that_the_end_has():
    test = judge_pairs(binary(9, 9, 150), MARGIN, ALPHA)
    assert test.outcome == "inconclusive"
    assert test.needed == sample_size(MARGIN, 18 / 150, 0.8 * ALPHA)
    attempt = judge_pairs(binary(9, 9, 150), MARGIN, ALPHA / 4)
    assert attempt.needed > test.needed


def test_clusters_that_move_together_need_more_items():
    scattered = np.tile([1.0, -1.0, 0.0, 0.0], 15)
    together = np.repeat(np.tile([1.0, -1.0, 0.0, 0.0], 4)[:15], 4)
    alone, grouped = (judge_pairs(of_differences(d, size=4), MARGIN, ALPHA) for d in (scattered * 0.9, together * 0.9))
    assert alone.outcome == grouped.outcome == "inconclusive"
    single = judge_pairs(of_differences(together * 0.9), MARGIN, ALPHA)
    assert grouped.needed > 3 * single.needed


def test_a_loss_beyond_the_margin_asks_for_no_number():
    for test in (
        judge_pairs(binary(170, 110, 2600), 0.02, ALPHA),
        judge_pairs(of_differences(np.tile([-0.6, 0.42, 0.0], 300)), MARGIN, ALPHA),
    ):
        assert test.outcome == "inconclusive"
        assert test.difference < -test.margin
        assert test.needed is None


def test_a_clear_set_shows_its_narrowing_path():
    points = confidence_path(binary(2, 12, 400, rest=[1.0] * 600), 0.01, 0.05)
    assert points[-1].items == 400
    assert [p.lower for p in points] == sorted(p.lower for p in points)
    assert [p.upper for p in points] == sorted((p.upper for p in points), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.0, 0.05), {}, "margin is 0.0"),
        ((-0.02, 0.05), {}, "margin is -0.02"),
        ((1.0, 0.05), {}, "margin is 1.0"),
        ((float("nan"), 0.05), {}, "margin is nan"),
        ((0.02, 0.0), {}, "alpha is 0.0"),
        ((0.02, 0.5), {}, "alpha is 0.5"),
        ((0.02, float("nan")), {}, "alpha is nan"),
        ((0.02, 0.05), {"early": -0.1}, "early pass is -0.1"),
        ((0.02, 0.05), {"early": 1.0}, "early pass is 1.0"),
        ((0.02, 0.05), {"choices": 0}, "choose among is 0"),
        ((0.02, 0.05), {"choices": 1.5}, "choose among is 1.5"),
    ],
)
def test_rules_that_mean_nothing_are_refused(arguments, options, message):
    for question in (look, judge_pairs):
        with pytest.raises(QuantizeError, match=message) as refusal:
            question(binary(1, 1, 60, rest=[0.0]), *arguments, **options)
        assert refusal.value.fix


def test_a_verdict_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        judge_pairs(binary(1, 1, 60), MARGIN, ALPHA).outcome = "pass"
