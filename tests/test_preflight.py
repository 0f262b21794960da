"""What cannot work or cannot decide anything is refused before any time is spent, with what would do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from program import command, tiny_recipe, write_recipe

from quantize.artifact import ModelFacts
from quantize.attempts import basis, note
from quantize.device import Device, choose, visible
from quantize.planner import make_plan
from quantize.preflight import check, estimates
from quantize.recipe import load
from quantize.stats import can_pass, least_items, spent_alpha
from quantize.store import Store

ROOT = Path(__file__).parents[1]
LLAMA = ROOT / "tests" / "shapes" / "llama-3.1-8b" / "config.json"
INT4 = {"name": "int4", "scheme": "W4A16", "method": {"kind": "rtn"}}
NO_TARGET = {"kind": "mlflow", "name": "tiny"}


def refused(verb: str, path: Path, *more: str) -> str:
    """What `plan` or `run` says when it refuses; nothing may have been started."""
    store = path.parent / "store"
    result = command(verb, path, "--store", store, *more)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not list(store.rglob("manifest.json"))
    return result.stderr


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_group_size_that_the_shapes_do_not_allow_is_refused_and_those_that_would_do_are_named(tmp_path, verb):
    path = write_recipe(tmp_path, tiny_recipe(variants=[{**INT4, "group_size": 96}], registry=NO_TARGET))
    said = refused(verb, path)
    assert f"{path}: variants.int4: group size 96 does not divide" in said
    assert "Set group_size to 32 or 64 or 128." in said
    assert command("plan", path, "--set", "variants.int4.group_size=64").returncode == 0


def test_a_group_size_is_held_against_a_config_alone_too(tmp_path):
    config = json.loads(LLAMA.read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 14400}), encoding="utf-8")
    result = command("plan", ROOT / "recipes/llama-awq.yaml", "--config", tmp_path / "config.json")
    assert result.returncode == 2
    assert "group size 128 does not divide the input channels of Linear 4096x14400" in result.stderr
    assert "Set group_size to 32 or 64." in result.stderr


def items_of(folder: Path, count: int, slices: dict[str, int] | None = None, size: int = 1) -> Path:
    """An eval set of `count` items without a slice, and some in slices; `size` of them hang together."""
    names = [None] * count + [name for name, size in (slices or {}).items() for _ in range(size)]
    lines = [
        {"id": str(i), "prompt": f"{i}", "choices": [" a", " b"], "answer": 0, **({"slice": name} if name else {})}
        | ({"cluster": f"passage {i // size}"} if size > 1 else {})
        for i, name in enumerate(names)
    ]
    path = folder / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def gated(folder: Path, items: Path, metric: str, margin: float, **recipe: Any) -> Path:
    """The tiny recipe with one eval set and one gate."""
    return write_recipe(
        folder,
        tiny_recipe(
            evals=[{"kind": "items", "name": "facts", "path": str(items)}],
            gates=[{"kind": "noninferiority", "metric": metric, "margin": margin}],
            **recipe,
        ),
    )


#: What a gate's last test has of alpha at a first attempt: 0.05, less what later attempts and early stopping may spend.
SPENT = 0.8 * 6 / math.pi**2 * 0.05


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_too_few_items_for_the_margin_are_refused_with_the_number_and_the_margin_that_would_do(tmp_path, verb):
    path = gated(tmp_path, items_of(tmp_path, 100), "facts.accuracy", 0.02)
    said = refused(verb, path)
    assert "gates facts.accuracy: 100 items cannot show a loss below 2 points" in said
    assert 0.98**193 < SPENT < 0.98**183, "no fewer than 184; the exact test is a little stricter"
    assert "at least 193 are needed at the alpha of 0.024" in said
    assert "raise the margin to 3.9 points" in said


def test_the_least_number_of_items_follows_from_the_alpha_that_is_spent(tmp_path):
    """Red when the whole alpha, or another share of it, is planned with."""

    def least(**recipe: Any) -> int:
        path = gated(tmp_path, items_of(tmp_path, 10), "facts.accuracy", 0.02, **recipe)
        found = load(path).recipe
        (said,) = check(found, found.model.facts(), choose("cpu"), tmp_path, tuple(found.variants)).problems
        return int(said.rsplit("at least ", 1)[1].split()[0])

    assert least() == least_items(0.02, SPENT)
    assert least(early_stopping={"share": 0.6}) == least_items(0.02, SPENT / 2)
    assert least(early_stopping={"enabled": False}) == least_items(0.02, SPENT / 0.8)
    assert least(early_stopping={"enabled": False}) < least() < least(early_stopping={"share": 0.6})


def test_the_number_that_is_named_would_do_though_a_smaller_one_did_too(tmp_path):
    """The exact test is discrete: of 77 items it passes, of 78 it does not. Red when only the least is compared."""
    assert least_items(0.05, SPENT) == 77
    said = refused("plan", gated(tmp_path, items_of(tmp_path, 78), "facts.accuracy", 0.05))
    assert "at least 79 are needed" in said
    assert command("plan", gated(tmp_path, items_of(tmp_path, 77), "facts.accuracy", 0.05)).returncode == 0


def test_a_variant_that_was_tried_too_often_to_pass_is_refused_and_others_are_not(tmp_path):
    """Every attempt costs alpha; in the end no answer may change any more, and then none would be enough."""
    int8, other = tiny_recipe()["variants"][0], {**INT4, "group_size": 64}
    path = gated(tmp_path, items_of(tmp_path, 100), "facts.accuracy", 0.05, variants=[int8, other])
    recipe = load(path).recipe

    def problems(attempts: dict[str, int]) -> tuple[str, ...]:
        variants = tuple(recipe.variants)
        return check(recipe, recipe.model.facts(), choose("cpu"), tmp_path, variants, attempts).problems

    last = max(k for k in range(1, 20) if can_pass(100, 0.05, spent_alpha(0.05, k, 0.2)))
    assert 1 <= last < 19
    assert problems({}) == problems({"int8": 1}) == problems({"int8": last}) == ()
    (said,) = problems({"int8": last + 1, "int4": last})
    assert said.startswith("variants.int8: gates facts.accuracy: 100 items cannot show a loss below 5 points")
    assert f"early stopping and at attempt {last + 1}." in said
    assert "raise the margin to" in said
    assert said.endswith("or leave it out with --only")
    assert len(problems({"int8": last + 1, "int4": last + 1})) == 2


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_attempts_that_the_store_knows_are_held_against_a_new_artifact_alone(finished, copied, verb):
    """Another seed makes another artifact, which would be one attempt more; what was made keeps its number."""
    _, _, path = finished
    store, plan = Store(copied), make_plan(load(path), choose("cpu"))
    baseline = store.find("fetch", plan.fetch.key)
    assert baseline is not None
    note(store, [basis(baseline.checkpoint_digest(), plan.counted["facts"], "int8")], "0" * 64, 40)
    before = sorted(copied.rglob("manifest.json"))
    result = command(verb, path, "--store", copied, "--set", "seed=5")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "variants.int8: gates facts.accuracy: 200 items cannot show a loss below 5 points" in result.stderr
    assert "at attempt 41" in result.stderr
    assert "variants.int4-gptq" not in result.stderr
    assert sorted(copied.rglob("manifest.json")) == before
    assert command("plan", path, "--store", copied, "--set", "seed=5", "--only", "int4-gptq").returncode == 0
    assert command("plan", path, "--store", copied).returncode == 0


def test_a_gate_on_readability_has_only_the_items_that_are_answered_freely(tmp_path):
    """Red when all items count: of 200 only ten could be unreadable."""
    path = items_of(tmp_path, 190)
    free = [json.dumps({"id": f"free {i}", "prompt": f"free {i}", "answer": "1"}) for i in range(10)]
    path.write_text("\n".join([*path.read_text(encoding="utf-8").splitlines(), *free]), encoding="utf-8")
    said = refused("plan", gated(tmp_path, path, "facts.parsed", 0.05))
    assert "gates facts.parsed: 10 items cannot show a loss below 5 points" in said
    assert command("plan", gated(tmp_path, path, "facts.accuracy", 0.05)).returncode == 0


def test_clusters_are_what_counts_where_items_hang_together(tmp_path):
    """400 items would do; 40 passages of ten are no more than 40 items."""
    path = items_of(tmp_path, 400, size=10)
    said = refused("plan", gated(tmp_path, path, "facts.accuracy", 0.02))
    assert "gates facts.accuracy: 40 clusters (400 items, 10 in the largest) cannot show a loss below 2 points" in said
    assert "at least 185 are needed" in said or "at least 184 are needed" in said
    assert "Add clusters, or raise the margin to" in said
    assert command("plan", gated(tmp_path, path, "facts.accuracy", 0.09)).returncode == 0


def test_unequal_clusters_need_more_than_equal_ones(tmp_path):
    """One passage of thirty among small ones: what it could change alone is much."""
    equal = items_of(tmp_path, 400, size=2)
    assert command("plan", gated(tmp_path, equal, "facts.accuracy", 0.05)).returncode == 0
    lines = equal.read_text(encoding="utf-8").splitlines()
    joined = [json.dumps({**json.loads(line), "cluster": "long"}) for line in lines[:30]]
    equal.write_text("\n".join([*joined, *lines[30:]]), encoding="utf-8")
    assert "30 in the largest) cannot show a loss below 5 points" in refused(
        "plan", gated(tmp_path, equal, "facts.accuracy", 0.05)
    )


def test_the_power_is_told_for_the_alpha_that_is_spent_and_clusters_are_named(tmp_path):
    recipe = load(gated(tmp_path, items_of(tmp_path, 400, size=2), "facts.accuracy", 0.05)).recipe
    found = check(recipe, recipe.model.facts(), choose("cpu"), tmp_path, tuple(recipe.variants))
    (note,) = (note for note in found.notes if " power " in note)
    assert note.startswith("facts.accuracy: 400 items in 200 clusters (the table is for unclustered ones)")
    assert "alpha 0.024" in note


@pytest.mark.parametrize("count", [1, 2, 10, 59, 100, 192])
def test_the_margin_and_the_number_that_are_named_would_do_and_less_would_not(tmp_path, count):
    def problems(items: int, margin: float) -> tuple[str, ...]:
        folder = tmp_path / f"{items}-{margin}"
        folder.mkdir(exist_ok=True)
        loaded = load(gated(folder, items_of(folder, items), "facts.accuracy", margin))
        facts = loaded.recipe.model.facts()
        return check(loaded.recipe, facts, choose("cpu"), tmp_path, tuple(loaded.recipe.variants)).problems

    (said,) = problems(count, 0.02)
    margin = float(said.rsplit("margin to ", 1)[1].removesuffix(" points"))
    needed = int(said.rsplit("at least ", 1)[1].split()[0])
    assert not problems(count, margin / 100)
    assert problems(count, (margin - 0.1) / 100)
    assert not problems(needed, 0.02)
    assert problems(needed - 1, 0.02)


def test_too_few_items_in_a_slice_are_refused_though_the_whole_set_is_large(tmp_path):
    items = items_of(tmp_path, 300, {"reading": 40, "maths": 90})
    said = refused("plan", gated(tmp_path, items, "facts.accuracy/reading", 0.05))
    assert "gates facts.accuracy/reading: 40 items cannot show a loss below 5 points" in said
    assert command("plan", gated(tmp_path, items, "facts.accuracy/maths", 0.05)).returncode == 0


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_gate_on_a_slice_that_is_not_there_is_refused_with_the_slices(tmp_path, verb):
    items = items_of(tmp_path, 10, {"reading": 100, "maths": 100})
    said = refused(verb, gated(tmp_path, items, "facts.accuracy/readin", 0.05))
    assert "the eval 'facts' has no slice 'readin': it has maths, reading" in said


def test_a_limit_on_a_slice_that_is_not_there_is_refused_too(tmp_path):
    recipe = tiny_recipe()
    recipe["gates"].append({"kind": "limit", "metric": "facts.accuracy/nope", "at_most": 0.1})
    assert "has no slice 'nope'" in refused("plan", write_recipe(tmp_path, recipe))


def test_an_empty_slice_is_no_slice(tmp_path):
    assert "has no slice ''" in refused("plan", gated(tmp_path, items_of(tmp_path, 200), "facts.accuracy/", 0.05))


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_store_that_cannot_be_written_is_said_so_before_anything_runs(make_recipe, tmp_path, verb):
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = command(verb, make_recipe(), "--store", tmp_path / "file" / "store")
    assert result.returncode == 2
    assert f"there is a file called {tmp_path / 'file'}: choose another store with --store" in result.stderr


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_gpu_that_is_asked_for_and_not_there_is_refused_with_a_mend(make_recipe, tmp_path, verb):
    path = make_recipe(resources={"device": "cuda"})
    result = command(verb, path, "--store", tmp_path / "store", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "asks for a CUDA device and this machine shows none" in result.stderr
    assert "--set resources.device=cpu" in result.stderr
    assert command("plan", path, "--set", "resources.device=cpu", CUDA_VISIBLE_DEVICES="").returncode == 0


def test_a_variant_of_floats_for_a_method_of_integers_is_refused(make_recipe, tmp_path):
    path = make_recipe(
        variants=[{"name": "fp8", "scheme": "FP8_DYNAMIC", "method": {"kind": "gptq"}}],
        calibration={"kind": "self"},
        registry=NO_TARGET,
    )
    assert "variants.fp8: gptq needs integer weights" in refused("plan", path)


def test_a_disk_that_is_too_small_is_a_problem_and_a_memory_that_is_too_small_a_note(make_recipe, tmp_path):
    recipe = load(make_recipe()).recipe
    huge = ModelFacts(
        architecture="llama", layers=1, hidden_size=1, vocab_size=1, dtype="bfloat16",
        linears={"1000000x1000000": 10**9}, parameters=10**21, bytes=None, unknown=[],
    )  # fmt: skip
    found = check(recipe, huge, Device("cpu", "small", 10**9), tmp_path, tuple(recipe.variants))
    assert any("the variants need about" in problem for problem in found.problems)
    assert any("of memory and small has 1 GB" in note for note in found.notes)


def test_a_run_without_flips_needs_no_more_than_what_the_notes_say(make_recipe, tmp_path):
    recipe = load(make_recipe()).recipe
    found = check(recipe, recipe.model.facts(), choose("cpu"), tmp_path, tuple(recipe.variants))
    assert found.problems == ()
    (note,) = (note for note in found.notes if " power " in note)
    assert note.startswith("facts.accuracy: 200 items; for 90 % power")


def test_the_disk_of_a_variant_is_estimated_within_a_tenth(finished):
    store, _, recipe = finished
    loaded = load(recipe)
    plan = make_plan(loaded, choose("cpu"))
    facts = loaded.recipe.model.facts()
    for cost in estimates(plan, facts, Store(store)):
        assert cost.cached and cost.measured
        if cost.stage.kind == "quantize":
            folder = Store(store).path("quantize", cost.stage.key) / "checkpoint"
            weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
            assert abs(cost.disk - weights) < weights / 10


def test_a_dry_run_refuses_what_a_plan_refuses(tmp_path):
    path = gated(tmp_path, items_of(tmp_path, 10), "facts.accuracy", 0.02)
    assert "cannot show a loss" in refused("run", path, "--dry-run")


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["A", "B"]),
        ("", []),
        ("-1", []),
        ("1", ["B"]),
        ("1,0", ["B", "A"]),
        ("0,7,1", ["A"]),
        ("GPU-b1", ["B"]),
        ("GPU-nope", []),
    ],
)
def test_the_gpus_are_those_that_cuda_would_show(wanted, names):
    found = {"GPU-a1-1": Device("cuda", "A", 1), "GPU-b1-2": Device("cuda", "B", 1)}
    assert [device.name for device in visible(found, wanted)] == names
