"""An adapter merged into its base answers as the two did side by side; what cannot be merged whole is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize.errors import SourceError
from quantize.handed import silent
from quantize.recipe import load
from quantize.sources import Directory, Lora, checkpoint_facts

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import serving

BASE = TINY / "checkpoint"
ASK = """
import json, sys
from pathlib import Path
from quantize.handed import silent
from quantize.sources import Lora
model = Lora(base={"kind": "directory", "path": sys.argv[1]}, adapter={"repo": "org/adapter"})
identity = model.identity()
assert not model.problems(model.facts()) and "rank 4" in model.notes(model.facts())[0]
out = Path(sys.argv[2]) / "checkpoint"
out.mkdir(parents=True)
pinned = model.pinned(identity)
pinned.fetch(out, silent)
print(json.dumps({"identity": identity["adapter"], "revision": pinned.adapter.revision}))
"""
KINDS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "ranks": {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"v_proj": 32},
    },
    "dora": {"r": 4, "target_modules": ["up_proj"], "use_dora": True},
    "head": {"r": 4, "target_modules": ["lm_head", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A function: name of a kind -> the adapter's directory, and the base with it beside its weights, in float32."""
    made = {}

    def make(kind):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        if kind not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
            adapter = get_peft_model(model, LoraConfig(**KINDS[kind]))
            with torch.no_grad():
                for name, parameter in adapter.named_parameters():
                    if ".lora_" in name and "magnitude" not in name:
                        parameter.normal_(0, 0.05)
            out = tmp_path_factory.mktemp(kind)
            adapter.save_pretrained(out, save_embedding_layers=False)
            made[kind] = out, adapter.eval()
        return made[kind]

    return make


def source(adapter: Path, **base) -> Lora:
    return Lora(base={"kind": "directory", "path": str(BASE), **base}, adapter={"path": str(adapter)})


def fetched(model: Lora, out: Path) -> Path:
    (out / "checkpoint").mkdir(parents=True)
    model.fetch(out / "checkpoint", silent)
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    return out / "checkpoint"


def changed(adapter: Path, out: Path, **settings) -> Path:
    shutil.copytree(adapter, out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_answers_as_base_and_adapter_did(adapted, tmp_path, kind):
    import torch
    from transformers import AutoModelForCausalLM

    adapter, beside = adapted(kind)
    found = fetched(source(adapter), tmp_path)
    assert {path.name for path in found.iterdir()} == {path.name for path in BASE.iterdir()}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (found / name).read_bytes() == (BASE / name).read_bytes()
    ids = torch.randint(3, 512, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        ours, theirs, before = (model(ids).logits for model in (merged, beside, plain))
    apart, moved = (ours - theirs).abs().max(), (before - theirs).abs().max()
    assert moved > 0.5, "the adapter changes something"
    assert apart < moved / 20, "all that is left is rounding to bfloat16"


def test_each_weight_is_rounded_once(adapted, tmp_path):
    """Red when the product is rounded before it is added, as peft does with a base in bfloat16."""
    import torch
    from safetensors.torch import load_file

    adapter, _ = adapted("plain")
    found, base = (load_file(folder / "model.safetensors") for folder in (fetched(source(adapter), tmp_path), BASE))
    parts = load_file(adapter / "adapter_model.safetensors")
    assert found.keys() == base.keys()
    twice = 0
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{stem}A.weight" not in parts:
            assert torch.equal(found[name], weight), name
            continue
        product = 8 / 4 * parts[f"{stem}B.weight"] @ parts[f"{stem}A.weight"]
        assert torch.equal(found[name], (weight.float() + product).to(torch.bfloat16)), name
        twice += int((found[name] != weight + product.to(torch.bfloat16)).sum())
    assert twice > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "it is of type IA3, and LORA is what is merged"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which began with a changed base"),
        ({"bias": "all"}, "biases were trained beside it"),
        ({"modules_to_save": ["lm_head"]}, "its setting modules_to_save"),
        ({"something_new": {"a": 1}}, "its setting something_new"),
    ],
)
def test_an_adapter_that_would_lose_a_part_of_itself_is_refused_by_name(adapted, tmp_path, settings, says):
    model = source(changed(adapted("plain")[0], tmp_path / "adapter", **settings))
    (said,) = model.problems(model.facts())
    assert said.startswith("model.adapter: ")
    assert says in said
    with pytest.raises(SourceError):
        fetched(model, tmp_path / "out")


def test_an_adapter_of_another_model_is_refused_by_plan_and_by_the_merge(adapted, tmp_path):
    from safetensors.torch import load_file, save_file

    def with_tensors(folder, tensors):
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        return source(folder)

    wide, other = (changed(adapted("plain")[0], tmp_path / name) for name in ("wide", "other"))
    tensors = load_file(wide / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    model = with_tensors(wide, {**tensors, name: tensors[name].repeat(1, 2)})
    assert "have 256 input channels and the base's module 128" in model.problems(model.facts())[0]
    with pytest.raises(SourceError, match="does not fit the base"):
        fetched(model, tmp_path / "out")
    model = with_tensors(other, {key.replace("q_proj", "qkv_proj"): tensor for key, tensor in tensors.items()})
    assert "layers.0.self_attn.qkv_proj, which the base has not" in model.problems(model.facts())[0]
    with pytest.raises(SourceError, match="do not agree on 8 of them"):
        fetched(model, tmp_path / "out2")


def test_pickled_and_absent_adapters_are_refused(adapted, tmp_path):
    folder = changed(adapted("plain")[0], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SourceError, match="only pickle weights"):
        source(folder).identity()
    with pytest.raises(SourceError, match="there is no adapter"):
        source(tmp_path).identity()


def test_a_head_that_is_the_embedding_is_not_changed_by_an_adapter_on_either(adapted, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(BASE, tmp_path / "tied")
    tensors = load_file(BASE / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "tied" / "model.safetensors", {"format": "pt"})
    config = json.loads((BASE / "config.json").read_text())
    (tmp_path / "tied" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(SourceError, match=r"one matrix for embedding and output head"):
        fetched(source(adapted("head")[0], path=str(tmp_path / "tied")), tmp_path / "out")
    plain = fetched(source(adapted("plain")[0], path=str(tmp_path / "tied")), tmp_path / "out2")
    assert checkpoint_facts(plain).parameters == checkpoint_facts(tmp_path / "tied").parameters


def test_the_identity_is_that_of_base_and_adapter_wherever_they_lie(adapted, tmp_path):
    adapter, _ = adapted("plain")
    before = source(adapter).identity()
    moved = changed(adapter, tmp_path / "moved")
    shutil.copy(adapter / "adapter_config.json", moved)
    (moved / "README.md").write_text("a card")
    assert source(moved).identity() == before
    assert before["base"] == Directory(path=str(BASE)).identity()
    shutil.copy(adapted("dora")[0] / "adapter_model.safetensors", moved)
    assert source(moved).identity() != before


def test_an_adapter_on_the_hub_is_pinned_to_its_commit_and_merged_alike(adapted, tmp_path):
    """In a process of its own: the hub's client reads HF_ENDPOINT when it is imported."""
    adapter, _ = adapted("plain")
    commit, home = "a" * 40, str(tmp_path / "home")
    with serving("org/adapter", adapter, {"main": commit}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
        arguments = [sys.executable, "-c", ASK, BASE, tmp_path / "out"]
        result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["identity"] == {"repo": "org/adapter", "commit": commit}
    assert told["revision"] == commit
    same = fetched(source(adapter), tmp_path / "local")
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes() == (
        same / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("wrong", [{}, {"path": "a", "repo": "b/c"}, {"path": "a", "revision": "v1"}])
def test_an_adapter_is_at_one_place(wrong):
    with pytest.raises(ValueError, match=r"one of the two|a path names"):
        Lora(base={"kind": "directory", "path": "x"}, adapter=wrong)


@pytest.mark.slow
def test_a_recipe_with_an_adapter_runs_and_says_what_its_baseline_is(adapted, tmp_path):
    shutil.copytree(adapted("plain")[0], tmp_path / "adapter")
    model = {"kind": "lora", "base": {"kind": "directory", "path": str(BASE)}, "adapter": {"path": "adapter"}}
    path = write_recipe(tmp_path, tiny_recipe(model=model))
    assert load(path).recipe.model.adapter.path == str(tmp_path / "adapter"), "relative to the recipe"
    result = command("run", path, "--store", tmp_path / "store", "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    (remark, *_) = json.loads(result.stdout)["remarks"]
    assert "the LoRA adapter adapter (rank 4) merged into it, in float32 and rounded once to bfloat16" in remark
