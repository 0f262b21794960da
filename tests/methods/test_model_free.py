"""Rounding files without building the model: rtn's numbers, and what cannot be proven afterwards is said before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize import proof
from quantize.device import choose
from quantize.engines import Transformers
from quantize.errors import QuantizeError, SourceError
from quantize.handed import Host, QuantizeJob, silent
from quantize.methods import ModelFree, Rtn
from quantize.preflight import check
from quantize.recipe import load
from quantize.scheme import Group, mixed, preset
from quantize.sources import checkpoint_facts

BASE = TINY / "checkpoint"
SCHEMES = {
    "W8A8": preset("W8A8"),
    "FP8_DYNAMIC": preset("FP8_DYNAMIC"),
    "W4A16": replace(preset("W4A16"), group_size=32),
}


def made(method, out, scheme, source=BASE, ignore=("lm_head",)):
    """What a method writes, and the folder of its witness."""
    (out / "checkpoint").mkdir(parents=True)
    (out / "witness").mkdir()
    job = QuantizeJob(
        checkpoint=source,
        out=out / "checkpoint",
        scheme=scheme,
        ignore=ignore,
        tokens=None,
        device="cpu",
        seed=0,
        witness=partial(proof.record, tokenizer_dir=source, out=out / "witness"),
        refer=partial(proof.refer, baseline=source, out=out / "witness", device="cpu"),
        progress=silent,
        host=Host({}, out),
    )
    method.quantize(job)
    return out / "checkpoint", out / "witness"


def tensors(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def unknown(out):
    """The tiny Llama as a model that transformers does not know."""
    shutil.copytree(BASE, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "model_type": "rwkv9_llama", "architectures": ["Nine"]}))
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_numbers_are_those_of_rtn_and_its_files_are_proven_by_a_reference(tmp_path, scheme):
    import torch

    ours, witness = made(ModelFree(), tmp_path / "ours", SCHEMES[scheme])
    theirs, _ = made(Rtn(), tmp_path / "theirs", SCHEMES[scheme])
    mine, other = tensors(ours), tensors(theirs)
    assert mine.keys() == other.keys(), "the same Linears, and neither head nor embedding"
    kept = [name for name in tensors(BASE) if name in mine and mine[name].dtype == torch.bfloat16]
    assert all(torch.equal(mine[name], tensors(BASE)[name]) for name in kept)
    session = Transformers().open(ours, "cpu")
    same = Transformers().open(theirs, "cpu")
    try:
        result = proof.prove(ours, witness, BASE, session)
        assert result.outcome == "pass", result.sentences
        assert (result.numbers["witness"], result.numbers["fingerprints"]) == ("reference", 28)
        for (name, here), there in zip(session.model.named_parameters(), same.model.parameters(), strict=True):
            if name.endswith(".weight_shape"):
                continue
            step = (here.abs().amax() / 7).item()  # rtn computes scales in float32, this in the dtype of the file
            assert (here - there).abs().max() <= 1.05 * step, name
            assert (here - there).norm() <= 0.05 * there.norm(), name
    finally:
        session.close()
        same.close()


def test_groups_and_ignored_modules_are_taken_by_name(tmp_path):
    mlp = Group("mlp", ("re:.*mlp",), SCHEMES["W4A16"])
    scheme = mixed([mlp, Group("attention", ("re:.*self_attn",), preset("W8A8"))])
    out, _ = made(ModelFree(), tmp_path, scheme, ignore=("lm_head", "re:.*layers.0"))
    names = set(tensors(out))
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert "model.layers.1.mlp.up_proj.weight_packed" in names
    assert "model.layers.1.self_attn.q_proj.weight_scale" in names
    with pytest.raises(QuantizeError, match="matches nothing in the files"):
        made(ModelFree(), tmp_path / "lost", scheme, ignore=("re:.*layer_9",))
    with pytest.raises(QuantizeError, match="is in no group and not ignored"):
        made(ModelFree(), tmp_path / "bare", mixed([mlp, Group("q", ("re:.*q_proj",), preset("W8A8"))]))


@pytest.mark.parametrize("name", ["FP8", "NVFP4"])
def test_ranges_that_are_found_by_running_the_model_are_refused_by_plan(name):
    (said,) = ModelFree().problems(preset(name), checkpoint_facts(BASE))
    assert "model_free runs nothing" in said


def test_experts_in_one_tensor_are_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    shutil.copytree(BASE, tmp_path / "model")
    experts = {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 64, 128, dtype=torch.bfloat16)}
    save_file({**tensors(BASE), **experts}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="holds several experts in one tensor"):
        made(ModelFree(), tmp_path / "out", SCHEMES["W8A8"], tmp_path / "model")


def test_files_of_an_unknown_architecture_are_quantized_and_the_proof_has_no_witness(tmp_path):
    from quantize.proof.witness import nothing_recorded

    source = unknown(tmp_path / "model")
    out, witness = made(ModelFree(), tmp_path / "out", SCHEMES["W8A8"], source)
    assert tensors(out).keys() == tensors(made(ModelFree(), tmp_path / "known", SCHEMES["W8A8"])[0]).keys()
    assert "transformers does not know this architecture" in nothing_recorded(witness)
    with pytest.raises(QuantizeError, match="does not know this architecture"):
        Transformers().open(source, "cpu")


def planned(folder, model, **variant):
    changes = {"name": "int8", "scheme": "W8A8", "method": {"kind": "model_free"}, **variant}
    path = write_recipe(folder, tiny_recipe(model={"kind": "directory", "path": str(model)}, variants=[changes]))
    recipe = load(path).recipe
    return check(recipe, recipe.model.facts(), choose("cpu"), folder, tuple(recipe.variants), environments=False)


def test_of_an_unknown_architecture_plan_names_what_takes_it_and_refuses_what_cannot_measure_it(tmp_path):
    source = unknown(tmp_path / "model")
    found = planned(tmp_path, source, method={"kind": "rtn"}).problems
    assert any("and rtn has to load it. `method: {kind: model_free}`" in problem for problem in found)
    found = planned(tmp_path, source).problems
    assert any("transformers cannot load it to measure it or its baseline" in problem for problem in found)
    taken = planned(tmp_path, source, engine={"kind": "vllm"})
    assert not taken.problems
    assert any("no witness can be made of it" in note for note in taken.notes)
    assert not any("does not know the architecture" in note for note in planned(tmp_path, BASE).notes)


@pytest.mark.slow
def test_a_recipe_with_it_is_judged_like_any_other(tmp_path):
    variants = [{"name": "int8", "scheme": "W8A8", "method": {"kind": "model_free"}}]
    result = command(
        "run", write_recipe(tmp_path, tiny_recipe(variants=variants)), "--store", tmp_path / "store", "--json"
    )
    assert result.returncode in (0, 3, 4), result.stderr
    (variant,) = json.loads(result.stdout)["variants"]
    assert variant["verdict"]["outcome"] != "error"
