"""What `plan` says of groups of modules: counts, bytes, what is in none, and shapes that a scheme does not fit."""

from __future__ import annotations

import pytest
from program import command, problems_of, tiny_recipe, write_recipe

from quantize import coverage
from quantize.device import Device
from quantize.readiness import readiness
from quantize.recipe import Variant, load
from quantize.sources import config_facts

CONFIG = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "dtype": "bfloat16",
}  # fmt: skip
MOE = CONFIG | {"model_type": "qwen3_moe", "num_experts": 3, "moe_intermediate_size": 64, "mlp_only_layers": [1]}
ATTENTION = {"targets": ["re:.*self_attn"], "scheme": "FP8_DYNAMIC"}
MLP = {"targets": ["re:.*mlp"], "scheme": "W4A16", "group_size": 64}


def variant(**changes):
    method = {"kind": "rtn"}
    return Variant.model_validate({"name": "mixed", "method": method, **changes})


def grouped(**groups):
    return variant(config_groups=groups)


def test_counts_and_bytes_are_by_group():
    facts = config_facts(CONFIG)
    problems, (said,) = coverage.check(grouped(attention=ATTENTION, mlp=MLP), facts)
    assert not problems
    assert said == "8 attention (FP8_DYNAMIC), 6 mlp (W4A16), 0 ignored, of 14 Linears"
    attention, mlp = 2 * 4 * 256 * 256, 2 * 3 * 256 * 320
    scales = 2 * 4 * 256 * 2 + mlp // 64 * 2
    rest = 2 * (facts.parameters - attention - mlp)
    assert coverage.weight_bytes(grouped(attention=ATTENTION, mlp=MLP), facts, 2) == attention + mlp / 2 + scales + rest


def test_what_is_ignored_stays_as_it_is_in_bytes_and_in_constraints():
    facts = config_facts(CONFIG)
    whole = variant(scheme="FP8_DYNAMIC")
    kept = variant(scheme="FP8_DYNAMIC", ignore=["lm_head", "re:.*mlp"])
    mlp = 2 * 3 * 256 * 320
    scales = 2 * (320 + 320 + 256) * 2
    assert coverage.weight_bytes(kept, facts, 2) - coverage.weight_bytes(whole, facts, 2) == mlp - scales
    ((_, scheme, narrowed),) = coverage.parts(kept, facts)
    assert scheme.name == "FP8_DYNAMIC" and narrowed.linears == {"256x256": 8}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"attention": ATTENTION}, "6 Linears are in no group, model.layers.0.mlp"),
        ({"all": {**MLP, "targets": ["Linear"]}, "mlp": MLP}, "6 Linears are in several groups"),
        ({"attention": ATTENTION, "mlp": {**MLP, "targets": ["re:.*mpl"]}}, "mlp: 're:.*mpl' matches no Linear"),
    ],
)
def test_patterns_that_leave_something_open_are_problems(groups, said):
    problems, _ = coverage.check(grouped(**groups), config_facts(CONFIG))
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("groups", [{}, {"attention": ATTENTION, "mlp": MLP}], ids=["one scheme", "groups"])
@pytest.mark.parametrize("pattern", ["re:.*self_atn", "model.layers.0.mlp", "down_proj"])
def test_an_ignore_that_leaves_nothing_alone_is_a_problem(groups, pattern):
    made = variant(ignore=["lm_head", pattern], **({"config_groups": groups} if groups else {"scheme": "FP8_DYNAMIC"}))
    problems, _ = coverage.check(made, config_facts(CONFIG))
    (problem,) = problems
    assert problem.startswith(f"ignore: {pattern!r} matches no Linear. The nearest: model.layers.")
    assert coverage.check(made, config_facts({"model_type": "unheard-of"}))[0] == [], "names that are not known"
    wrapped = config_facts({"model_type": "llava", "text_config": CONFIG})
    assert coverage.check(made, wrapped)[0] == [], "names that a model around the text has in another place"


@pytest.mark.parametrize("pattern", ["re:.*lm_head", "re:.*mlp\\.gate$", "model.embed_tokens", "re:.*q_proj", "Linear"])
def test_an_ignore_that_names_what_is_seen_when_the_model_is_loaded_is_none(pattern):
    assert coverage.check(variant(scheme="FP8_DYNAMIC", ignore=[pattern]), config_facts(MOE)) == ([], [])


def test_plan_refuses_an_ignore_that_leaves_nothing_alone(tmp_path):
    made = {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}, "ignore": ["lm_head", "re:.*mpl"]}
    result = command("plan", write_recipe(tmp_path, tiny_recipe(variants=[made])), "--store", tmp_path / "store")
    assert result.returncode == 2
    assert "variants.int8: ignore: 're:.*mpl' matches no Linear" in result.stderr


def test_a_pattern_that_is_no_regular_expression_is_told_with_its_line(tmp_path):
    made = [
        {"name": "one", "scheme": "W8A8", "method": {"kind": "rtn"}, "ignore": ["lm_head", "re:*.self_attn"]},
        {"name": "two", "method": {"kind": "rtn"}, "config_groups": {"a": {**ATTENTION, "targets": ["re:("]}}},
        {"name": "three", "scheme": "W8A8", "method": {"kind": "rtn"}, "ignore": ["re:a{9999999999}", "*.self_attn"]},
    ]
    path = write_recipe(tmp_path, tiny_recipe(variants=made))
    found = [problem for problem in problems_of(path) if "is no regular expression" in problem]
    assert [problem.partition(" ")[2].partition(":")[0] for problem in found] == [
        "variants.0.ignore.1",
        "variants.1.config_groups.a.targets.0",
        "variants.2.ignore.0",
    ]
    assert "'re:*.self_attn' is no regular expression: nothing to repeat at position 0" in found[0]
    lines = path.read_text("utf-8").splitlines()
    for pattern, problem in zip(["re:*.self_attn", "re:(", "re:a{"], found, strict=True):
        assert pattern in lines[int(problem.partition(" ")[0].partition(":")[2]) - 1]


def test_experts_are_counted_one_by_one_and_dense_layers_as_they_are():
    facts = config_facts(MOE)
    assert len(facts.modules) == 2 * 4 + 3 * 3 + 3
    assert facts.modules["model.layers.0.mlp.experts.2.down_proj"] == "256x64"
    assert facts.modules["model.layers.1.mlp.down_proj"] == "256x320"
    experts = {"targets": ["re:.*experts"], "scheme": "NVFP4A16"}
    problems, (said,) = coverage.check(variant(config_groups={"experts": experts}, ignore=["re:(?!.*experts)"]), facts)
    assert not problems and said == "9 experts (NVFP4A16), 11 ignored, of 20 Linears"


def test_plan_holds_each_group_against_its_own_shapes(tmp_path):
    groups = {"attention": ATTENTION, "mlp": {**MLP, "group_size": 96}}
    made = {"name": "mixed", "method": {"kind": "rtn"}, "config_groups": groups}
    path = write_recipe(tmp_path, tiny_recipe(variants=[made], registry={"kind": "mlflow", "name": "tiny"}))
    result = command("plan", path, "--store", tmp_path / "store")
    assert result.returncode == 2
    assert "group size 96 does not divide the input channels of Linear 128x256, 256x128" in result.stderr
    assert "128x128" not in result.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheme": None}, "either a `scheme` or `config_groups`"),
        ({"config_groups": {"a": ATTENTION}}, "either a `scheme` or `config_groups`"),
        ({"scheme": "NF4", "method": {"kind": "bitsandbytes"}, "kv_cache": "fp8"}, "bitsandbytes has no kv_cache"),
        ({"kv_cache": "fp8"}, "kv_cache needs `calibration:`"),
        ({"scheme": "NVFP4"}, "the scheme NVFP4 stores ranges of activations, so it needs `calibration:`"),
        (
            {"scheme": None, "config_groups": {"a": {**ATTENTION, "scheme": "FP8"}}},
            "config_groups.a.scheme: the scheme FP8 stores",
        ),
        ({"scheme": "MXFP4", "group_size": 64}, "group_size has no meaning for MXFP4: its scales are of 32 channels"),
    ],
)
def test_a_variant_says_its_numbers_once_and_what_needs_tokens_says_so(tmp_path, changes, said):
    base = {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}}
    made = {key: value for key, value in {**base, **changes}.items() if value is not None}
    found = problems_of(write_recipe(tmp_path, tiny_recipe(variants=[made])))
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(("told", "refused"), [("auto", False), ("fp8", False), ("bfloat16", True)])
def test_an_engine_that_is_told_to_keep_keys_and_values_unrounded_is_refused(tmp_path, told, refused):
    made = {
        "name": "int8",
        "scheme": "W8A8",
        "method": {"kind": "rtn"},
        "kv_cache": "fp8",
        "engine": {"kind": "vllm", "kv_cache_dtype": told},
    }
    recipe = tiny_recipe(variants=[made], calibration={"kind": "self", "samples": 4, "tokens": 32})
    loaded = load(write_recipe(tmp_path, recipe)).recipe
    problems, _ = readiness(loaded, Device("cpu", "a CPU", None), loaded.variants, environments=False)
    assert bool(problems) == refused
    assert not refused or "keeps keys and values in bfloat16" in problems[0]
