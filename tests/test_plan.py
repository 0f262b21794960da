"""Keys: what changes a stage's bytes or numbers changes its key, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hub_server import serving
from program import TINY, command, tiny_recipe, write_recipe

from quantize.device import Device, choose
from quantize.errors import MissingDependency, UsageError
from quantize.plan import Plan
from quantize.planner import make_plan
from quantize.recipe import load

ROOT = Path(__file__).parents[1]
LLAMA = ROOT / "tests" / "shapes" / "llama-3.1-8b"
GPTQ = {"name": "int4", "scheme": "W4A16", "method": {"kind": "gptq"}}
SELF = {"kind": "self", "samples": 4, "tokens": 32}
TWO = {
    "calibration": SELF,
    "noise_floor": True,
    "variants": [*tiny_recipe()["variants"], GPTQ],
    "registry": {"kind": "mlflow", "name": "tiny", "targets": {"production": {"from": ["int8", "int4"]}}},
}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Plan the tiny recipe with two variants (one calibrated), changed."""

    def plan(*, device: Device | None = None, only: tuple[str, ...] = (), **changes: Any) -> Plan:
        path = write_recipe(tmp_path, tiny_recipe(**{**TWO, **changes}))
        return make_plan(load(path), device or choose("cpu"), only)

    return plan


def keys(plan: Plan) -> dict[str, str]:
    """Stage label -> key."""
    return {stage.label: stage.key for stage in plan.stages()}


def differing(one: Plan, other: Plan) -> set[str]:
    """Labels of the stages whose keys differ."""
    before, after = keys(one), keys(other)
    assert set(before) == set(after)
    return {label for label in before if before[label] != after[label]}


def test_planning_twice_gives_the_same_keys(planned):
    assert keys(planned()) == keys(planned())


def test_stages_come_after_their_inputs_and_each_has_a_key_of_its_own(planned):
    done: set[str] = set()
    stages = list(planned().stages())
    for stage in stages:
        assert {needed.key for needed in stage.inputs.values()} <= done
        done.add(stage.key)
    assert len(done) == len(stages)


def test_spelling_out_a_default_changes_no_key(planned):
    plain = planned()
    spelled = planned(
        seed=0,
        engine={"kind": "transformers"},
        calibration={**SELF, "seed": 0, "temperature": 1.0, "batch": 16},
        variants=[
            {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}, "ignore": ["lm_head"]},
            {**GPTQ, "group_size": 128},
        ],
        evals=[{**tiny_recipe()["evals"][0], "max_new_tokens": 64}],
        gates=[{**tiny_recipe()["gates"][0], "alpha": 0.05, "advisory": False}],
    )
    assert keys(plain) == keys(spelled)


WIDER = [{**tiny_recipe()["gates"][0], "margin": 0.06}]


def parts(plan: Plan) -> dict[str, str]:
    """Label -> the key under which the looks of an eval are kept."""
    return {stage.label: stage.config["parts"] for stage in plan.stages() if stage.kind == "evaluate"}


def test_a_changed_margin_changes_only_how_variants_are_stopped_and_judged_and_keeps_every_answer(planned):
    before, after = planned(), planned(gates=WIDER)
    stopped = {"evaluate int8 facts", "evaluate int4 facts"}
    assert differing(before, after) == {*stopped, "judge int8", "judge int4"}
    assert parts(before) == parts(after), "what was answered is found again under the new margin"


def test_without_early_stopping_a_changed_margin_changes_only_how_it_is_judged(planned):
    off = {"early_stopping": {"enabled": False}}
    assert differing(planned(**off), planned(gates=WIDER, **off)) == {"judge int8", "judge int4"}


def test_a_limit_or_an_advisory_gate_changes_no_stopping_of_other_evals(planned):
    evals = [*tiny_recipe()["evals"], {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")}]
    limit = {"kind": "limit", "metric": "prose.perplexity", "at_most": 0.1}
    gates = tiny_recipe()["gates"]
    before = planned(evals=evals, gates=[*gates, limit])
    after = planned(evals=evals, gates=[*gates, {**limit, "at_most": 0.2, "advisory": False}])
    assert differing(before, after) == {"judge int8", "judge int4"}


@pytest.mark.parametrize("early", [{"look": 96}, {"share": 0.4}, {"enabled": False}])
def test_how_looks_are_taken_is_in_the_keys_and_a_size_is_in_all_arms(planned, early):
    changed = differing(planned(), planned(early_stopping=early))
    variants = {"evaluate int8 facts", "evaluate int4 facts", "judge int8", "judge int4"}
    baseline = {"evaluate baseline facts", "evaluate noise-floor facts"} if "look" in early else set()
    assert changed == variants | baseline


def test_a_later_attempt_is_measured_from_the_same_answers_and_judged_at_its_own_number(planned):
    way = planned().variants[0]
    first, second = way.measured(1), way.measured(2)
    one, other = first.evaluate["facts"], second.evaluate["facts"]
    assert one.key != other.key
    assert one.config["parts"] == other.config["parts"]
    assert [stage.config["spending"]["attempt"] for stage in (one, other)] == [1, 2]
    rules = [measured.judges[-1].config["rules"] for measured in (first, second)]
    assert [rule["spending"]["attempt"] for rule in rules] == [1, 2]
    assert rules[0]["rules_digest"] == rules[1]["rules_digest"], "the recipe's rules are the same"


def test_a_plan_at_given_attempts_holds_their_stages(planned):
    plan = planned()
    again = {stage.label: stage.key for stage in plan.stages({"int4": 2})}
    before = keys(plan)
    assert {label for label in before if before[label] != again[label]} == {"evaluate int4 facts", "judge int4"}


def test_variants_that_compete_for_a_target_share_its_error_rate_and_others_do_not(planned):
    def choices(plan: Plan) -> list[int]:
        return [way.measured(1).evaluate["facts"].config["spending"]["choices"] for way in plan.variants]

    alone = {"kind": "mlflow", "name": "tiny", "targets": {"a": {"from": ["int8"]}, "b": {"from": ["int4"]}}}
    assert choices(planned()) == [2, 2]
    assert choices(planned(registry=alone)) == [1, 1]
    assert choices(planned(only=("int8",))) == [2], "a verdict does not depend on --only"


def test_the_noise_floor_is_the_baseline_in_other_batches_and_another_order(planned):
    plan = planned()
    noise, baseline = plan.baselines[0].noise["facts"], plan.baselines[0].evaluate["facts"]
    assert noise.label == "evaluate noise-floor facts"
    assert noise.config["seed"] != baseline.config["seed"]
    assert noise.config["engine"] != baseline.config["engine"]
    assert noise.key != baseline.key
    assert noise.inputs["reference"] is baseline
    assert not noise.config["gates"], "the baseline is never stopped"
    quiet = planned(noise_floor=False)
    assert not quiet.baselines[0].noise
    assert all("noise-floor" not in label for label in keys(quiet))
    for way in plan.variants:
        assert way.measured(1).judges[-1].inputs["noise.facts"] is noise


def test_the_confirmation_is_measured_last_and_alone_counts_attempts(planned):
    evals = [{"kind": "items", "name": name, "path": str(TINY / "items.jsonl")} for name in ("fresh", "facts")]
    gates = [{"kind": "noninferiority", "metric": f"{name}.accuracy", "margin": 0.05} for name in ("fresh", "facts")]
    confirmed, plain = planned(evals=evals, gates=gates, confirmation="fresh"), planned(evals=evals, gates=gates)
    assert list(confirmed.variants[0].measured(1).evaluate) == ["facts", "fresh"]
    assert list(plain.variants[0].measured(1).evaluate) == ["fresh", "facts"]
    assert confirmed.counted != plain.counted


def test_attempts_are_counted_on_the_items_of_blocking_tests(planned):
    evals = [*tiny_recipe()["evals"], {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")}]
    limit = {"kind": "limit", "metric": "prose.perplexity", "at_most": 0.1, "advisory": False}
    gates = tiny_recipe()["gates"]
    asked = [{**tiny_recipe()["evals"][0], "max_new_tokens": 8}]
    renamed = [{**tiny_recipe()["evals"][0], "name": "others"}]
    test = {**gates[0], "metric": "others.accuracy"}
    plans = [
        planned(),
        planned(evals=evals, gates=[*gates, limit]),
        planned(gates=WIDER),
        planned(evals=asked),
        planned(evals=renamed, gates=[test]),
        planned(seed=7),
    ]
    datasets = {tuple(plan.counted.values()) for plan in plans}
    assert len(datasets) == 1, "neither a margin, a text, a name nor a setting makes it another eval set"
    assert len({way.measured(1).evaluate["facts"].config["seed"] for way in planned(seed=7).variants}) == 1
    first, second = (planned(seed=seed).baselines[0].evaluate["facts"].config["seed"] for seed in (0, 7))
    assert first == second, "another order of the items cannot be had for the asking"


def test_a_changed_calibration_changes_only_the_way_of_calibrated_variants(planned):
    changed = differing(planned(), planned(calibration={**SELF, "seed": 1}))
    assert changed == {"calibrate self", "quantize int4", "prove int4", "evaluate int4 facts", "judge int4"}


def test_a_changed_variant_leaves_the_others_alone(planned):
    changed = differing(planned(), planned(variants=[tiny_recipe()["variants"][0], {**GPTQ, "group_size": 64}]))
    assert changed == {"quantize int4", "prove int4", "evaluate int4 facts", "judge int4"}


def test_a_changed_eval_item_changes_answers_and_verdicts_and_no_model(planned, tmp_path):
    items = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(items[0])
    first["answer"] = (first["answer"] + 1) % len(first["choices"])
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([json.dumps(first), *items[1:]]), encoding="utf-8")
    changed = differing(planned(), planned(evals=[{"kind": "items", "name": "facts", "path": str(other)}]))
    assert {label.split()[0] for label in changed} == {"evaluate", "judge"}
    assert len(changed) == 6, "baseline, noise floor, and two of each variant"


def test_the_same_bytes_in_another_place_change_no_key(planned, tmp_path):
    shutil.copytree(TINY / "checkpoint", tmp_path / "moved")
    shutil.copy(TINY / "items.jsonl", tmp_path / "moved.jsonl")
    moved = planned(
        model={"kind": "directory", "path": str(tmp_path / "moved")},
        evals=[{"kind": "items", "name": "facts", "path": str(tmp_path / "moved.jsonl")}],
    )
    assert keys(planned()) == keys(moved)


def test_a_changed_model_changes_every_key(planned, tmp_path):
    shutil.copytree(TINY / "checkpoint", tmp_path / "model")
    before = planned(model={"kind": "directory", "path": str(tmp_path / "model")})
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        last = file.read(1)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    after = planned(model={"kind": "directory", "path": str(tmp_path / "model")})
    assert differing(before, after) == set(keys(before))


@pytest.mark.parametrize(
    ("library", "kinds"),
    [
        ("llmcompressor", {"quantize", "prove", "evaluate", "judge"}),
        ("lm_eval", {"evaluate", "judge"}),
        ("scipy", {"judge"}),
    ],
)
def test_the_version_of_a_library_is_in_the_keys_of_what_it_touches(planned, monkeypatch, library, kinds):
    before, version = keys(planned()), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == library else version(name))
    changed = {label for label, key in keys(planned()).items() if key != before[label]}
    assert {label.split()[0] for label in changed if not {"baseline", "noise-floor"} & set(label.split())} == kinds
    assert "fetch" not in changed


def test_a_library_that_is_absent_is_said_with_the_command_that_installs_it(planned, monkeypatch):
    version = metadata.version

    def absent(name: str) -> str:
        if name == "llmcompressor":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(MissingDependency, match="pip install llmcompressor"):
        planned()


def test_another_class_of_device_changes_what_computes_and_not_what_is_fetched(planned):
    changed = differing(planned(), planned(device=Device("cuda", "NVIDIA H100 80GB HBM3", 80 * 10**9)))
    assert changed == set(keys(planned())) - {"fetch"}


def test_the_seed_and_the_threads_are_in_the_keys(planned):
    assert "quantize int8" in differing(planned(), planned(seed=1))
    assert "quantize int8" in differing(planned(), planned(resources={"device": "cpu", "threads": 1}))


def test_only_plans_the_variants_that_are_named(planned):
    alone = planned(only=("int8",))
    assert [way.variant.name for way in alone.variants] == ["int8"]
    assert alone.calibrations() == [], "no variant left that is calibrated"
    assert set(keys(alone).items()) <= set(keys(planned()).items())
    with pytest.raises(UsageError, match=r"--only int9.*int8, int4"):
        planned(only=("int9",))


def test_a_variant_is_judged_on_as_many_evals_as_were_run_each_under_a_key_of_its_own(planned):
    evals = [*tiny_recipe()["evals"], {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")}]
    for way in planned(evals=evals).variants:
        measured = way.measured(1)
        assert list(measured.evaluate) == ["prose", "facts"], "texts first: they have no early end"
        assert len({judge.key for judge in measured.judges}) == len(measured.judges) == 3
        names = [[label for label in judge.inputs if label.startswith("variant.")] for judge in measured.judges]
        assert names == [[], ["variant.prose"], ["variant.prose", "variant.facts"]]
        skipped = [judge.config["rules"]["skipped"] for judge in measured.judges]
        assert skipped == [["prose", "facts"], ["facts"], []]
        assert len({judge.config["rules"]["rules_digest"] for judge in measured.judges}) == 1


def test_a_plan_from_a_config_alone_says_what_only_the_weights_could_tell():
    result = command(
        "plan", ROOT / "recipes/llama-awq.yaml", "--config", LLAMA / "config.json", "--set", "resources.device=cpu"
    )
    assert result.returncode == 0, result.stderr
    assert "not known before fetching: the bytes of its weight files" in result.stdout
    assert "8,030 million parameters" in result.stdout


def test_the_parameters_of_llama_follow_from_its_config():
    result = command("plan", ROOT / "recipes/llama-awq.yaml", "--config", LLAMA / "config.json", "--json")
    document = json.loads(result.stdout)
    assert document["model"]["parameters"] == 8_030_261_248
    assert document["model"]["bytes"] is None
    assert document["stages"] == []


def test_a_plan_against_a_hub_that_serves_a_config_has_keys_and_the_commit(tmp_path):
    with serving("meta-llama/Llama-3.1-8B-Instruct", LLAMA, {"main": "c" * 40, "next": "d" * 40}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

        def plan(*more: str) -> dict[str, Any]:
            arguments = ("plan", ROOT / "recipes/llama-awq.yaml", "--json", "--store", tmp_path / "store", *more)
            result = command(*arguments, **environment)
            assert result.returncode == 0, result.stderr
            return dict(json.loads(result.stdout))

        document = plan()
        pinned = plan("--set", f"model.revision={'c' * 40}")
        other = plan("--set", "model.revision=next")
        assert not [path for path in hub.requests if "safetensors" in path], "a plan downloads no weights"
    kinds = [stage["kind"] for stage in document["stages"]]
    arms = [*["evaluate"] * 4, "quantize", "prove", "evaluate", "evaluate", "judge"]
    assert kinds == ["fetch", "calibrate", *arms], "baseline and noise floor on two evals, then the variant"
    assert all(len(stage["key"]) == 64 for stage in document["stages"])
    assert document["model"]["parameters"] == 8_030_261_248
    assert pinned["stages"] == document["stages"], "a revision is known by its commit"
    assert not {s["key"] for s in other["stages"]} & {s["key"] for s in document["stages"]}
    assert not (tmp_path / "store").exists()


def test_what_is_fetched_is_the_commit_that_was_planned_even_if_the_branch_moves(tmp_path):
    ask = """
import json, sys
from pathlib import Path
from quantize.device import choose
from quantize.planner import make_plan
from quantize.recipe import load
print(json.dumps(make_plan(load(Path(sys.argv[1])), choose("cpu")).fetch.config))
"""
    with serving("meta-llama/Llama-3.1-8B-Instruct", LLAMA, {"main": "c" * 40}) as hub:
        result = subprocess.run(
            [sys.executable, "-c", ask, ROOT / "recipes/llama-awq.yaml"],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert json.loads(result.stdout)["source"]["revision"] == "c" * 40, result.stderr
