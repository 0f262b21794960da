"""Gates under load: latency, service level, benefit. What each blocks of pairs lead to, and what a user reads then."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gate_comparisons import FAILURES, TPOT, compared, evidence, failed, scattered
from pydantic import TypeAdapter, ValidationError

from quantize.benchmark import config
from quantize.evidence import Comparison, Measurement, Spending
from quantize.gates import Benefit, GateConfig, Latency, ServiceLevel, _load
from quantize.verdict import Finding

QUIET = compared(scattered(1.0, 0.01))


def judged(logs: list[float], noise: Comparison | None = QUIET, **rule: Any) -> Finding:
    """What a latency gate finds beside a baseline that is equal to itself."""
    return Latency(metric=TPOT, **rule).judge(evidence(compared(logs), noise=[noise] if noise else []), {})


@pytest.mark.parametrize(
    ("logs", "outcome"),
    [
        (scattered(0.8), "pass"),
        (scattered(1.0), "pass"),
        (scattered(1.03), "pass"),
        (scattered(1.05), "inconclusive"),
        (scattered(1.0, 0.2), "inconclusive"),
        (scattered(1.07), "fail"),
        (scattered(1.4), "fail"),
    ],
)
def test_only_an_interval_wholly_within_the_margin_passes_and_one_wholly_beyond_fails(logs, outcome):
    """The mutation "sign of the logs" turns this red: (0.8) would fail, (1.4) pass.

    So does "s instead of s/sqrt(n)": the limits of (1.03) would be 0.02 away instead of 0.006.
    """
    found = judged(logs)
    assert found.outcome == outcome
    assert found.numbers["lower"] < found.numbers["ratio"] < found.numbers["upper"]


def test_the_limits_are_an_nth_root_narrower_than_the_blocks_scatter():
    found = judged(scattered(1.03, 0.02, 9), at_most=0.05)
    reach = 1.8595 * 0.02 / 3  # t with 8 degrees of freedom
    assert found.numbers["upper"] == pytest.approx(1.03 * math.exp(reach), rel=1e-4)
    assert found.numbers["lower"] == pytest.approx(1.03 * math.exp(-reach), rel=1e-4)


def test_the_sentences_give_ratio_interval_blocks_and_limit():
    assert judged(scattered(1.12, 0.02)).sentence == (
        "TPOT p50 at load single is 1.12 times the baseline's (1.11 to 1.13 over 10 blocks; 22.4 ms beside 20 ms), "
        "above the 1.05 that the gate allows."
    )
    assert judged(scattered(0.9, 0.02)).sentence.endswith("within the 1.05 that the gate allows.")
    assert judged(scattered(1.03)).sentence.endswith(": slower, within the margin of the 1.05 that the gate allows.")


def test_a_ratio_next_to_the_limit_is_shown_with_the_decimals_that_tell_them_apart():
    sentence = judged(scattered(1.047, 0.004)).sentence
    assert "is 1.047 times" in sentence
    assert "the 1.050 that the gate allows" in sentence


def test_an_inconclusive_finding_says_how_many_blocks_would_do():
    found = judged(scattered(1.0, 0.1))
    assert found.numbers["needed"] == 38
    assert "About 38 blocks would show it nine times in ten." in found.sentence
    near = judged(scattered(1.045, 0.02))
    assert near.outcome == "inconclusive"
    assert near.numbers["needed"] > 100, "planned for the ratio that was seen: 10 blocks would do for a ratio of 1"
    beyond = judged(scattered(1.052, 0.02))
    assert beyond.outcome == "inconclusive"
    assert beyond.numbers["needed"] is None


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("blocks", [0, 1, 5])
def test_fewer_than_six_blocks_decide_nothing(ratio, blocks):
    logs = scattered(ratio, blocks=blocks) if blocks > 1 else [math.log(ratio)] * blocks
    pair = compared(logs, invalid=4, blocks=blocks + 4)
    found = Latency(metric=TPOT).judge(evidence(pair, noise=[QUIET]), {})
    assert found.outcome == "inconclusive"
    assert "(4 were invalid)" in found.sentence
    assert "`benchmark.reruns`" in found.sentence
    assert found.numbers["blocks"] == blocks


def test_a_quantity_that_some_blocks_lack_is_not_judged_by_the_others():
    pair = compared([], blocks=10, saturated={"baseline": False, "variant": True})
    found = Latency(metric=TPOT).judge(evidence(pair, noise=[QUIET]), {})
    assert found.outcome == "inconclusive"
    assert "not known in each of 10 valid blocks" in found.sentence
    assert "Only the baseline could keep up" in found.sentence


@pytest.mark.parametrize("ratio", [0.8, 1.5])
@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (None, "not known how noisy"),
        (compared(scattered(1.0, 0.2)), "too noisy to judge"),
        (compared(scattered(1.08)), "too noisy to judge"),
        (compared(scattered(0.92)), "too noisy to judge"),
        (compared(scattered(1.0, blocks=5), invalid=1), "there are 5 valid blocks (1 was invalid)"),
    ],
)
def test_on_a_machine_that_is_not_shown_to_be_quiet_nothing_is_decided(noise, reason, ratio):
    found = judged(scattered(ratio), noise)
    assert found.outcome == "inconclusive"
    assert reason in found.sentence


def test_the_noise_is_held_against_the_gates_own_margin():
    noise = compared(scattered(1.0, 0.1))
    assert judged(scattered(0.8), noise, at_most=0.05).outcome == "inconclusive"
    found = judged(scattered(0.8), noise, at_most=0.10)
    assert found.outcome == "pass"
    assert 1 / 1.1 < found.numbers["aa_lower"] < 1 < found.numbers["aa_upper"] < 1.1


def test_another_metrics_noise_does_not_count():
    assert judged(scattered(0.8), compared(scattered(1.0), "load.ttft_p50/single")).outcome == "inconclusive"


def test_what_was_not_measured_is_an_error_that_names_what_was():
    found = Latency(metric="load.ttft_p95/traffic").judge(evidence(compared(scattered(1.0))), {})
    assert found.outcome == "error"
    assert TPOT in found.sentence


def test_saturation_and_failed_requests_are_told_beside_a_time():
    pair = compared(scattered(0.9), "load.ttft_p95/traffic", saturated={"baseline": True, "variant": True})
    lost = failed([0] * 10, [1] * 10)
    quiet = compared(scattered(1.0), "load.ttft_p95/traffic")
    found = Latency(metric="load.ttft_p95/traffic").judge(evidence(pair, lost, noise=[quiet]), {})
    assert found.outcome == "pass"
    assert "Neither arm could keep up with this load." in found.sentence
    assert "10 of the variant's requests failed and have no time." in found.sentence


@pytest.mark.parametrize(
    ("baseline_full", "outcome", "sentence"),
    [(False, "inconclusive", "It does not pass at a load that it cannot keep up with."), (True, "pass", "Neither arm")],
)
def test_a_variant_that_alone_cannot_keep_up_with_a_load_does_not_pass_at_it(baseline_full, outcome, sentence):
    pair = compared(scattered(0.9), saturated={"baseline": baseline_full, "variant": True})
    found = Latency(metric=TPOT).judge(evidence(pair, noise=[QUIET]), {})
    assert found.outcome == outcome
    assert sentence in found.sentence


@pytest.mark.parametrize(
    "gate",
    [
        Latency(metric="load.ttft_p95/traffic"),
        ServiceLevel(metric="load.ttft_p95/traffic", at_most=1.0),
        Benefit(metric="load.ttft_p95/traffic", at_least=0.1),
    ],
)
def test_a_percentile_that_failed_requests_decide_is_not_shown_and_never_an_error(gate):
    found = gate.judge(evidence(failed([0] * 10, [32] * 10)), {})
    assert found.outcome == "inconclusive"
    assert "TTFT p95 at load traffic is not known: 320 of the variant's 640 requests failed." in found.sentence


@pytest.mark.parametrize(
    ("baseline", "variant", "outcome"),
    [
        ([0] * 10, [0] * 10, "pass"),
        ([0] * 10, [0] * 9 + [1], "inconclusive"),
        ([0] * 10, [3] * 10, "fail"),
        ([3] * 10, [0] * 10, "pass"),
        ([0] * 6, [0] * 6, "inconclusive"),
    ],
)
def test_failures_are_judged_by_their_difference_and_none_in_few_requests_shows_nothing(baseline, variant, outcome):
    quiet = failed([0] * 10, [0] * 10)
    found = Latency(metric=FAILURES).judge(evidence(failed(baseline, variant), noise=[quiet]), {})
    assert found.outcome == outcome
    assert found.numbers["at_most"] == 0.005
    if len(baseline) == 6:
        assert "at least 598 requests to each arm" in found.sentence
    if outcome == "fail":
        assert "is 4.69 % beside 0.00 %, +4.69 points" in found.sentence
        assert "above the 0.5 points that the gate allows" in found.sentence


def test_a_baseline_whose_own_failures_are_not_known_to_half_a_point_judges_no_other():
    quiet = failed([0] * 8, [0] * 8)  # 512 requests: up to 0.58 points
    found = Latency(metric=FAILURES).judge(evidence(failed([0] * 10, [3] * 10), noise=[quiet]), {})
    assert found.outcome == "inconclusive"
    assert "-0.58 to +0.58 points over 8 blocks, not within the gate's 0.5 points either way" in found.sentence


@pytest.mark.parametrize(
    ("metric", "allowed"),
    [
        (TPOT, 0.05),
        ("load.ttft_p95/traffic", 0.10),
        ("load.e2e_p50/traffic", 0.10),
        ("load.itl_p99/traffic", 0.10),
        (FAILURES, 0.005),
    ],
)
def test_what_is_allowed_depends_on_the_quantity_unless_the_recipe_says(metric, allowed):
    assert Latency(metric=metric).allowed == allowed
    assert Latency(metric=metric, at_most=0.2).allowed == 0.2


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"kind": "latency", "metric": "load.goodput/traffic"}, "`kind: slo` with `at_least`"),
        ({"kind": "latency", "metric": "load.memory_peak"}, "`kind: slo` with `at_most`"),
        ({"kind": "latency", "metric": "load.tpot_p50"}, "names no load"),
        ({"kind": "latency", "metric": "load.tpot_p42/single"}, "not measured under load"),
        ({"kind": "latency", "metric": "facts.accuracy"}, "not measured under load"),
        ({"kind": "latency", "metric": FAILURES, "at_most": 2}, "no more than all requests"),
        ({"kind": "latency", "metric": TPOT, "at_most": 0}, "greater than 0"),
        ({"kind": "slo", "metric": "load.memory_peak/single", "at_most": 1}, "whatever its load"),
        ({"kind": "slo", "metric": TPOT}, "give `at_most`"),
        ({"kind": "slo", "metric": TPOT, "at_least": 1}, "give `at_most`"),
        ({"kind": "slo", "metric": TPOT, "at_least": 1, "at_most": 2}, "no `at_least`"),
        ({"kind": "slo", "metric": "load.goodput/traffic", "at_most": 1}, "give `at_least`"),
        ({"kind": "benefit", "metric": TPOT, "at_least": 1}, "nothing shrinks by all of it"),
        ({"kind": "benefit", "metric": FAILURES, "at_least": 0.1}, "no ratio"),
        ({"kind": "benefit", "metric": "memory.peak", "at_least": 0.1}, "take load.memory_peak"),
        ({"kind": "benefit", "metric": "facts.accuracy", "at_least": 0.1}, "weights.bytes"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused_with_what_to_write_instead(rule, reason):
    with pytest.raises(ValidationError, match=reason.replace("(", r"\(")):
        TypeAdapter(GateConfig).validate_python(rule)


def test_gates_know_the_quantities_that_a_benchmark_measures():
    assert {*_load.TIMES, *_load.HIGHER, _load.FAILURES} == set(config.QUANTITIES)
    assert set(_load.OF_THE_ARM) == set(config.OF_THE_ARM)
    assert _load.LEAST_BLOCKS == config.LEAST_BLOCKS


def test_nothing_under_load_is_certain_early():
    for gate in (Latency(metric=TPOT), ServiceLevel(metric=TPOT, at_most=1), Benefit(metric=TPOT, at_least=0.1)):
        assert gate.look(None, Spending()) is None


def kept(
    low: float | None, high: float | None, n: int = 10, metric: str = "load.e2e_p50/traffic", **rule: Any
) -> Finding:
    """What a service level finds of a variant with this interval."""
    own = Measurement(
        name=metric, value=(low or 0.5) * 1.01, unit="seconds", n=n, direction="lower", low=low, high=high
    )
    return ServiceLevel(metric=metric, **rule).judge(evidence(own=own), {})


@pytest.mark.parametrize(
    ("low", "high", "n", "outcome"),
    [
        (0.30, 0.40, 10, "pass"),
        (0.40, 0.60, 10, "inconclusive"),
        (0.51, 0.60, 10, "fail"),
        (0.30, 0.40, 5, "inconclusive"),
        (0.51, 0.60, 5, "inconclusive"),
        (None, None, 10, "inconclusive"),
    ],
)
def test_a_service_level_must_be_kept_or_broken_by_the_whole_interval(low, high, n, outcome):
    assert kept(low, high, n, at_most=0.5).outcome == outcome


@pytest.mark.parametrize(("low", "high", "outcome"), [(12, 14, "pass"), (9, 11, "inconclusive"), (7, 8, "fail")])
@pytest.mark.parametrize("metric", ["load.goodput/traffic", "load.concurrency"])
def test_of_what_is_better_when_higher_the_service_level_is_a_least(low, high, outcome, metric):
    assert kept(low, high, metric=metric, at_least=10).outcome == outcome


def test_a_service_level_speaks_in_its_own_unit_and_names_whose_promise_it_is():
    found = kept(0.51, 0.6, at_most=0.5, target="edge")
    assert found.sentence == (
        "E2E p50 at load traffic is 515 ms (510 ms to 600 ms over 10 blocks), above the limit of 500 ms "
        "that edge promises."
    )
    assert found.gate == "load.e2e_p50/traffic at most 0.5 for edge"
    memory = kept(4e9, 5e9, metric="load.memory_peak", at_most=6e9)
    assert "(4,000.0 MB to 5,000.0 MB over 10 blocks), within the limit of 6,000.0 MB." in memory.sentence
    slow = kept(1.2, 1.3, at_most=5)
    assert "(1.2 s to 1.3 s over 10 blocks)" in slow.sentence


def test_a_service_level_without_its_measurement_is_an_error():
    found = ServiceLevel(metric=TPOT, at_most=1).judge(evidence(), {})
    assert found.outcome == "error"
    assert "nothing under load" in found.sentence
