"""A run on 1 to 64 GPUs in virtual time, by the shipped scheduler: near the lower bound, whatever it is told."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from scale import H100, measured, model_of, plan_of, sharing_of
from virtual_run import lower_bound, simulate

from quantize.sharing import Cost, Sharing

#: What a run may take, as a multiple of what no schedule goes below.
NEAR = 1.2
#: The same for plans at random: whoever does not see what comes may be off by nearly 2 (R. L. Graham 1966).
FAR = 1.7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Plans and what their stages take, by model and whether there are benchmarks."""
    folder = tmp_path_factory.mktemp("scale")
    asked = [("8b", True), ("8b", False), ("70b", True), ("400b", True)]
    return {(name, timed): model_of(name, plan_of(name, folder, timed)) for name, timed in asked}


@pytest.mark.parametrize(
    ("name", "timed", "gpus"),
    [
        ("8b", True, (1, 4, 64)),
        ("8b", False, (2, 4, 8)),
        ("70b", True, (4, 8, 32)),
        ("400b", True, (16, 64)),
    ],
)
def test_the_last_verdict_of_a_large_model_is_near_the_lower_bound(models, name, timed, gpus):
    rows = [measured(models[name, timed], many) for many in gpus]
    assert all(1 - 1e-9 <= row.ratio <= NEAR for row in rows), rows


def test_where_stages_run_one_at_a_time_the_nearest_verdict_does_not_wait_for_the_last(models):
    for name, gpus in (("8b", 1), ("400b", 16)):
        row = measured(models[name, True], gpus)
        assert row.first < 0.3 * row.makespan


def test_where_many_run_the_longest_ways_begin_beside_the_nearest(models):
    model = models["8b", False]
    plan = model.plan
    seconds = {stage.label: model.cost(stage).seconds for stage in plan.stages()}
    begun = {
        gpus: {
            way.variant.name: simulate(plan, sharing_of(model, gpus), seconds).spans[way.quantize.key][0]
            for way in plan.variants
        }
        for gpus in (1, 4)
    }
    assert begun[4]["int4-gptq"] < begun[4]["nvfp4"] and begun[4]["int4-awq"] < begun[4]["nvfp4"]
    assert begun[1]["nvfp4"] < begun[1]["int4-gptq"] and begun[1]["nvfp4"] < begun[1]["int4-awq"]


def test_a_model_that_needs_more_gpus_than_there_are_has_no_time(models):
    assert measured(models["70b", True], 2).makespan is None


def drawn(draw, plan):
    """Seconds of a plan's stages at random, and bytes; a variant's are long or short together."""
    pace = {way.variant.name: 10 ** draw.uniform(0, 1) for way in plan.variants}
    seconds, costs = {}, {}
    for stage in plan.stages():
        base = {"judge": 5.0, "fetch": 300.0}.get(stage.kind, 10 ** draw.uniform(1.5, 3))
        seconds[stage.label] = base * next((pace[name] for name in pace if name in stage.name.split()), 1.0)
        wanted = draw.choice([0.3, 0.6, 0.9, 1.5]) * H100.memory if stage.kind not in ("fetch", "judge") else 1e9
        costs[stage.label] = Cost(seconds[stage.label], wanted)
    return seconds, costs


def ratio(plan, seed, off):
    """A drawn plan's time over its lower bound, where estimates are wrong by a factor of `off` at most."""
    draw = random.Random(seed)
    seconds, costs = drawn(draw, plan)
    gpus = draw.choice([2, 3, 4, 6, 8, 16])
    told = {label: Cost(cost.seconds * off ** draw.uniform(-1, 1), cost.memory) for label, cost in costs.items()}
    made = [Sharing.of(plan, plan.recipe.resources, [H100] * gpus, None, it) for it in (costs, told)]
    bound = lower_bound(plan, made[0], seconds)[1]
    return simulate(plan, made[1], seconds).makespan / bound


@pytest.mark.parametrize("timed", [True, False], ids=["benchmarks", "none"])
@pytest.mark.parametrize("off", [1.0, 3.0])
def test_random_plans_are_mostly_near_the_lower_bound_even_where_estimates_are_wrong(models, timed, off):
    ratios = sorted(ratio(models["8b", timed].plan, seed, off) for seed in range(12))
    print(f"off by {off}: median {ratios[6]:.2f}, worst {ratios[-1]:.2f}")
    assert ratios[0] >= 1 - 1e-9
    assert ratios[6] <= NEAR and ratios[-1] <= FAR


def test_the_same_plan_runs_in_the_same_way_twice(models):
    model = models["70b", True]
    seconds = {stage.label: model.cost(stage).seconds for stage in model.plan.stages()}
    one, two = (simulate(model.plan, sharing_of(model, 8), seconds) for _ in range(2))
    assert one == two
