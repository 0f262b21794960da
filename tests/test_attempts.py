"""Trying again on one eval set costs alpha: every new artifact of a variant is counted, wherever it was judged."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest
from program import command, tiny_recipe, write_recipe
from release_world import Result, World

from quantize.attempts import Ledger, basis, note, tags_of
from quantize.errors import StoreError
from quantize.evidence import Evidence, Spending
from quantize.judgement import Collected, Rules, decide
from quantize.proof import Proof
from quantize.release import release_run
from quantize.run import RunRecord
from quantize.verdict import Decision

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
THIRD = Result("fp8", b"third" * 80)


def attempt(record: RunRecord, place: int = 0) -> int:
    return record.variants[place].verdict.attempt


def decided(record: RunRecord) -> Decision:
    decision = record.variants[0].decision
    assert decision is not None
    return decision


def told(world: World) -> list[dict[str, str]]:
    """The attempts that the registry's versions tell, by version."""
    tags = [version.tags for version in world.registry.versions()]
    return [{key: value for key, value in one.items() if key.startswith("attempt.")} for one in tags]


def test_each_new_artifact_of_a_variant_is_one_attempt_more_and_its_version_says_so(world):
    records = [world.release(result) for result in (FIRST, SECOND, THIRD)]
    assert [attempt(record) for record in records] == [1, 2, 3]
    (tag,) = tags_of(records[0].variants[0].verdict.bases, 1)
    assert told(world) == [{}, {tag: "1"}, {tag: "2"}, {tag: "3"}]


def test_an_attempt_counts_whatever_came_of_it(world):
    world.release(Result("fp8", b"bad", "fail"))
    world.release(Result("fp8", b"doubtful", "inconclusive"))
    assert attempt(world.release(FIRST)) == 3


def test_the_same_artifact_keeps_its_number(world):
    world.release(FIRST)
    world.release(SECOND)
    assert attempt(world.release(Result("fp8", FIRST.weights, note=" again"))) == 1
    assert attempt(world.release(Result("fp8", SECOND.weights, note=" again"))) == 2
    assert attempt(world.release(THIRD)) == 3


def test_another_variant_and_another_eval_set_start_at_one(world):
    world.release(FIRST)
    world.release(SECOND)
    assert attempt(world.release(Result("int4", b"small"))) == 1
    world.eval_set = "others"
    assert attempt(world.release(THIRD)) == 1
    world.eval_set = "items"
    assert attempt(world.release(Result("fp8", b"fourth"))) == 3


def test_attempts_are_counted_by_baseline_eval_set_and_variant():
    grounds = {basis(*parts) for parts in [("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x")]}
    assert len(grounds) == 4
    ledger = Ledger()
    one, *others = sorted(grounds)
    ledger.add(one, "first", 1)
    assert [ledger.attempt([ground], "second") for ground in (one, *others)] == [2, 1, 1, 1]


def test_where_two_sources_disagree_the_later_number_counts():
    ledger = Ledger()
    for number in (1, 3, 2):
        ledger.add("ground", "artifact", number)
    assert ledger.attempt(["ground"], "artifact") == 3
    assert ledger.attempt(["ground"], "another") == 4


def test_where_several_evals_count_the_greatest_number_holds():
    ledger = Ledger()
    ledger.add("one", "first", 1)
    ledger.add("other", "first", 1)
    ledger.add("other", "second", 2)
    assert ledger.attempt(["one", "other"], "third") == 3
    assert ledger.attempt(["one"], "third") == 2
    assert ledger.attempt([], "third") == 1


def test_a_version_says_its_attempt_on_each_eval_that_it_was_shown(world):
    bases = [basis("baseline", dataset, "fp8") for dataset in ("facts", "reading")]

    def released(result: Result, shown: list[str]) -> Decision:
        runner, record = world.run(result)
        variant = record.variants[0]
        verdict = variant.verdict.model_copy(update={"bases": shown, "attempt": 1})
        variants = [world.judged(variant, verdict)]
        return decided(release_run(world.registry, runner, record.model_copy(update={"variants": variants})))

    assert released(FIRST, bases[:1]).action == "promote"
    again = released(SECOND, bases)
    assert again.action == "hold", "on the one eval it is the second, whatever it is on the other"
    assert "judged as attempt 1 on this eval set, and the registry knows 1 before it" in again.sentence
    assert told(world) == [{}, tags_of(bases[:1], 1), tags_of(bases, 2)]
    assert len(tags_of(bases, 2)) == 2
    ledger = Ledger.of_versions(world.registry.versions())
    assert [ledger.attempt([base], "another") for base in bases] == [3, 3]


def test_a_verdict_counts_on_the_evals_that_the_variant_was_shown():
    """Red when every eval of the recipe counts: what a hopeless variant never saw, it has not tried."""
    evidence = Evidence(
        variant="fp8", artifact_digest="a" * 64, baseline_digest="b" * 64, measurements=[], baseline_measurements=[],
        comparisons=[], hard_stops=[],
    )  # fmt: skip
    rules = Rules(
        variant="fp8", rules_digest="r" * 64, counted={"facts": "1" * 64, "reading": "2" * 64}, spending=Spending()
    )
    proof = Proof(outcome="pass", sentences=("It does.",), numbers={})

    def bases(*shown: str) -> list[str]:
        rows = {f"{arm}.{name}": "d" * 64 for name in shown for arm in ("baseline", "variant")}
        return decide(Collected(evidence, {}, proof, (), rows), [], rules).bases

    assert bases() == []
    assert bases("facts", "prose") == [basis("b" * 64, "1" * 64, "fp8")]
    assert len(set(bases("facts", "reading"))) == 2


def test_an_attempt_counts_from_the_moment_its_artifact_is_shown_an_item(world):
    """A run that is killed while it evaluates has judged nothing, and has seen what it has seen."""
    note(world.store, ["ground"], "artifact", 1)
    assert Ledger.of(world.store, ()).attempt(["ground"], "another") == 2


def test_a_ledger_that_cannot_be_read_is_named_with_its_line(world):
    note(world.store, ["ground"], "artifact", 1)
    with (world.store.root / "attempts.jsonl").open("a") as file:
        file.write('{"basis": "gro')
    with pytest.raises(StoreError, match="no attempt of this program") as caught:
        Ledger.of(world.store, ())
    assert str(caught.value.where).endswith("attempts.jsonl:2")


def test_a_line_that_was_cut_off_spoils_itself_and_not_the_next(world):
    note(world.store, ["ground"], "first", 1)
    path = world.store.root / "attempts.jsonl"
    with path.open("a") as file:
        file.write('{"basis": "gro')
    note(world.store, ["ground"], "second", 2)
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines if line.endswith("}")))
    assert Ledger.of(world.store, ()).attempt(["ground"], "third") == 3


def test_what_was_judged_and_not_released_counts_in_its_store(world):
    world.run(FIRST)
    world.run(FIRST)
    _, record = world.run(SECOND)
    assert attempt(record) == 2
    assert attempt(world.release(THIRD)) == 3


def test_what_another_store_has_released_counts(world, tmp_path):
    other = World(tmp_path / "other", world.uri)
    other.release(FIRST)
    _, record = world.run(SECOND)
    assert attempt(record) == 2


def test_a_verdict_at_too_low_an_attempt_is_held_and_judged_at_its_own_the_next_time(world, tmp_path):
    """Red when the held version is tagged with the number of its verdict: it would be held for ever."""
    runner, record = world.run(SECOND)
    World(tmp_path / "other", world.uri).release(FIRST)
    assert attempt(record) == 1
    stale = decided(release_run(world.registry, runner, record))
    assert stale.action == "hold"
    assert "judged as attempt 1 on this eval set, and the registry knows 1 before it. Run again" in stale.sentence
    assert world.registry.aliases()["fp8"] == "2"
    assert world.registry.versions()[2].state == "inconclusive"
    again = world.release(SECOND)
    assert attempt(again) == 2
    assert decided(again).action == "promote"
    assert world.registry.aliases()["fp8"] == "3"
    assert attempt(world.release(THIRD)) == 3


def test_a_confirmation_counts_only_the_variants_that_were_shown_it(world):
    world.confirmation = True
    world.release(Result("fp8", b"bad", "fail"))
    assert told(world) == [{}, {}]
    assert attempt(world.release(FIRST)) == 1


@pytest.mark.slow
def test_every_verdict_of_a_real_run_spends_the_alpha_of_its_attempt(tmp_path):
    """On the tiny Llama, without releasing: two artifacts of one variant, then the first again."""
    gates = [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.5}]
    recipe = tiny_recipe(noise_floor=False, gates=gates, registry={"kind": "mlflow", "name": "tiny"})
    recipe["variants"] = [{"name": "int4", "scheme": "W4A16", "method": {"kind": "rtn"}}]
    path = write_recipe(tmp_path, recipe)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}

    def judged(group_size: int) -> dict[str, Any]:
        where = ("--store", tmp_path / "store", "--no-release", "--json")
        result = command("run", path, "--set", f"variants.int4.group_size={group_size}", *where, **environment)
        assert result.returncode in (0, 3, 4), result.stderr
        verdict = json.loads(result.stdout)["variants"][0]["verdict"]
        found = next(finding for finding in verdict["findings"] if finding["kind"] == "noninferiority")
        assert found["numbers"]["attempt"] == verdict["attempt"]
        return dict(found["numbers"])

    first, second, again = judged(64), judged(32), judged(64)
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["alpha"] == pytest.approx(0.05 * 6 / math.pi**2)
    assert second["alpha"] == pytest.approx(first["alpha"] / 4)
    assert again == first
