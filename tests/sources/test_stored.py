"""Models that come quantized: dequantized into what their numbers mean, or refused in `plan` with the reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize import proof
from quantize.device import Device, choose
from quantize.errors import SourceError
from quantize.handed import Host, QuantizeJob, silent
from quantize.methods import Rtn
from quantize.methods._constraints import PACKED_EXPERTS
from quantize.planner import make_plan
from quantize.preflight import check
from quantize.recipe import load
from quantize.scheme import preset
from quantize.sources import Directory, checkpoint_facts, config_facts
from quantize.store import Store

BASELINE = TINY / "checkpoint"
SIDE = 32


def configured(folder: Path, settings: dict) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    return folder


def in_blocks(weight, side: int):
    """Its FP8 values and the scale of each block, the last of them narrower where they do not fit."""
    import torch

    rows, columns = (-(-size // side) for size in weight.shape)
    whole = torch.zeros(rows * side, columns * side)
    whole[: weight.shape[0], : weight.shape[1]] = weight.float()
    blocks = whole.reshape(rows, side, columns, side)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    whole = (blocks / scales).reshape(whole.shape)
    return whole[: weight.shape[0], : weight.shape[1]].to(torch.float8_e4m3fn).contiguous(), scales[:, 0, :, 0].clone()


def save_fp8(folder: Path, side: int) -> Path:
    """The tiny Llama as DeepSeek's models are published, in two shards; scales may lie in the other one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(BASELINE, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name], tensors[f"{name}_scale_inv"] = in_blocks(tensors[name], side)
    names, mapping = sorted(tensors), {}
    cut = names.index("model.layers.2.mlp.down_proj.weight_scale_inv")
    for number, part in enumerate((names[:cut], names[cut:])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{number}.safetensors", {"format": "pt"})
        mapping |= dict.fromkeys(part, f"part-{number}.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [side, side]}
    return configured(folder, settings)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return save_fp8(tmp_path_factory.mktemp("fp8") / "model", SIDE)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A gpt-oss of random weights, its experts in MXFP4."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, GptOssConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("oss") / "model"
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GptOssConfig(**sizes, **heads, **ids, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, (experts, rows, columns // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASELINE / file, folder / file)
    return configured(folder, {"quant_method": "mxfp4"})


def fetched(model: Path, out: Path) -> Path:
    """Its dequantized form: nothing is left beside it of what it was made from."""
    (out / "checkpoint").mkdir(parents=True)
    Directory(path=str(model), dequantize=True).fetch(out / "checkpoint", silent)
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    assert "quantization_config" not in json.loads((out / "checkpoint" / "config.json").read_text())
    return out / "checkpoint"


def weights(checkpoint: Path, **arguments):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="bfloat16", **arguments).state_dict()


def same(ours, theirs):
    import torch

    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fp8_in_blocks_becomes_the_numbers_that_transformers_makes_of_it(fp8, tmp_path):
    from transformers import FineGrainedFP8Config

    found = fetched(fp8, tmp_path)
    assert same(weights(found), weights(fp8, quantization_config=FineGrainedFP8Config(dequantize=True)))
    assert not same(weights(found), weights(BASELINE))
    facts = checkpoint_facts(found)
    assert (facts.stored, facts.linears) == (None, checkpoint_facts(BASELINE).linears)


def test_blocks_that_do_not_fit_a_matrix_are_cut_at_its_edge(tmp_path):
    import torch
    from safetensors.torch import load_file

    found = weights(fetched(save_fp8(tmp_path / "model", 48), tmp_path / "out"))
    for name, weight in load_file(BASELINE / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            values, scales = in_blocks(weight, 48)
            each = scales.repeat_interleave(48, 0).repeat_interleave(48, 1)[: weight.shape[0], : weight.shape[1]]
            assert torch.equal(found[name], (values.float() * each).to(torch.bfloat16)), name


def test_mxfp4_becomes_the_numbers_that_transformers_makes_of_it(gpt_oss, tmp_path):
    from transformers import Mxfp4Config

    assert same(weights(fetched(gpt_oss, tmp_path)), weights(gpt_oss, quantization_config=Mxfp4Config(dequantize=True)))


@pytest.mark.parametrize("scheme", ["W4A16", "FP8_DYNAMIC", "NVFP4A16"])
def test_compressed_tensors_become_the_numbers_that_the_engine_computes_with(scheme, tmp_path):
    import torch

    from quantize.engines import Transformers

    numbers = preset(scheme) if scheme != "W4A16" else replace(preset(scheme), group_size=32)
    for name in ("packed", "witness"):
        (tmp_path / name).mkdir()
    witness = partial(proof.record, tokenizer_dir=BASELINE, out=tmp_path / "witness")
    where, host = tmp_path / "packed", Host({}, tmp_path)
    Rtn().quantize(QuantizeJob(BASELINE, where, numbers, ("lm_head",), None, "cpu", 0, witness, silent, host))
    assert checkpoint_facts(where).modules == config_facts(json.loads((BASELINE / "config.json").read_text())).modules
    found = weights(fetched(where, tmp_path / "out"))
    engine = Transformers().open(where, "cpu").model
    with torch.inference_mode():
        engine(torch.tensor([[5]]))
    for name, module in engine.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert torch.equal(found[f"{name}.weight"], module.weight.to(torch.bfloat16)), name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "GPTQ rounded them after the model was trained"),
        ({"quant_method": "awq", "bits": 4}, "AWQ rounded them"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes rounded them"),
        ({"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}, "not those of blocks"),
        ({"quant_method": "quark"}, "no library here turns them into floats"),
        ({}, "its weights are stored as an unnamed format"),
        ({"quant_method": "compressed-tensors"}, "cannot be read"),
    ],
)
def test_what_cannot_be_a_baseline_is_refused_by_plan_with_the_reason_and_what_would_do(tmp_path, settings, says):
    shutil.copytree(BASELINE, tmp_path / "model")
    configured(tmp_path / "model", settings or {"bits": 4})
    source = Directory(path=str(tmp_path / "model"), dequantize=True)
    (said,) = source.problems(source.facts())
    assert says in said
    assert "method: {kind: existing, …}" in said
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError):
        source.fetch(tmp_path / "out", silent)


def test_plan_asks_for_dequantize_and_says_what_the_baseline_is_then(fp8, tmp_path):
    def planned(**model):
        recipe = load(write_recipe(tmp_path, tiny_recipe(model={"kind": "directory", **model}))).recipe
        return check(recipe, recipe.model.facts(), choose("cpu"), tmp_path, tuple(recipe.variants))

    (said,) = planned(path=str(fp8)).problems
    assert "stored as FP8 in blocks of 32 x 32. Set `model.dequantize: true`" in said
    taken = planned(path=str(fp8), dequantize=True)
    assert not taken.problems
    assert "the baseline is the model dequantized from FP8 in blocks of 32 x 32 to bfloat16" in taken.notes[0]
    (said,) = planned(path=str(BASELINE), dequantize=True).problems
    assert "model.dequantize: the weights are plain floats already" in said
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="Set `model"):
        Directory(path=str(fp8)).fetch(tmp_path / "out", silent)


def test_what_dequantizes_is_in_the_key_and_keys_of_plain_models_are_as_they_were(fp8, tmp_path):
    def fetch(**model):
        path = write_recipe(tmp_path, tiny_recipe(model={"kind": "directory", **model}))
        return make_plan(load(path), Device("cpu", "a CPU", None)).fetch

    assert fetch(path=str(BASELINE)).libraries == ("safetensors",)
    assert "dequantize" not in Directory(path=str(BASELINE)).identity()
    assert "compressed-tensors" in fetch(path=str(fp8), dequantize=True).libraries
    assert fetch(path=str(fp8)).key != fetch(path=str(fp8), dequantize=True).key


def test_a_weight_without_its_scale_is_named(fp8, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(fp8, tmp_path / "model")
    for path in sorted((tmp_path / "model").glob("*.safetensors")):
        tensors = load_file(path)
        tensors.pop("model.layers.3.mlp.up_proj.weight_scale_inv", None)
        save_file(tensors, path, {"format": "pt"})
    index = tmp_path / "model" / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())["weight_map"]
    mapping.pop("model.layers.3.mlp.up_proj.weight_scale_inv")
    index.write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    with pytest.raises(SourceError, match=r"model\.layers\.3\.mlp\.up_proj\.weight \(F8_E4M3\)"):
        fetched(tmp_path / "model", tmp_path / "out")


def test_experts_that_llmcompressor_cannot_take_apart_are_refused_by_plan(gpt_oss):
    from llmcompressor.modeling.moe.conversion_mappings import ARCH_TO_IMPORT_PATHS, has_linearize_load_mappings

    facts = Directory(path=str(gpt_oss)).facts()
    (said,) = Rtn().problems(preset("W8A8"), facts)
    assert "no names for the experts of a gpt_oss" in said
    assert {name for name in ARCH_TO_IMPORT_PATHS if not has_linearize_load_mappings(name)} >= PACKED_EXPERTS


@pytest.mark.slow
def test_a_run_on_an_fp8_model_measures_against_what_was_dequantized_and_says_so(fp8, tmp_path):
    model = {"kind": "directory", "path": str(fp8), "dequantize": True}
    store = tmp_path / "store"
    result = command("run", write_recipe(tmp_path, tiny_recipe(model=model)), "--store", store, "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    record = json.loads(result.stdout)
    assert "the baseline is the model dequantized from FP8" in record["remarks"][0]
    assert [variant["verdict"]["outcome"] for variant in record["variants"]] != ["error"]
    assert Store(store).find("fetch", record["baseline_stages"]["fetch"]).summary["notes"] == record["remarks"][:1]
