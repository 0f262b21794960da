"""Capacity: the arithmetic by hand, and the verb on a run whose curves are in the store."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from click.testing import CliRunner, Result
from program import command
from report_load import TPOT, block, closed, keep, loaded, ratio, recipe, run_of, write_run

from quantize.capacity import Demand, Point, Rate, capacity
from quantize.cli import cli
from quantize.errors import QuantizeError, StoreError, UsageError
from quantize.store import Store

SLO = {"ttft": 0.35, "tpot": 0.05}
PRICE = {"per_device_hour": 2.5, "currency": "EUR"}


def point(streams: int, rate: float, ttft: float, failures: int = 0, **times: float) -> Point:
    return Point(
        streams=streams,
        requests=20,
        requests_per_second=rate,
        output_tokens_per_second=32 * rate,
        failures=failures,
        times={"ttft_p95": ttft, **times},
    )


CURVE = (point(1, 1.0, 0.1), point(4, 3.0, 0.3), point(8, 4.0, 0.8))


def demand(rps: float = 50.0, utilisation: float = 0.7, price: float | None = 2.5, **limits: float) -> Demand:
    return Demand(rps, limits, utilisation, Rate(price, "USD") if price is not None else None)


def test_replicas_devices_tokens_and_cost_follow_by_hand():
    found = capacity(CURVE, 2, demand())
    assert found.point == CURVE[2]
    assert found.requests_per_second == pytest.approx(2.8)
    assert (found.replicas, found.devices) == (18, 36), "50 / 2.8 = 17.9"
    assert found.output_tokens_per_second == pytest.approx(0.7 * 128 / 2)
    assert found.cost_per_hour == pytest.approx(90.0)
    assert found.cost_per_million_output_tokens == pytest.approx(90.0 / (50 * 32 * 3600) * 1e6)


@pytest.mark.parametrize("replicas", [1, 3, 7, 10, 49, 1000])
def test_a_rate_that_fills_replicas_exactly_takes_no_replica_more(replicas):
    assert capacity(CURVE, 1, demand(replicas * (0.7 * 4.0))).replicas == replicas
    assert capacity(CURVE, 1, demand(replicas * 2.8 + 0.01)).replicas == replicas + 1


def test_the_replicas_always_carry_the_rate_and_one_fewer_never_would():
    for rps in (0.001, 0.5, 2.79, 2.81, 77.7, 1234.5):
        for utilisation in (0.1, 0.7, 1.0):
            found = capacity(CURVE, 1, demand(rps, utilisation))
            assert found.replicas is not None and found.requests_per_second is not None
            assert found.replicas * found.requests_per_second >= rps * (1 - 1e-6)
            assert (found.replicas - 1) * found.requests_per_second < rps


def test_the_point_used_is_the_one_that_completes_most_of_those_that_keep_every_limit():
    assert capacity(CURVE, 1, demand(ttft_p95=0.5)).point == CURVE[1]
    assert capacity(CURVE, 1, demand(ttft_p95=0.3)).point == CURVE[1], "a limit is kept where it is met exactly"
    assert capacity(CURVE, 1, demand(ttft_p95=0.2)).point == CURVE[0]
    falling = (*CURVE, point(16, 3.5, 0.2))
    assert capacity(falling, 1, demand()).point == CURVE[2], "with more under way it completes less"


def test_a_point_at_which_requests_failed_is_not_counted_on():
    failing = (*CURVE[:2], point(8, 40.0, 0.1, failures=1))
    assert capacity(failing, 1, demand()).point == CURVE[1]
    alone = capacity(failing[2:], 1, demand())
    assert alone.point is None
    assert alone.reason == "requests failed at every measured load (1 of 20 with 8 under way)"


def test_why_no_point_keeps_the_limits_is_told_with_the_best():
    beyond = capacity(CURVE, 1, demand(ttft_p95=0.05))
    assert (beyond.point, beyond.replicas, beyond.cost_per_hour) == (None, None, None)
    assert beyond.reason == "no measured load keeps ttft_p95 0.05 s: the best was 0.1 s"
    unknown = capacity(CURVE, 1, demand(tpot_p99=0.05))
    assert unknown.reason == "the curve does not tell tpot_p99: it takes more than the 20 requests of each point"
    apart = (point(1, 1.0, 0.1, tpot_p50=0.09), point(4, 3.0, 0.3, tpot_p50=0.03))
    both = capacity(apart, 1, demand(ttft_p95=0.2, tpot_p50=0.05))
    assert both.reason == "no measured load keeps ttft_p95 0.2 s and tpot_p50 0.05 s together"
    assert capacity((), 1, demand()).reason == "it has no curve"


def test_a_curve_whose_last_point_is_used_may_rise_still():
    assert capacity(CURVE, 1, demand()).still_rising
    assert not capacity(CURVE, 1, demand(ttft_p95=0.5)).still_rising


def test_without_a_price_there_is_no_cost():
    found = capacity(CURVE, 1, demand(price=None))
    assert (found.cost_per_hour, found.cost_per_million_output_tokens) == (None, None)
    assert found.replicas == 18


@pytest.fixture
def store(tmp_path) -> Store:
    """A run of one variant, twice as fast as the baseline, on two devices a replica; both have a curve."""
    store = Store(tmp_path / "store")
    own = [closed("variant", 1, 20, 0.1, 0.01), closed("variant", 2, 20, 0.25, 0.01)]
    baseline = [closed("baseline", 1, 20, 0.4, 0.02), closed("baseline", 2, 20, 0.9, 0.02)]
    stages = {"benchmark": keep(store, "variant", own, [block(1)])}
    run = run_of(
        loaded("int8", [ratio(TPOT, 0.02, 0.5, 0.4, 0.6)], stages=stages),
        benchmark=keep(store, "baseline", baseline, [block(1)]),
    )
    write_run(store.root, run, recipe({"slo": SLO, "price": PRICE}))
    return store


def asked(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["capacity", *arguments, "--store", str(store.root)], standalone_mode=False)


def document(store: Store, *arguments: str) -> dict[str, Any]:
    found = asked(store, *arguments, "--json")
    assert found.exception is None, found.exception
    told = json.loads(found.stdout)
    return {**told, **{arm["name"]: arm for arm in told["arms"]}}


def test_every_arm_stands_beside_the_others_with_what_it_takes(store):
    told = document(store, "--rps", "20", "--slo", "ttft_p95=0.5")
    # The variant at two under way: a request takes 0.25 + 15 * 0.01 = 0.4 s.
    int8, baseline = told["int8"], told["baseline"]
    assert (int8["point"]["streams"], int8["point"]["requests_per_second"]) == (2, pytest.approx(5.0))
    assert (int8["replicas"], int8["devices_per_replica"], int8["devices"]) == (6, 2, 12), "20 / 3.5 = 5.7"
    assert int8["output_tokens_per_second"] == pytest.approx(0.7 * 5.0 * 16 / 2)
    assert int8["cost_per_hour"] == pytest.approx(12 * 2.5)
    assert (int8["memory_peak"], int8["concurrency"], baseline["concurrency"]) == (1.2e9, 12.0, 8.0)
    # The baseline keeps it only one at a time: 0.4 + 15 * 0.02 = 0.7 s each.
    assert baseline["point"]["streams"] == 1
    assert baseline["replicas"] == math.ceil(20 / (0.7 / 0.7))
    assert told["price"] == PRICE
    assert told["slo"] == {"ttft_p95": 0.5}


def test_any_percentile_that_the_curves_requests_tell_can_be_limited(store):
    told = document(store, "--rps", "1", "--slo", "e2e_p95=0.6", "--slo", "tpot_p90=0.02")
    assert told["int8"]["point"]["times"]["e2e_p95"] == pytest.approx(0.4)
    assert told["int8"]["keeps"] is True
    assert told["baseline"]["keeps"] is False
    assert told["baseline"]["reason"] == "no measured load keeps e2e_p95 0.6 s: the best was 0.7 s"


def test_the_recipes_slo_counts_where_no_other_is_given(store):
    told = document(store, "--rps", "1")
    assert told["slo"] == {"ttft_p95": 0.35, "tpot_p95": 0.05}
    assert told["slo_from"] == "the recipe's SLO"
    assert told["baseline"]["keeps"] is False
    page = asked(store, "--rps", "1").stdout
    assert "baseline: no measured load keeps ttft_p95 0.35 s: the best was 0.4 s." in page
    assert "EUR" in page


def test_a_price_on_the_command_line_goes_before_the_recipes(store):
    told = document(store, "--rps", "1", "--price", "1", "--currency", "CHF", "--slo", "tpot_p50=1")
    assert told["price"] == {"per_device_hour": 1.0, "currency": "CHF"}
    assert told["int8"]["cost_per_hour"] == told["int8"]["devices"]
    with pytest.raises(UsageError, match="not converted"):
        raise_of(asked(store, "--rps", "1", "--currency", "CHF"))


def test_without_any_price_the_columns_are_left_out_and_it_is_said_how_to_give_one(tmp_path):
    store = Store(tmp_path / "store")
    own = [closed("variant", 1, 20, 0.1, 0.01)]
    stages = {"benchmark": keep(store, "variant", own, [block(1)])}
    write_run(store.root, run_of(loaded("int8", [], stages=stages)), recipe({}))
    page = asked(store, "--rps", "5").stdout
    assert "an hour" not in page and "a million" not in page
    assert "--price PER_DEVICE_HOUR adds the cost" in page
    assert [arm["name"] for arm in document(store, "--rps", "5")["arms"]] == ["int8"], "no baseline was measured"


def raise_of(found: Result) -> None:
    assert found.exception is not None
    raise found.exception


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rps", "0"), "--rps: 0 is not above 0"),
        (("--rps", "-3"), "--rps: -3 is not above 0"),
        (("--rps", "nan"), "--rps: nan is not above 0"),
        (("--rps", "inf"), "--rps: inf is not above 0"),
        (("--rps", "1", "--utilisation", "1.2"), "--utilisation: 1.2 is not above 0 and at most 1"),
        (("--rps", "1", "--price", "0"), "--price: 0 is not above 0"),
        (("--rps", "1", "--slo", "ttft_95=1"), "--slo: 'ttft_95' is no quantity to limit. Did you mean 'ttft_p95'"),
        (("--rps", "1", "--slo", "ttft_p95"), "--slo: 'ttft_p95' has no number of seconds"),
        (("--rps", "1", "--slo", "ttft_p95=-1"), "--slo: 'ttft_p95=-1' has no number of seconds"),
        (("--rps", "1", "--slo", "e2e_p50=1", "--slo", "e2e_p50=2"), "--slo: e2e_p50 is limited twice"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_that_names_the_option(store, arguments, told):
    with pytest.raises(UsageError) as raised:
        raise_of(asked(store, *arguments))
    assert str(raised.value).startswith(told)


def test_a_run_without_a_benchmark_says_how_to_get_one(tmp_path):
    store = Store(tmp_path / "store")
    write_run(store.root, run_of(loaded("int8", [])), recipe(None))
    with pytest.raises(QuantizeError, match=r"measured nothing under load.*Add `benchmark"):
        raise_of(asked(store, "--rps", "5"))
    found = command("capacity", "--rps", "5", "--store", store.root)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: demo-1: the run measured nothing under load.")


def test_a_run_whose_variants_all_failed_before_says_so(tmp_path):
    store = Store(tmp_path / "store")
    write_run(store.root, run_of(loaded("int8", [])), recipe({}))
    with pytest.raises(UsageError, match="no variant of the run came to its benchmark"):
        raise_of(asked(store, "--rps", "5"))


def test_a_benchmark_that_is_gone_from_the_store_is_an_error_and_not_left_out(store):
    for held in store.root.glob("benchmark/*/manifest.json"):
        held.unlink()
    with pytest.raises(StoreError, match=r"not in the store any more.*Run the same recipe"):
        raise_of(asked(store, "--rps", "5"))


@pytest.mark.parametrize("width", ["80", "100"])
def test_the_table_fits_its_paper(store, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    page = asked(store, "--rps", "20").stdout
    assert max(map(len, page.splitlines())) <= 120
    assert "int8" in page and "replicas" in page
