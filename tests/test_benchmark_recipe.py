"""What a recipe may ask of a benchmark, and what it becomes in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from program import tiny_recipe, write_recipe

from quantize.device import choose
from quantize.errors import RecipeError
from quantize.plan import Plan
from quantize.planner import make_plan, needed_environments
from quantize.preflight import Preflight, check
from quantize.recipe import load

IN_PROCESS = {
    "traffic": {"kind": "in_process"},
    "requests": {"kind": "synthetic", "shapes": [{"input": 8, "output": 4}]},
    "loads": [{"kind": "synchronous", "name": "single", "requests": 4}],
    "blocks": 6,
    "curve": [1],
    "curve_requests": 4,
}
SERVED = {
    "loads": [
        {"kind": "synchronous", "name": "single", "requests": 16},
        {"kind": "poisson", "name": "traffic", "requests": 20},
    ]
}
LONG = {"input": 1100, "output": 4}
QUALITY = {"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.1}
TPOT = {"kind": "latency", "metric": "load.tpot_p50/single"}


def recipe(folder: Path, benchmark: dict[str, Any] | None, *gates: dict[str, Any], **changes: Any) -> Path:
    made = tiny_recipe(gates=[QUALITY, *gates], **changes)
    if benchmark is not None:
        made["benchmark"] = benchmark
    return write_recipe(folder, made)


def checked(folder: Path, benchmark: dict[str, Any], *gates: dict[str, Any]) -> Preflight:
    """What `plan` says beside the stages."""
    found = load(recipe(folder, benchmark, *gates)).recipe
    return check(found, found.model.facts(), choose("cpu"), folder / "store", tuple(found.variants))


def plan(folder: Path, benchmark: dict[str, Any] | None = IN_PROCESS, *gates: dict[str, Any], **changes: Any) -> Plan:
    return make_plan(load(recipe(folder, benchmark, *gates, **changes)), choose("cpu"))


@pytest.mark.parametrize(
    ("benchmark", "gate", "sentence"),
    [
        (None, TPOT, "is measured by a `benchmark:`, and this recipe has none"),
        (SERVED, {**TPOT, "metric": "load.tpot_p50/singel"}, "Did you mean 'load.tpot_p50/single'?"),
        (SERVED, {**TPOT, "metric": "load.ttft_p95/single"}, "needs 20 requests in every block"),
        (
            SERVED,
            {"kind": "benefit", "metric": "load.goodput/traffic", "at_least": 0.2},
            "goodput counts what keeps `benchmark.slo`",
        ),
        (SERVED, {"kind": "limit", "metric": "load.tpot_p50/single", "at_most": 1.05}, "take `kind: latency`"),
        ({**SERVED, "alone": True}, TPOT, "there is no baseline to compare with"),
        (
            SERVED,
            {"kind": "slo", "metric": "load.tpot_p50/single", "at_most": 0.1, "target": "prodction"},
            "is not a target of this recipe's registry",
        ),
        (SERVED, {"kind": "benefit", "metric": "memory.peak", "at_least": 0.2}, "weights.bytes"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_with_its_line(tmp_path, benchmark, gate, sentence):
    path = recipe(tmp_path, benchmark, gate)
    with pytest.raises(RecipeError) as refused:
        load(path)
    told = str(refused.value)
    assert sentence in told
    assert f"{path}:" in told


@pytest.mark.parametrize(
    ("benchmark", "sentence"),
    [
        ({**IN_PROCESS, "loads": SERVED["loads"]}, "needs a server that requests can wait for"),
        ({**SERVED, "blocks": 5}, "blocks"),
        ({**SERVED, "curve": [4, 2]}, "the curve's points must rise"),
        ({"loads": [SERVED["loads"][0]] * 2}, "two loads have the name 'single'"),
        ({**SERVED, "slo": {}}, "name at least one of ttft, tpot and e2e"),
        ({**SERVED, "draft": "int9"}, "'int9' is not a variant of this recipe"),
        ({**IN_PROCESS, "draft": "int8"}, "a draft guesses ahead in a server"),
        ({"loads": [{"kind": "sweep", "name": "s", "of_knee": [0.5, 0.504]}]}, "two loads have the name 's-50'"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(tmp_path, benchmark, sentence):
    with pytest.raises(RecipeError, match=sentence):
        load(recipe(tmp_path, benchmark))


def test_a_sweep_is_a_load_at_each_of_its_rates(tmp_path):
    sweep = {"kind": "sweep", "name": "sweep", "of_knee": [0.3, 0.9], "requests": 24}
    loaded = load(recipe(tmp_path, {"loads": [sweep]}, {"kind": "latency", "metric": "load.ttft_p95/sweep-90"}))
    assert loaded.recipe.benchmark is not None
    sent = loaded.recipe.benchmark.sent
    assert [(load.name, load.kind, load.of_knee, load.requests) for load in sent] == [
        ("sweep-30", "constant", 0.3, 24),
        ("sweep-90", "constant", 0.9, 24),
    ]


def test_requests_over_the_context_are_found_before_the_run(tmp_path):
    long = {**IN_PROCESS, "requests": {"kind": "synthetic", "shapes": [{"input": 8, "output": 4}, LONG]}}
    found = checked(tmp_path, long)
    assert any("benchmark.requests.shapes.1" in problem and "over the 1,024" in problem for problem in found.problems)
    assert not checked(tmp_path, IN_PROCESS).problems


def test_a_gate_on_failures_that_so_few_requests_cannot_satisfy_is_named(tmp_path):
    gate = {"kind": "latency", "metric": "load.failures/single"}
    told = [note for note in checked(tmp_path, IN_PROCESS, gate).notes if "load.failures/single" in note]
    sentence = (
        "load.failures/single: to show that at most 0.5 % more requests fail takes 598 of which none does, and 6 "
        "blocks have 24: the gate cannot pass. Raise the load's requests, or the gate's at_most"
    )
    assert told == [sentence]
    many = {**IN_PROCESS, "loads": [{"kind": "synchronous", "name": "single", "requests": 100}]}
    assert not [note for note in checked(tmp_path, many, gate).notes if "failures" in note]


def test_an_eval_may_not_take_the_name_of_what_is_measured_under_load(tmp_path):
    evals = [{**tiny_recipe()["evals"][0], "name": "load"}]
    with pytest.raises(RecipeError, match="an eval may not be called 'load'"):
        load(recipe(tmp_path, None, evals=evals))


def test_the_baseline_is_benchmarked_once_and_every_variant_beside_it(tmp_path):
    made = plan(tmp_path)
    labels = [stage.label for stage in made.stages()]
    assert [label for label in labels if label.startswith("benchmark")] == ["benchmark baseline", "benchmark int8"]
    stages = {stage.label: stage for stage in made.stages()}
    assert stages["benchmark int8"].inputs["reference"] is stages["benchmark baseline"]
    assert all(stages[label].alone == label.startswith("benchmark") for label in labels)
    assert set(stages["judge int8"].inputs) >= {"benchmark", "benchmark.baseline"}


def test_what_is_judged_before_the_benchmark_does_not_depend_on_it(tmp_path):
    before = plan(tmp_path).variants[0].measured(1).judges
    assert "benchmark" not in before[-2].inputs
    assert before[-2].config["rules"]["skipped"] == ["load"]
    assert before[-1].config["rules"]["skipped"] == []


@pytest.mark.parametrize(
    ("change", "renews"),
    [
        ({"blocks": 8}, True),
        ({"request_seconds": 10}, True),
        ({"slo": {"tpot": 0.1}}, False),
        ({"price": {"per_device_hour": 2.0}}, False),
    ],
)
def test_only_what_a_time_depends_on_measures_it_again(tmp_path, change, renews):
    one, other = (
        {stage.label: stage.key for stage in plan(tmp_path, {**IN_PROCESS, **more}).stages()} for more in ({}, change)
    )
    changed = {label for label in one if one[label] != other[label]}
    assert ("benchmark int8" in changed) is renews
    assert {"quantize int8", "evaluate int8 facts"}.isdisjoint(changed)


def test_another_machine_measures_again_and_evaluates_nothing_again(tmp_path, monkeypatch):
    before = {stage.label: stage.key for stage in plan(tmp_path).stages()}
    monkeypatch.setattr("quantize.planner.fingerprint", lambda kind: {"cpu": f"another {kind}"})
    after = {stage.label: stage.key for stage in plan(tmp_path).stages()}
    changed = {label for label in before if before[label] != after[label]}
    assert changed == {"benchmark baseline", "benchmark int8", "judge int8"}


def test_alone_there_is_no_pair_and_no_baseline_to_benchmark(tmp_path):
    made = plan(tmp_path, {**IN_PROCESS, "alone": True})
    stages = {stage.label: stage for stage in made.stages()}
    assert "benchmark baseline" not in stages
    assert "reference" not in stages["benchmark int8"].inputs


def test_a_service_level_of_a_target_judges_what_the_target_may_draw_from(tmp_path):
    level = {"kind": "slo", "metric": "load.tpot_p50/single", "at_most": 0.5, "target": "edge"}
    registry = {"kind": "mlflow", "name": "tiny", "targets": {"edge": {"from": ["int4"]}}}
    variants = [
        *tiny_recipe()["variants"],
        {"name": "int4", "scheme": "W4A16", "method": {"kind": "rtn"}},
    ]
    made = plan(tmp_path, IN_PROCESS, level, registry=registry, variants=variants)
    kinds = {
        way.variant.name: [gate["kind"] for gate in way.measured(1).judges[-1].config["gates"]] for way in made.variants
    }
    assert kinds["int4"][-1] == "slo"
    assert "slo" not in kinds["int8"]


def test_traffic_needs_its_environment(tmp_path):
    loaded = load(recipe(tmp_path, SERVED))
    assert "guidellm" in needed_environments(loaded.recipe, loaded.recipe.variants, "cpu")
    loaded = load(recipe(tmp_path, IN_PROCESS))
    assert needed_environments(loaded.recipe, loaded.recipe.variants, "cpu") == ()
