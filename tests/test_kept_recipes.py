"""The recipes of this repository, planned without the hub against the shapes of the models that they name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from program import command

from quantize import coverage
from quantize.recipe import load
from quantize.sources import config_facts

ROOT = Path(__file__).parents[1]
#: Recipe, the kept shape, what the plan says of its groups, gigabytes of each variant's weights.
PLANNED = [
    ("llama-fp8", "llama-3.1-8b", "", [9.1, 9.1, 9.1, 9.1]),
    (
        "qwen-int8-smoothquant",
        "qwen3-8b",
        "variants.mixed: 144 attention (W8A8), 108 mlp (W4A16), 0 ignored, of 252 Linears",
        [9.4, 9.4, 9.4, 6.8],
    ),
    (
        "moe-nvfp4",
        "qwen3-30b-a3b",
        "variants.experts-only: 18432 experts (NVFP4A16), 192 ignored, of 18624 Linears",
        [18.1, 18.1, 19.4],
    ),
    ("gguf-edge", "llama-3.2-3b", "llama, 3,213 million parameters", [3.8, 3.1, 2.5, 2.5, 2.3]),
    ("nightly", "qwen3-8b", "", [9.4, 6.1]),
]


@pytest.mark.parametrize(("recipe", "shape", "said", "sizes"), PLANNED)
def test_a_recipe_plans_against_the_shape_of_its_model(tmp_path, recipe, shape, said, sizes):
    config, path = ROOT / "tests" / "shapes" / shape / "config.json", ROOT / "recipes" / f"{recipe}.yaml"
    # What is planned runs nothing: any interpreter will do for the environment that a recipe asks for.
    made = {"QUANTIZE_ENV_LLAMACPP": sys.executable}
    result = command("plan", path, "--config", config, "--store", tmp_path / "store", **made)
    # Room for the variants is asked of the machine that makes them, which need not be this one.
    problems = [line for line in result.stderr.splitlines() if "GB are free" not in line]
    assert not problems
    assert result.returncode in (0, 2), result.stdout
    assert said in result.stdout + result.stderr
    facts = config_facts(json.loads(config.read_text(encoding="utf-8")))
    found = [coverage.weight_bytes(variant, facts, 2) for variant in load(path).recipe.variants]
    assert [round(size / 1e9, 1) for size in found] == sizes


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    assert load(path).recipe.name == path.stem


@pytest.mark.parametrize(("model", "millions"), [("llama-3.2-3b", 3213), ("qwen3-8b", 8191), ("qwen3-30b-a3b", 30532)])
def test_parameters_follow_from_a_config_experts_and_routers_included(model, millions):
    """As their model cards have them: 3.2, 8.2 and 30.5 thousand millions."""
    facts = config_facts(json.loads((ROOT / "tests" / "shapes" / model / "config.json").read_text(encoding="utf-8")))
    assert round(facts.parameters / 1e6) == millions
