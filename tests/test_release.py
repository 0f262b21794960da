"""From verdicts to versions and aliases, on a real MLflow database."""

from __future__ import annotations

import socket
import time

import pytest
from release_world import Result, World

from quantize import operate
from quantize.errors import RegistryError, StoreError
from quantize.registry import VersionState
from quantize.release import release_run
from quantize.run import VariantRecord, read_record
from quantize.verdict import Decision

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
SMALL = Result("int4", b"small" * 10, lower=-0.04)
WORSE = range(30, 80)  # 50 items of 300 lost, of which the baseline had 40


def aliases(world: World) -> dict[str, str]:
    return world.registry.aliases()


def version(world: World, number: str) -> VersionState:
    return next(v for v in world.registry.versions() if v.version == number)


def decision_of(variant: VariantRecord) -> Decision:
    assert variant.decision is not None
    return variant.decision


def test_the_first_release_makes_the_baseline_version_1_and_promotes_what_passed(world):
    record = world.release(FIRST)
    assert [(v.version, v.variant, v.state) for v in world.registry.versions()] == [
        ("1", "baseline", "baseline"),
        ("2", "fp8", "promoted"),
    ]
    assert aliases(world) == {
        "fp8": "2",
        "fp8-candidate": "2",
        "fp8-previous": "1",
        "production": "2",
        "production-previous": "1",
    }
    decision = decision_of(record.variants[0])
    assert (decision.action, decision.model_version, decision.previous_version) == ("promote", "2", None)
    assert decision.aliases == {"fp8": "2", "fp8-candidate": "2", "production": "2"}
    assert "is what it is" in decision.sentence


def test_a_promotion_makes_the_old_champion_the_previous_one(world):
    world.release(FIRST)
    decision = decision_of(world.release(SECOND).variants[0])
    assert decision.previous_version == "2"
    assert {a: v for a, v in aliases(world).items() if v != "1"} == {
        "fp8": "3",
        "fp8-candidate": "3",
        "fp8-previous": "2",
        "production": "3",
        "production-previous": "2",
    }
    assert [v.state for v in world.registry.versions()] == ["baseline", "superseded", "promoted"]


@pytest.mark.parametrize(
    ("outcome", "action", "state"),
    [("fail", "reject", "rejected"), ("error", "reject", "error"), ("inconclusive", "hold", "inconclusive")],
)
def test_what_did_not_pass_becomes_a_version_and_no_alias_moves(world, outcome, action, state):
    world.release(FIRST)
    before = aliases(world)
    record = world.release(Result("fp8", b"third" * 10, outcome))
    assert decision_of(record.variants[0]).action == action
    assert version(world, "3").state == state
    assert aliases(world) == before


def test_with_nothing_passed_a_target_serves_the_baseline(world):
    world.release(Result("fp8", b"bad" * 10, "fail"))
    assert aliases(world) == {"production": "1"}


def test_the_same_verdict_is_decided_once_and_then_opens_no_run(world):
    world.release(FIRST, SMALL)
    mlflow = client(world)
    before, runs = world.registry.versions(), len(all_runs(mlflow))
    record = world.release(FIRST, SMALL)
    assert [variant.decision for variant in record.variants] == [None, None]
    assert world.registry.versions() == before
    assert len(all_runs(mlflow)) == runs


def test_a_new_verdict_about_the_same_bytes_uses_the_version_there_is(world):
    world.release(Result("fp8", FIRST.weights, "inconclusive"))
    world.release(FIRST)
    assert [(v.version, v.state) for v in world.registry.versions()] == [("1", "baseline"), ("2", "promoted")]
    again = decision_of(world.release(Result("fp8", FIRST.weights, note=" still")).variants[0])
    assert "stays the champion" in again.sentence
    assert aliases(world)["fp8-previous"] == "1"


def test_a_champion_that_fails_anew_is_rejected_and_keeps_its_aliases(world):
    world.release(FIRST)
    before = aliases(world)
    decision = decision_of(world.release(Result("fp8", FIRST.weights, "fail")).variants[0])
    assert decision.action == "reject"
    assert "fp8, production still point at it" in decision.sentence
    assert version(world, "2").state == "rejected"
    assert aliases(world) == before


@pytest.mark.parametrize(("prefer", "best"), [("bytes", "3"), ("quality", "2")])
def test_a_target_takes_the_best_champion_by_what_it_prefers(world, prefer, best):
    world.targets = {"edge": {"from": ["fp8", "int4"], "prefer": prefer}}
    world.release(FIRST, SMALL)
    assert aliases(world)["edge"] == best


def test_a_target_leaves_out_what_did_not_pass_and_what_it_does_not_draw_from(world):
    world.targets = {"production": {"from": ["fp8", "int4"]}, "edge": {"from": ["fp8"]}}
    world.release(FIRST, Result("int4", SMALL.weights, "fail"))
    assert aliases(world)["production"] == "2"
    world.release(Result("int4", b"tiny"))
    assert {alias: aliases(world)[alias] for alias in ("production", "production-previous", "edge")} == {
        "production": "4",
        "production-previous": "2",
        "edge": "2",
    }


def test_a_target_that_a_recipe_adds_is_set_without_a_new_verdict(world):
    world.release(FIRST)
    world.targets = {**world.targets, "edge": {"from": ["fp8"]}}
    record = world.release(FIRST)
    assert record.variants[0].decision is None
    assert aliases(world)["edge"] == "2"


def test_a_variant_whose_stage_failed_gets_no_version(world):
    runner, record = world.run(FIRST, SMALL)
    failed = record.variants[1].verdict.model_copy(update={"artifact_digest": "", "outcome": "error"})
    variants = [record.variants[0], record.variants[1].model_copy(update={"verdict": failed, "evidence": None})]
    record = release_run(world.registry, runner, record.model_copy(update={"variants": variants}))
    assert [v.variant for v in world.registry.versions()] == ["baseline", "fp8"]
    assert record.variants[1].decision is None


def test_another_baseline_under_the_same_name_is_refused(world):
    world.release(FIRST)
    world.baseline = b"another model"
    with pytest.raises(RegistryError, match=r"baseline is .* Another base model needs another registry\.name"):
        world.release(SECOND)
    assert len(world.registry.versions()) == 2


def test_a_registered_model_of_somebody_else_is_refused(world):
    mlflow = client(world)
    mlflow.create_registered_model("tiny")
    mlflow.create_model_version("tiny", source=(world.folder / "theirs").as_uri())
    with pytest.raises(RegistryError, match="was not made by quantize"):
        world.release(FIRST)
    assert aliases(world) == {}


def test_bytes_that_changed_since_they_were_judged_are_not_published(world):
    """Red when the digests are not recomputed from bytes before publishing (`Runner.verify` in `_register`)."""
    runner, record = world.run(FIRST)
    stage = runner.plan.variants[0].quantize
    file = world.store.path(stage.kind, stage.key) / "checkpoint" / "model.safetensors"
    file.write_bytes(b"FIRST" * 100)
    with pytest.raises(StoreError, match="sha256"):
        release_run(world.registry, runner, record)
    assert [v.variant for v in world.registry.versions()] == ["baseline"]
    assert {run.info.status for run in all_runs(client(world))} == {"FAILED"}


def test_an_artifact_that_the_verdict_is_not_about_is_not_published(world):
    """Red when the artifact's digest is not compared with the verdict's (`wanted` in `_register`)."""
    runner, record = world.run(FIRST)
    verdict = record.variants[0].verdict.model_copy(update={"artifact_digest": "f" * 64})
    variants = [record.variants[0].model_copy(update={"verdict": verdict})]
    with pytest.raises(RegistryError, match="not the one that the verdict is about"):
        release_run(world.registry, runner, record.model_copy(update={"variants": variants}))
    assert [v.variant for v in world.registry.versions()] == ["baseline"]


def test_every_arm_is_a_run_with_the_same_names_and_its_evidence(world):
    record = world.release(FIRST, Result("int4", SMALL.weights, "fail"))
    mlflow = client(world)
    runs = {run.info.run_name: run for run in all_runs(mlflow)}
    assert set(runs) == {record.run, "baseline", "fp8", "int4"}
    parent = runs[record.run].info.run_id
    for arm in ("baseline", "fp8", "int4"):
        assert runs[arm].data.tags["mlflow.parentRunId"] == parent
        assert {"facts.accuracy", "facts.accuracy.low", "facts.accuracy.high"} <= set(runs[arm].data.metrics)
        assert runs[arm].info.status == "FINISHED"
    assert runs["fp8"].data.params["scheme"] == "W8A8"
    assert runs[record.run].data.params["gates.0.margin"] == "0.05"
    assert runs["int4"].data.tags["quantize.action"] == "reject"
    differences = {"", ".low", ".high"}
    extra = {"attempt"} | {f"facts.accuracy/slice ü.difference{end}" for end in differences}
    own = {arm: {name for name in runs[arm].data.metrics if not name.startswith("stage.")} for arm in runs}
    assert own["fp8"] == own["int4"] == own["baseline"] | extra
    papers = {file.path for file in mlflow.list_artifacts(runs["fp8"].info.run_id)}
    written = {"checklist.json", "checklist.md", "serving"}
    assert papers == {"decision.json", "verdict.json", "evidence.json", "rows", *written}
    assert {file.path for file in mlflow.list_artifacts(runs["int4"].info.run_id)} == papers - written
    for arm in ("baseline", "fp8", "int4"):
        rows = mlflow.list_artifacts(runs[arm].info.run_id, "rows/facts")
        assert [file.path for file in rows] == ["rows/facts/rows.parquet"]
    kept = {file.path for file in mlflow.list_artifacts(parent)}
    assert kept == {"recipe.yaml", "report.html", "report.md", "run.json"}


def test_the_record_on_disk_has_the_decisions_and_the_report_is_beside_it(world):
    runner, record = world.run(FIRST)
    released = release_run(
        world.registry, runner, record, lambda r: {"report.md": str(decision_of(r.variants[0]).action)}
    )
    assert read_record(runner.directory) == released
    assert (runner.directory / "report.md").read_text(encoding="utf-8") == "promote"


def test_a_rolled_back_version_is_not_promoted_again_by_a_run(world):
    world.release(FIRST)
    world.release(SECOND)
    operate.rollback(world.registry, "fp8", None, "customers complain", "eva")
    decision = decision_of(world.release(Result("fp8", SECOND.weights, note=" again")).variants[0])
    assert decision.action == "hold"
    assert "rolled back before" in decision.sentence
    assert aliases(world)["fp8"] == "2"
    assert version(world, "3").state == "rolled_back"


def test_an_operators_target_stays_until_something_new_passes(world):
    world.release(FIRST, SMALL)
    operate.rollback(world.registry, "production", "1", "customers complain", "eva")
    world.release(FIRST, SMALL)
    assert aliases(world)["production"] == "1"
    world.release(SECOND)
    assert aliases(world)["production"] == "4"


def test_a_target_set_by_hand_stays_when_a_variant_passes_that_it_does_not_draw_from(world):
    world.targets = {"production": {"from": ["fp8", "int4"]}, "edge": {"from": ["int4"]}}
    world.release(FIRST, SMALL)
    world.release(Result("int4", b"tiny"))
    operate.promote(world.registry, "edge", "3", "the device has the memory", "eva", force=False)
    world.release(SECOND)
    assert aliases(world)["edge"] == "3"
    world.release(Result("int4", b"tinier"))
    assert aliases(world)["edge"] == "6"


def test_a_server_that_is_down_is_named_at_once_and_the_same_run_is_released_later(world):
    runner, record = world.run(FIRST)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(RegistryError, match=r"does not answer.*the same command then releases") as error:
            release_run(world.registry.model_copy(update={"uri": dead}), runner, record)
    assert time.monotonic() - began < 20
    assert "secret" not in str(error.value)
    assert decision_of(release_run(world.registry, runner, record).variants[0]).action == "promote"


def client(world: World):
    from mlflow import MlflowClient

    return MlflowClient(world.uri, world.uri)


def all_runs(mlflow) -> list:
    experiment = mlflow.get_experiment_by_name("tiny")
    return list(mlflow.search_runs([experiment.experiment_id])) if experiment else []


def test_a_report_that_cannot_be_drawn_costs_no_decision(world):
    def broken(_record):
        raise ValueError("no such number")

    runner, record = world.run(FIRST)
    released = release_run(world.registry, runner, record, broken)
    assert decision_of(released.variants[0]).action == "promote"
    assert not (runner.directory / "report.md").exists()
    assert read_record(runner.directory) == released
