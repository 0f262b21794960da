"""The numbers of rows, by hand; queues below and above what a server can do; halves that differ."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from load_rows import failed, loop, queue, row

from quantize.benchmark.config import Slo
from quantize.benchmark.quantities import (
    POOLED,
    curve_point,
    drifted,
    percentiles,
    quantities,
    saturated,
    supported,
)


def test_every_quantity_is_what_its_definition_says():
    late = row(1, scheduled=1.0, dispatched=1.5, tokens=[2.0, 2.1, 2.4], end=2.5, **{"gen_ai.usage.output_tokens": 3})
    found = quantities([row(0, scheduled=0.0, ttft=0.5, gap=0.25, count=3), late], Slo(ttft=0.6))
    assert found["ttft_p50"] == pytest.approx((0.5 + 1.0) / 2)  # from the scheduled arrival, not from the dispatch
    assert found["tpot_p50"] == pytest.approx((0.25 + 0.25) / 2)  # (2.5 - 2.0) / 2, up to the end
    assert found["itl_p50"] == pytest.approx(0.25)  # of 0.25 0.25 0.1 0.3
    assert found["e2e_p50"] == pytest.approx((1.0 + 1.5) / 2)
    assert found["requests_per_second"] == pytest.approx(2 / 2.5)
    assert found["output_tokens_per_second"] == pytest.approx(6 / 2.5)
    assert found["goodput"] == pytest.approx(1 / 2.5)
    assert found["failures"] == 0


def test_each_limit_of_an_slo_is_held_against_its_own_time():
    rows = [row(0, ttft=0.2, gap=0.1, count=3)]  # TTFT 0.2, TPOT 0.1, E2E 0.4
    for kept in ({"ttft": 0.21}, {"tpot": 0.11}, {"e2e": 0.41}, {"ttft": 0.21, "tpot": 0.11, "e2e": 0.41}):
        assert quantities(rows, Slo(**kept))["goodput"] > 0
    for missed in ({"ttft": 0.19}, {"tpot": 0.09}, {"e2e": 0.39}, {"ttft": 1.0, "e2e": 0.39}):
        assert quantities(rows, Slo(**missed))["goodput"] == 0


def test_a_failed_request_has_no_time_and_counts_as_failed_and_against_goodput():
    good = [row(place, scheduled=float(place)) for place in range(3)]
    alone, beside = quantities(good, Slo(ttft=1)), quantities([*good, failed(3, 3.0, 60.0)], Slo(ttft=1))
    assert beside["failures"] == 0.25
    assert beside["ttft_p50"] == alone["ttft_p50"] and beside["e2e_p50"] == alone["e2e_p50"]
    assert beside["goodput"] == pytest.approx(3 / 60)  # the window goes on until it was given up
    assert beside["goodput"] < alone["goodput"] and beside["output_tokens_per_second"] == pytest.approx(15 / 60)


def test_a_load_of_failures_has_rates_of_zero_and_no_times():
    found = quantities([failed(0, 0.0, None), failed(1, 1.0, None)], Slo(e2e=1))
    assert found == {"requests_per_second": 0, "output_tokens_per_second": 0, "goodput": 0, "failures": 1}


def test_warm_up_requests_count_nowhere():
    rows = loop([0.01] * 8)
    before = [row(8, scheduled=-9.0, ttft=5.0, warmup=True), failed(9, -4.0, -3.0, warmup=True)]
    assert quantities([*before, *rows]) == quantities(rows)


def test_percentiles_lie_between_the_two_nearest_ranks():
    rows = [row(place, ttft=float(place)) for place in range(11)]
    assert percentiles(rows, 1)["ttft_p50"] == pytest.approx(5.0)
    assert percentiles(rows, 1)["ttft_p90"] == pytest.approx(9.0)
    assert percentiles(rows[:10], 1)["ttft_p90"] == pytest.approx(8.1)


@pytest.mark.parametrize(("percent", "least"), [(90, 100), (95, 200), (99, 1000)])
def test_a_percentile_needs_ten_requests_beyond_it(percent, least):
    assert supported(percent, least, POOLED) and not supported(percent, least - 1, POOLED)
    rows = [row(place) for place in range(least)]
    assert f"ttft_p{percent}" in percentiles(rows, POOLED)
    assert f"ttft_p{percent}" not in percentiles(rows[1:], POOLED)
    assert "ttft_p50" in percentiles(rows[:1], POOLED)


def test_a_point_of_a_curve_has_the_percentiles_that_it_supports():
    few, many = curve_point("baseline", 2, loop([0.01] * 16, streams=2)), curve_point("a", 4, loop([0.01] * 20))
    assert few.ttft_p95 is None and few.tpot_p50 == pytest.approx(0.01) and few.streams == 2
    assert many.ttft_p95 == pytest.approx(0.01) and many.requests_per_second == pytest.approx(20 / (20 * 0.05))
    dead = curve_point("a", 1, [failed(0, 0.0, 1.0)])
    assert (dead.requests, dead.failures, dead.requests_per_second, dead.ttft_p50) == (1, 1, 0, None)


@pytest.mark.parametrize("servers", [1, 4])
def test_a_queue_that_grows_is_told_from_one_that_does_not(servers):
    rng = random.Random(7)
    share = {
        load: sum(saturated(queue(rng, 64, load, servers)) for _ in range(300)) / 300 for load in (0.5, 0.7, 1.2, 1.5)
    }
    assert share[0.5] <= 0.02 and share[0.7] <= 0.1
    assert share[1.2] >= 0.85 and share[1.5] >= 0.98


def test_arrivals_at_even_intervals_leave_no_doubt():
    for gap, full in ((1.01, False), (1 / 1.2, True)):
        free, rows = 0.0, []
        for place in range(64):
            free = max(free, place * gap) + 1.0
            rows.append(row(place, place * gap, ttft=free - place * gap))
        assert saturated(rows) is full


def test_a_server_that_answers_many_at_a_time_is_not_saturated_by_being_used():
    rng = random.Random(3)
    assert sum(saturated(queue(rng, 64, 0.7, servers=16)) for _ in range(200)) <= 4
    assert not saturated(loop([0.01] * 64, streams=16))  # nor is a closed loop


def test_requests_that_were_never_answered_are_a_queue():
    rows = [row(place, float(place)) if place < 8 else failed(place, float(place), None) for place in range(32)]
    assert saturated(rows)


def test_halves_that_differ_by_more_than_the_drift_are_told_with_both_numbers():
    steady, slower = loop([0.010] * 8 + [0.0104] * 8), loop([0.010] * 8 + [0.0106] * 8)
    assert drifted(steady, 0.05) is None
    told = drifted(slower, 0.05)
    assert told is not None and "+6.0%" in told and "5.0%" in told
    assert drifted(loop([0.0106] * 8 + [0.010] * 8), 0.05) is not None  # faster is no better


def test_longer_prompts_in_one_half_are_no_drift():
    """Lengths in turn over ten requests: three of one kind in the first half, two in the second."""
    times = [0.010, 0.0106] * 5
    rows = [{**one, "gen_ai.usage.input_tokens": 64 * (1 + place % 2)} for place, one in enumerate(loop(times))]
    assert drifted(rows, 0.05) is None
    slower = [
        {**one, "gen_ai.usage.input_tokens": 64 * (1 + place % 2)}
        for place, one in enumerate(loop([t * (1.1 if n >= 5 else 1) for n, t in enumerate(times)]))
    ]
    assert drifted(slower, 0.05) is not None


def test_a_percentile_that_a_failed_request_decides_is_not_known():
    """Of 20, one may fail before p95 is unknown and nine before the median is; it never becomes a better number."""
    for lost in range(12):
        rows = [
            failed(p, float(p), p + 1.0) if p < lost else row(p, float(p), ttft=0.1 * (1 + p % 3)) for p in range(20)
        ]
        found = percentiles(rows, 1)
        assert ("ttft_p95" in found) is (lost == 0)
        assert ("ttft_p50" in found) is (lost <= 9)
        assert ("e2e_p90" in found) is (lost <= 1)


def test_failures_and_single_outliers_are_no_drift():
    rows = loop([0.01] * 7 + [0.5] + [0.01] * 7 + [0.3])
    assert drifted(rows, 0.05) is None
    assert drifted([failed(place, float(place), place + 1.0) for place in range(8)], 0.05) is None
    assert drifted(rows[:3], 0.05) is None


def test_the_end_of_a_closed_loop_where_fewer_are_under_way_is_no_drift():
    """The last of 4 streams' requests are answered faster, as the others stop: three quarters of the second half."""
    rows = loop([0.010] * 16, streams=4)
    rows[-4:] = [row(r["place"], r["scheduled"], ttft=0.01, gap=0.012 - 0.002 * i) for i, r in enumerate(rows[-4:], 1)]
    rows[-8:-4] = [row(r["place"], r["scheduled"], ttft=0.01, gap=0.01) for r in rows[-8:-4]]
    assert all(earlier["scheduled"] <= later["scheduled"] for earlier, later in pairwise(rows))
    assert drifted(rows, 0.01) is None
    assert drifted(loop([0.010] * 8 + [0.012] * 24, streams=4), 0.05) is not None
