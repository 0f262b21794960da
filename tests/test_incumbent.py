"""A candidate replaces what serves only if it is shown to be as good as that, not only as the baseline."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
from program import seldom
from release_world import Result, World, answers

from quantize.errors import DataError, QuantizeError, RegistryError
from quantize.gates import NonInferiority
from quantize.handed import Row
from quantize.incumbent import Contest, rows_of_version
from quantize.metrics import Items
from quantize.registry import VersionState
from quantize.release import release_run
from quantize.run import RunRecord
from quantize.verdict import Decision, Finding
from quantize.watcher import Watcher

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
    """Red when only the baseline is asked (`against_champion` gives nothing): both have passed against that one."""
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


def test_a_version_says_what_it_was_measured_with_and_is_held_where_the_champion_says_another(world):
    world.release(FIRST)
    (_, champion) = world.registry.versions()
    assert champion.tags["measured_on"].startswith("transformers on cpu")
    world.registry.tag("2", {"measured_on": "transformers on NVIDIA H100"})
    decision = decided(world.release(again()))
    assert decision.action == "hold"
    assert "it was measured with transformers on NVIDIA H100, the candidate with transformers on" in decision.sentence
    assert world.registry.aliases()["fp8"] == "2"


# --- without a registry --------------------------------------------------------------------------------------------


def state(number: str, **tags: str) -> VersionState:
    return VersionState(number, "fp8", "passed", number, None, "", {"weight_bytes": "1", **tags}, ())


def contest(
    held: list[Row], found: list[Row], *, attempt: int = 1, rivals: int = 1, measured_on: tuple[str, str] = ("", "")
) -> Finding:
    """The finding between two arms' rows."""
    metric = Items(name="facts", path="items.jsonl")
    gate = NonInferiority(metric="facts.accuracy", margin=0.05)
    judge = Contest([metric], [gate], lambda _name: answers("items"), None).judge
    before, after = (state(number, measured_on=where) for number, where in zip("23", measured_on, strict=True))
    (finding,) = judge(before, lambda _name: held, after, lambda _name: found, attempt=attempt, rivals=rivals)
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


def test_half_of_alpha_is_for_looking_whether_or_not_there_is_an_end():
    """Red when the share follows from where the arms stopped: that was chosen by what was seen."""
    for looks in (6, 10):
        finding = contest(answers("items", looks=looks), answers("items"), attempt=2)
        assert (finding.outcome, finding.numbers["n"]) == ("pass", 30 * looks)
        assert finding.numbers["alpha"] == pytest.approx(0.05 * 6 / (2 * math.pi) ** 2)
        assert finding.numbers["spent"] == pytest.approx(0.5 * finding.numbers["alpha"])


def test_where_any_of_several_may_be_asked_each_has_its_share_of_alpha():
    alone, among = (contest(answers("items"), answers("items"), rivals=rivals) for rivals in (1, 4))
    assert among.numbers["alpha"] == pytest.approx(alone.numbers["alpha"] / 4)
    few = [contest(answers("items"), answers("items", range(31, 37)), rivals=rivals) for rivals in (1, 4)]
    assert [finding.numbers["losses"] for finding in few] == [5, 5]
    assert [finding.outcome for finding in few] == ["pass", "inconclusive"]


@pytest.mark.parametrize(
    ("measured_on", "compared"),
    [
        (("transformers on cpu", "transformers on cpu"), True),
        (("", "transformers on cpu"), True),  # registered before this was written down
        (("transformers on cpu", "transformers on NVIDIA H100"), False),
        (("vllm on cpu", "transformers on cpu"), False),
    ],
)
def test_arms_of_another_engine_or_device_are_not_compared(measured_on, compared):
    """Red when their rows are paired all the same: they differ by the engine, and nobody knows by how much."""
    finding = contest(answers("items"), answers("items"), measured_on=measured_on)
    assert finding.outcome == ("pass" if compared else "inconclusive")
    if not compared:
        assert f"it was measured with {measured_on[0]}, the candidate with {measured_on[1]}" in finding.sentence
        assert "Run its recipe on this eval set first" in finding.sentence


def test_a_trade_buys_accuracy_of_a_whole_eval_and_nothing_else():
    """Red when it widens every margin: a smaller model that cannot be read, or that fails one slice, was not meant."""
    metric = Items(name="facts", path="items.jsonl")
    quantities = ("accuracy", "accuracy/common", "parsed")
    gates = [NonInferiority(metric=f"facts.{quantity}", margin=0.05) for quantity in quantities]
    rows: list[Row] = [{**row, "slice": "common", "parsed": 1.0, "tokens": 3.0} for row in answers("items")]

    def margins(size: str) -> list[object]:
        judge = Contest([metric], gates, lambda _name: rows, (0.3, 0.15)).judge
        before, after = state("2", weight_bytes="10"), state("3", weight_bytes=size)
        findings = judge(before, lambda _name: rows, after, lambda _name: rows, attempt=1, rivals=1)
        return [finding.numbers["margin"] for finding in findings]

    assert margins("7") == [0.15, 0.05, 0.05]
    assert margins("8") == [0.05, 0.05, 0.05]


def test_an_arm_without_rows_is_inconclusive_and_a_registry_that_is_silent_is_no_finding():
    """Red when every error is a finding: a server that was down for a minute would have decided."""
    metric = Items(name="facts", path="items.jsonl")
    gates = [NonInferiority(metric="facts.accuracy"), NonInferiority(metric="facts.accuracy", advisory=True)]
    whole = answers("items")

    def judged(error: QuantizeError) -> list[Finding]:
        def absent(_name: str) -> list[Row]:
            raise error

        judge = Contest([metric], gates, lambda _name: whole, None).judge
        return judge(state("2"), absent, state("3"), lambda _name: whole, attempt=1, rivals=1)

    (finding,) = judged(DataError("version 2 was never measured."))
    assert finding.outcome == "inconclusive"
    assert finding.sentence.endswith("facts.accuracy: version 2 was never measured.")
    with pytest.raises(RegistryError, match="nobody answers"):
        judged(RegistryError("nobody answers."))


def test_a_champion_whose_rows_are_not_in_its_run_cannot_be_compared(world):
    world.release(FIRST)
    (_, champion) = world.registry.versions()
    rows = rows_of_version(world.registry, champion)
    assert len(rows("facts")) == 300
    with pytest.raises(DataError, match="rests on no rows of reading"):
        rows("reading")
    with pytest.raises(DataError, match="version 2 was never measured"):
        rows_of_version(world.registry, state("2"))("facts")


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


def test_a_target_is_taken_at_the_candidates_attempt_and_at_a_share_of_alpha(world):
    """Red when every takeover is a first attempt at the whole of alpha."""
    world.release(FIRST)
    world.release(Result("int4", b"small", lost=WORSE))
    runner, record = world.run(Result("int4", b"tiny", lost=WORSE))
    runner.watcher = Noting()
    assert decided(release_run(world.registry, runner, record)).action == "promote"
    (note,) = runner.watcher.notes
    assert note.startswith("version 4 (int4) does not replace version 2: ")
    share = 0.05 / 2 * 6 / (2 * math.pi) ** 2
    assert f"Attempt 2 on this eval set, judged at alpha {share:.2g}." in note


def test_small_losses_do_not_add_up_in_a_target_that_has_skipped_a_champion(world):
    """Red when a champion of the same variant takes the target unasked: here it replaces the one before the last."""
    targets = world.targets
    world.release(FIRST)
    world.targets = {}
    assert decided(world.release(again(lost=range(31, 34)))).action == "promote"
    world.targets = targets
    runner, record = world.run(Result("fp8", b"third" * 80, lost=range(31, 38)))
    runner.watcher = Noting()
    decision = decided(release_run(world.registry, runner, record))
    assert (decision.action, decision.against[0].numbers["losses"]) == ("promote", 3)
    aliases = world.registry.aliases()
    assert (aliases["fp8"], aliases["production"]) == ("4", "2")
    assert "6 lost, 0 gained" in runner.watcher.notes[0]


def test_quality_is_preferred_by_the_difference_and_not_by_its_limit(world):
    """Red when the limit ranks: an early stop leaves it wide, and would cost the better variant the target."""
    world.targets = {"production": {"from": ["fp8", "int4"], "prefer": "quality"}}
    stopped = Result("fp8", b"first" * 100, lower=-0.045, difference=0.001)
    complete = Result("int4", b"small", lower=-0.02, difference=-0.01)
    world.release(complete, stopped)
    versions = {version.variant: version for version in world.registry.versions()}
    assert float(versions["fp8"].tags["lower"]) < float(versions["int4"].tags["lower"])
    assert world.registry.aliases()["production"] == versions["fp8"].version


@pytest.mark.parametrize("order", seldom(permutations(range(3)), often=((1, 2, 0),)))
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
    verdict = found.model_copy(update={"findings": limits})
    variant = world.judged(record.variants[0], verdict)
    release_run(world.registry, runner, record.model_copy(update={"variants": [variant]}))
    assert world.registry.aliases()["production"] == "2"
