"""Rotations: those in the weights come out as they were in memory; the others are refused where they would be lost."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize.compatibility import verdict
from quantize.device import Device
from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gptq, Quip, Rtn, Spinquant
from quantize.methods._constraints import rotation_problems
from quantize.proof import prove, record
from quantize.scheme import preset

SOURCE = TINY / "checkpoint"
INT4 = replace(preset("W4A16"), group_size=64)


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A function: a method -> its checkpoint and the proof in transformers."""

    def run(method, scheme):
        root = tmp_path_factory.mktemp(method.kind)
        out, witness = root / "checkpoint", root / "witness"
        out.mkdir()
        witness.mkdir()
        told = partial(record, tokenizer_dir=SOURCE, out=witness)
        job = QuantizeJob(
            SOURCE, out, scheme, ("lm_head",), None, "cpu", 0, told, lambda *_: None, Host({}, Path(root))
        )
        method.quantize(job)
        session = Transformers().open(out, "cpu")
        try:
            return out, prove(out, witness, SOURCE, session, "transformers")
        finally:
            session.close()

    return run


@pytest.mark.parametrize("method", [Spinquant(), Spinquant(transform="random-hadamard", rotations=("R1",))])
def test_rotations_in_the_weights_are_loaded_as_they_were_in_memory(proven, method):
    from safetensors.torch import load_file

    out, result = proven(method, INT4)
    assert result.outcome == "pass", result.sentences
    before, after = (load_file(folder / "model.safetensors") for folder in (SOURCE, out))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert not before[name].equal(after[name]), "the residual stream is rotated"
    assert set(
        json.loads((out / "config.json").read_text())["quantization_config"]["transform_config"]["config_groups"]
    )


@pytest.mark.parametrize("method", [Spinquant(rotations=("R1", "R2", "R4")), Quip()])
def test_rotations_that_an_engine_must_do_fail_the_proof_in_transformers_and_plan_refuses_them(
    proven, tmp_path, method
):
    _, result = proven(method, preset("W8A8"))
    assert result.outcome == "fail" and "KL" in result.sentences[0]
    assert method.format == "compressed-tensors+rotations"
    variant = {"name": "turned", "scheme": "W8A8", "method": method.model_dump(mode="json")}
    registry = {"kind": "mlflow", "name": "tiny"}
    planned = command(
        "plan", write_recipe(tmp_path, tiny_recipe(variants=[variant], registry=registry)), "--store", tmp_path
    )
    assert planned.returncode == 2
    assert "variants.turned: transformers does not serve compressed-tensors+rotations W8A8 here" in planned.stderr
    assert "R1 and R2" in planned.stderr


def test_vllm_rotates_on_gpus_only():
    gpu, cpu = Device("cuda", "a GPU", None, capability=(9, 0)), Device("cpu", "a CPU", None)
    assert verdict(Quip().format, preset("W8A8"), "vllm", gpu).outcome == "yes"
    assert verdict(Quip().format, preset("W8A8"), "vllm", cpu).outcome == "no"
    assert Spinquant().format == "compressed-tensors"


def test_widths_that_no_rotation_fits_are_named_with_what_would_do():
    (odd,) = rotation_problems("spinquant", "hadamard", None, {"the hidden size": 576})
    assert "the hidden size (576)" in odd and "block_size" in odd
    assert rotation_problems("spinquant", "hadamard", 64, {"the hidden size": 576}) == []
    assert rotation_problems("spinquant", "random-matrix", None, {"the hidden size": 576}) == []
    (undivided,) = rotation_problems("quip", "random-hadamard", 128, {"the hidden size": 576})
    assert "blocks of 128" in undivided


def test_rotating_needs_tokens_where_what_rounds_afterwards_does():
    assert not Spinquant(then=Rtn()).calibrated and Spinquant(then=Gptq()).calibrated
