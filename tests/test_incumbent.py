"""A candidate replaces what serves only if it is shown to be as good as that, not only as the baseline."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from release_world import Result, World, answers

from quantize.errors import QuantizeError
from quantize.evidence import Spending
from quantize.gates import NonInferiority
from quantize.incumbent import Contest
from quantize.metrics import Items
from quantize.protocols import Row, VersionState
from quantize.release import release_run
from quantize.run import RunRecord, Watcher
from quantize.verdict import Decision, Finding

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
WORSE, CLOSE = range(30, 80), range(30, 45)  # of 300 items 40 and 12 that the baseline has right: 13 and 4 points


def again(**how: Any) -> Result:
    """Another artifact of the first one's variant, which has passed against the baseline."""
    return Result("fp8", b"second" * 90, **how)


def decided(record: RunRecord, place: int = 0) -> Decision:
    decision = record.variants[place].decision
    assert decision is not None
    return decision


def test_a_candidate_that_is_worse_than_the_champion_is_held_with_the_finding(world):
    """Red when only the baseline is asked (`_contested` gives nothing): both have passed against that one."""
    world.release(FIRST)
    before = world.registry.aliases()
    decision = decided(world.release(again(lost=WORSE)))
    assert (decision.action, decision.outcome, decision.previous_version) == ("hold", "pass", "2")
    (finding,) = decision.against
    assert (finding.outcome, finding.numbers["losses"]) == ("fail", 40)
    assert decision.sentence.startswith("Held: version 3. against version 2: facts.accuracy changed by -13.3 points")
    assert finding.gate.endswith("against version 2")
    assert world.registry.aliases() == before
    assert [v.state for v in world.registry.versions()] == ["baseline", "promoted", "passed"]


def test_a_candidate_that_is_not_shown_to_be_as_good_is_held_too(world):
    world.release(FIRST)
    decision = decided(world.release(again(lost=CLOSE)))
    assert decision.action == "hold"
    assert [finding.outcome for finding in decision.against] == ["inconclusive"]
    assert "neither shows nor excludes" in decision.sentence


def test_a_candidate_that_is_as_good_replaces_the_champion(world):
    world.release(Result("fp8", FIRST.weights, lost=CLOSE))
    decision = decided(world.release(again(lost=CLOSE)))
    assert decision.action == "promote"
    (finding,) = decision.against
    assert (finding.outcome, finding.numbers["losses"], finding.numbers["gains"]) == ("pass", 0, 0)
    assert finding.numbers["attempt"] == 2, "the same alpha as against the baseline"
    assert world.registry.aliases()["fp8"] == "3"


def test_where_nothing_serves_there_is_nothing_to_be_compared_with(world):
    assert decided(world.release(again(lost=WORSE))).against == []


def test_what_is_held_is_decided_once(world):
    world.release(FIRST)
    world.release(again(lost=WORSE))
    versions = world.registry.versions()
    assert world.release(again(lost=WORSE)).variants[0].decision is None
    assert world.registry.versions() == versions


@pytest.mark.parametrize(
    ("bytes_", "lost", "action"),
    [
        (300, CLOSE, "promote"),  # smaller by 40 %, and 4 points are less than 15
        (300, WORSE, "hold"),  # 13 points are not shown to be less than 15
        (400, CLOSE, "hold"),  # smaller by 20 % only
        (400, range(0), "promote"),  # no trade is needed
    ],
)
def test_a_smaller_candidate_may_cost_what_the_trade_says(world, bytes_, lost, action):
    world.trade = {"smaller_by": 0.3, "margin": 0.15}
    world.release(FIRST)
    assert len(FIRST.weights) == 500
    decision = decided(world.release(Result("fp8", b"x" * bytes_, lost=lost)))
    assert decision.action == action
    assert decision.against[0].numbers["margin"] == (0.15 if bytes_ == 300 else 0.05)


@pytest.mark.parametrize("change", [{"eval_set": "others"}, {"extra": 60}])
def test_a_champion_that_was_measured_on_another_eval_set_cannot_be_compared(world, change):
    """Red when items that only the candidate was asked count as its gains: then it would be promoted."""
    world.release(Result("fp8", FIRST.weights, lost=range(30)))
    for name, value in change.items():
        setattr(world, name, value)
    decision = decided(world.release(again()))
    assert decision.action == "hold"
    assert [finding.outcome for finding in decision.against] == ["inconclusive"]
    assert "cannot be compared with version 2 on facts.accuracy: it has answered another eval set" in decision.sentence
    assert "decide by hand with `quantize promote`" in decision.sentence
    assert world.registry.aliases()["fp8"] == "2"


def test_a_champion_that_stopped_early_is_compared_on_what_both_have_answered(world):
    """Beyond its looks nothing is known of it: neither its losses there nor the candidate's count."""
    world.release(Result("fp8", FIRST.weights, looks=7))
    held = decided(world.release(again(lost=range(30, 110))))
    assert held.action == "hold"
    assert (held.against[0].numbers["n"], held.against[0].numbers["items"]) == (210, 300)
    assert held.against[0].outcome == "fail"
    promoted = decided(world.release(Result("fp8", b"third" * 90, lost=range(210, 300))))
    assert promoted.action == "promote"
    assert promoted.against[0].numbers["losses"] == 0
    assert "210 of 300 items" in promoted.against[0].sentence


# --- without a registry --------------------------------------------------------------------------------------------


def contest(held: list[Row], found: list[Row], spending: Spending | None = None) -> Finding:
    """The finding between two arms' rows."""

    def state(number: str) -> VersionState:
        return VersionState(number, "fp8", "passed", number, None, "", {"weight_bytes": "1"}, ())

    metric = Items(name="facts", path="items.jsonl")
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    judge = Contest([metric], [gate], lambda _name: answers("items"), None).judge
    (finding,) = judge(state("2"), lambda _name: held, state("3"), lambda _name: found, spending or Spending())
    return finding


def regrouped(rows: list[Row], look: int) -> list[Row]:
    return [{**row, "look": row["place"] // look} for row in rows]


def test_looks_of_another_size_compare_the_same_items():
    plain = contest(answers("items"), answers("items", CLOSE))
    assert plain.numbers["losses"] == 12
    assert contest(regrouped(answers("items"), 50), regrouped(answers("items", CLOSE), 20)) == plain
    part = regrouped(answers("items", looks=5), 50)
    assert contest(part, regrouped(answers("items", CLOSE), 20)).numbers["n"] == 150


def test_a_whole_arm_in_another_order_compares_the_same_items():
    """Another seed: the places are others, the items the same."""
    held = [{**row, "place": 299 - row["place"]} for row in answers("items", CLOSE)]
    assert contest(held, answers("items")).numbers["gains"] == 12
    assert contest([row for row in held if row["place"] < 150], answers("items")).outcome == "inconclusive"


def test_where_there_is_no_end_the_whole_alpha_is_spent_on_looking():
    """Red when a fifth is spent as if a test at the end were to come: a champion's own looks would never suffice."""
    finding = contest(answers("items", looks=6), answers("items"), Spending(attempt=2, choices=3))
    assert (finding.outcome, finding.numbers["n"]) == ("pass", 180)
    assert finding.numbers["spent"] == pytest.approx(0.99 * finding.numbers["alpha"])


def test_an_arm_without_rows_is_inconclusive_with_the_reason():
    def absent(_name: str) -> list[Row]:
        raise QuantizeError("version 2 was never measured.")

    metric = Items(name="facts", path="items.jsonl")
    gates = [NonInferiority(metric="facts.accuracy"), NonInferiority(metric="facts.accuracy", advisory=True)]
    state = VersionState("2", "fp8", "passed", "2", None, "", {}, ())
    whole = answers("items")
    judge = Contest([metric], gates, lambda _name: whole, None).judge
    (finding,) = judge(state, absent, state, lambda _name: whole, Spending())
    assert finding.outcome == "inconclusive"
    assert finding.sentence.endswith("facts.accuracy: version 2 was never measured.")


# --- targets -------------------------------------------------------------------------------------------------------


class Noting(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def test_a_target_moves_to_another_variants_champion_only_if_that_is_as_good(world):
    world.release(FIRST)
    runner, record = world.run(Result("int4", b"small", lost=WORSE))
    runner.watcher = Noting()
    decision = decided(release_run(world.registry, runner, record))
    assert (decision.action, decision.against) == ("promote", [])
    aliases = world.registry.aliases()
    assert (aliases["int4"], aliases["production"]) == ("3", "2"), "its own alias it has, and it is smaller"
    (note,) = runner.watcher.notes
    assert note.startswith("version 3 (int4) does not replace version 2: against version 2: facts.accuracy changed by")
    world.targets = {"production": {"from": ["fp8", "int4"]}}
    world.release(Result("int4", b"tiny"))
    assert world.registry.aliases()["production"] == "4"
    assert world.registry.aliases()["production-previous"] == "2"


def test_a_target_takes_the_next_best_where_the_best_is_not_as_good_as_what_serves(world):
    """Red when only the best is asked: the target would go on serving what was superseded."""
    world.release(FIRST)
    world.release(again(), Result("int4", b"small", lost=WORSE))
    assert world.registry.aliases()["fp8"] == world.registry.aliases()["production"] == "3"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_what_passes_alone_and_not_among_three_has_its_own_alias_and_not_the_target(world, order):
    """p 0.04 is below alpha, and two fall to one rival that was not shown to pass: 0.04 is not below 0.05 / 2."""
    world.targets = {"production": {"from": ["fp8", "int4", "nf4"]}, "alone": {"from": ["int4"]}}
    results = [
        Result("fp8", b"first" * 100, p_value=0.001),
        Result("int4", b"small", p_value=0.04),
        Result("nf4", b"other" * 50, "fail", p_value=0.5),
    ]
    world.release(*(results[place] for place in order))
    versions = {version.variant: version for version in world.registry.versions()}
    assert versions["int4"].state == "promoted"
    aliases = world.registry.aliases()
    assert aliases["int4"] == aliases["alone"] == versions["int4"].version
    assert aliases["production"] == versions["fp8"].version


def test_what_holds_among_three_takes_the_target_by_what_it_prefers(world):
    world.targets = {"production": {"from": ["fp8", "int4", "nf4"]}}
    world.release(FIRST, Result("int4", b"small", p_value=0.02), Result("nf4", b"other" * 50, "fail", p_value=0.5))
    assert world.registry.aliases()["production"] == world.registry.aliases()["int4"]


def test_without_a_test_there_is_nothing_to_correct(world: World):
    """A recipe may have limits alone; its champions reach their targets."""
    runner, record = world.run(FIRST)
    found = record.variants[0].verdict
    limits = [finding.model_copy(update={"kind": "limit", "numbers": {}}) for finding in found.findings]
    variant = record.variants[0].model_copy(update={"verdict": found.model_copy(update={"findings": limits})})
    release_run(world.registry, runner, record.model_copy(update={"variants": [variant]}))
    assert world.registry.aliases()["production"] == "2"
