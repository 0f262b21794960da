"""When a variant has answered enough, and when the instrument is too noisy for its answers to mean anything."""

from __future__ import annotations

from typing import Any

import pytest
from program import TINY
from release_world import answers

from quantize.device import choose
from quantize.evidence import Comparison, Evidence, Spending
from quantize.gates import GateConfig, Limit, NonInferiority
from quantize.handed import Row
from quantize.judgement import Collected, Rules, decide
from quantize.metrics import Items
from quantize.metrics._pairs import pair_items
from quantize.planner import make_plan
from quantize.proof import Proof
from quantize.recipe import load
from quantize.stopping import never, stopping_rule
from quantize.verdict import Verdict

FACTS = Items(name="facts", path="items.jsonl")
EARLY, LATE = Spending(), Spending(early=0.0)
ALL = NonInferiority(metric="facts.accuracy", margin=0.05)


def rows(lost: range = range(0), looks: int = 10) -> list[Row]:
    """An arm's rows; the first 240 items are in the slice `common`, the last 60 in `rare`."""
    return [{**row, "slice": "common" if row["place"] < 240 else "rare"} for row in answers("items", lost, looks)]


def sliced(name: str, margin: float = 0.05, **rule: Any) -> NonInferiority:
    return NonInferiority(metric=f"facts.accuracy/{name}", margin=margin, **rule)


def asked(gates: list[GateConfig], answered: list[Row], spending: Spending = EARLY) -> tuple[str, str] | None:
    return stopping_rule(FACTS, gates, rows(), spending)(answered)


def test_a_hopeless_variant_stops_as_soon_as_one_blocking_gate_says_so():
    bad = rows(range(90), looks=3)
    assert asked([ALL], bad) == ("fail", "facts.accuracy")
    assert asked([sliced("rare"), ALL], bad) == ("fail", "facts.accuracy")
    assert asked([NonInferiority(metric="facts.accuracy", margin=0.9)], bad) is None


def test_a_variant_that_can_no_longer_pass_stops_without_having_been_shown_to_fail():
    """16 items lost in 270, and 6 that the baseline had wrong among the 30 to come: at best 3.3 points below."""
    answered = rows(range(0, 260, 13), looks=9)
    assert asked([ALL], answered) == ("futile", "facts.accuracy")


def test_a_clear_variant_stops_only_when_every_blocking_gate_says_so():
    most = rows(looks=8)
    assert asked([ALL], most) == ("pass", "facts.accuracy")
    assert asked([ALL, sliced("common")], most) == ("pass", "facts.accuracy/common")
    assert asked([ALL, sliced("rare", 0.3)], most) is None, "of that slice nothing is known yet"
    assert asked([ALL], rows(looks=2)) is None, "too few items to say anything"


def test_a_pass_names_the_gate_that_held_out_longest():
    """Red when it is the recipe's last gate: here that one was certain three looks before."""
    easy = sliced("common", 0.2)
    stop = stopping_rule(FACTS, [ALL, easy], rows(), EARLY)
    said = [stop(rows(looks=looks)) for looks in range(1, 9)]
    alone = [asked([easy], rows(looks=looks)) for looks in range(1, 9)]
    first = next(number for number, word in enumerate(said) if word)
    assert said[first] == ("pass", "facts.accuracy")
    assert next(number for number, word in enumerate(alone) if word) < first


def test_a_slice_that_is_complete_before_its_eval_has_its_last_word():
    """Red when a complete sample is taken for one that needs more items: it would forbid every early stop."""
    assert asked([sliced("common"), ALL], rows(looks=8)) == ("pass", "facts.accuracy")
    assert asked([sliced("common"), ALL], rows(range(14), looks=9)) == ("futile", "facts.accuracy/common")
    wide = ALL.model_copy(update={"margin": 0.9})
    assert asked([wide, sliced("common", 0.01)], rows(range(25), looks=8)) == ("fail", "facts.accuracy/common")


def test_a_blocking_limit_forbids_an_early_pass_and_no_early_fail():
    limit = Limit(metric="facts.output_tokens", at_most=1.1, advisory=False)
    assert asked([ALL, limit], rows(looks=8)) is None
    assert asked([ALL, limit], rows(range(90), looks=3)) == ("fail", "facts.accuracy")
    advisory = limit.model_copy(update={"advisory": True})
    assert asked([ALL, advisory], rows(looks=8)) == ("pass", "facts.accuracy")


def test_advisory_gates_and_those_of_other_evals_are_not_asked():
    strict = sliced("common", 0.001, advisory=True)
    assert asked([ALL, strict], rows(looks=8)) == ("pass", "facts.accuracy")
    other = NonInferiority(metric="other.accuracy")
    assert asked([ALL, other], rows(looks=8)) == ("pass", "facts.accuracy")
    bad = rows(range(90), looks=3)
    for gates in ([other], [ALL.model_copy(update={"advisory": True})], []):
        assert stopping_rule(FACTS, gates, rows(), EARLY) is never
        assert asked(gates, bad) is None


def test_nothing_stops_with_early_stopping_off():
    assert stopping_rule(FACTS, [ALL], rows(), LATE) is never
    assert asked([ALL], rows(range(90), looks=3), LATE) is None
    assert asked([ALL], rows(looks=8), LATE) is None


def test_a_later_attempt_needs_more_looks_before_it_passes():
    def first(attempt: int) -> int:
        return next(k for k in range(1, 11) if asked([ALL], rows(looks=k), Spending(attempt=attempt)))

    assert first(1) < first(2) <= first(4) < 10


@pytest.mark.parametrize("seed", [1, 20])
def test_the_order_of_the_items_is_the_evals_own_whatever_seed_the_recipe_has(make_recipe, seed):
    """Red when the recipe's seed orders the items: another order, and another early stop, could be had for the asking.

    Quantizing has its own use for the seed; the baseline's answers are not even measured again.
    """
    one, other = (make_plan(load(make_recipe(**recipe)), choose("cpu")) for recipe in ({}, {"seed": seed}))
    assert other.variants[0].quantize.key != one.variants[0].quantize.key
    assert other.baselines[0].evaluate["facts"].key == one.baselines[0].evaluate["facts"].key
    orders = [
        {
            stage.config["seed"]
            for stage in (plan.baselines[0].evaluate["facts"], *plan.variants[0].measured(1).evaluate.values())
        }
        for plan in (one, other)
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 1, "all arms answer in one order"


def test_another_eval_set_has_an_order_of_its_own(make_recipe, tmp_path):
    first = make_plan(load(make_recipe()), choose("cpu")).baselines[0].evaluate["facts"].config["seed"]
    lines = (TINY / "items.jsonl").read_text("utf-8").splitlines()
    for name, content in {"backwards": lines[::-1], "fewer": lines[1:]}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(content), "utf-8")
        evals = [{"kind": "items", "name": "facts", "path": str(path)}]
        seed = make_plan(load(make_recipe(evals=evals)), choose("cpu")).baselines[0].evaluate["facts"].config["seed"]
        assert (seed == first) == (name == "backwards"), "nor can an order be had by turning the lines"


# --- the noise floor -----------------------------------------------------------------------------------------------


def noise(difference: float, low: float | None, high: float | None, metric: str = "facts.accuracy") -> Comparison:
    """What the baseline, measured again, differs from itself by."""
    return Comparison(
        metric=metric, unit="share", baseline=0.8, variant=0.8 + difference, difference=difference, low=low, high=high,
        level=0.9, n=300, method="exact", extra={"losses": 7, "gains": 3},
    )  # fmt: skip


def verdict(*measured: Comparison, gates: tuple[GateConfig, ...] = (ALL,), skipped: tuple[str, ...] = ()) -> Verdict:
    """The verdict on a variant that answers as the baseline does, measured with an instrument of this noise."""
    evidence = Evidence(
        variant="int8", artifact_digest="a" * 64, baseline_digest="b" * 64, measurements=[], baseline_measurements=[],
        comparisons=[], hard_stops=[], noise=list(measured), spending=LATE,
    )  # fmt: skip
    proof = Proof(outcome="pass", sentences=("It does.",), numbers={})
    rules = Rules(variant="int8", rules_digest="r" * 64, counted={"facts": "e" * 64}, spending=LATE, skipped=skipped)
    return decide(Collected(evidence, pair_items("facts", rows(), rows()), proof, (), {}), gates, rules)


def test_an_instrument_that_is_shown_to_be_noisier_than_half_the_margin_is_an_error():
    for side in (1, -1):
        low, high = sorted((side * 0.026, side * 0.06))
        found = verdict(noise(side * 0.04, low, high))
        assert found.outcome == "error"
        (said,) = [finding for finding in found.findings if finding.kind == "noise"]
        assert (said.outcome, said.advisory, said.metric) == ("error", False, "facts.accuracy")
        assert "the instrument is too noisy to judge a margin of 5 points" in said.sentence
        assert f"differs from itself by {side * 4:+.1f} points" in said.sentence
        assert "7 lost, 3 gained" in said.sentence


def test_noise_that_may_be_more_than_half_the_margin_is_a_warning_that_blocks_nothing():
    for measured in (noise(0.01, -0.01, 0.03), noise(-0.01, -0.03, 0.01), noise(0.03, 0.024, 0.04)):
        found = verdict(measured)
        assert found.outcome == "pass"
        (said,) = [finding for finding in found.findings if finding.kind == "noise"]
        assert (said.outcome, said.advisory) == ("inconclusive", True)
        assert "a noise of half the margin is not excluded" in said.sentence


def test_a_quiet_instrument_is_not_mentioned():
    for measured in ([noise(0.0, -0.01, 0.01)], [noise(0.5, 0.4, 0.6, "other.accuracy")], []):
        found = verdict(*measured)
        assert found.outcome == "pass"
        assert [finding.kind for finding in found.findings] == ["proof", "noninferiority"]


def test_the_noise_is_held_against_each_gates_own_margin():
    gates = (ALL, NonInferiority(metric="facts.accuracy/rare", margin=0.3))
    found = verdict(noise(0.05, 0.03, 0.07), noise(0.05, 0.03, 0.07, "facts.accuracy/rare"), gates=gates)
    assert [finding.metric for finding in found.findings if finding.kind == "noise"] == ["facts.accuracy"]


def test_an_advisory_gate_that_is_too_noisy_blocks_nothing():
    gates = (ALL, NonInferiority(metric="facts.accuracy/rare", margin=0.05, advisory=True))
    found = verdict(noise(0.2, 0.1, 0.3, "facts.accuracy/rare"), gates=gates)
    assert found.outcome != "error"


def test_an_eval_that_was_not_run_is_said_and_has_no_noise():
    found = verdict(noise(0.2, 0.1, 0.3), skipped=("facts",))
    assert [finding.kind for finding in found.findings] == ["proof", "skipped"]
    assert found.outcome == "inconclusive"
