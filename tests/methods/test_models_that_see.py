"""Models that take images too: the language part is quantized, the rest is left as it is, and text works throughout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize.calibrators import Self
from quantize.device import choose
from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob, silent
from quantize.methods import Gptq, Rtn
from quantize.preflight import check
from quantize.proof import prove, record
from quantize.recipe import load
from quantize.scheme import preset
from quantize.sources import checkpoint_facts

TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EYES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 28, "patch_size": 14}
#: A name -> how many Linears its vision tower and projector have. No group size divides their 48 and 80 channels.
OUTSIDE = {"qwen2_5_vl": 12, "gemma3": 15, "llava": 14}
INT4 = replace(preset("W4A16"), group_size=32)


def config_of(name):
    from transformers import CLIPVisionConfig, Gemma3Config, LlamaConfig, LlavaConfig, Qwen2_5_VLConfig

    if name == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
        sight = {"depth": 2, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [1], "hidden_size": 48}
        tokens = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502}
        text = {**TEXT, "rope_parameters": rope}
        return Qwen2_5_VLConfig(
            text_config=text, vision_config={**sight, "intermediate_size": 80}, tie_word_embeddings=False, **tokens
        )
    if name == "gemma3":
        tokens = {"image_token_index": 500, "boi_token_index": 501, "eoi_token_index": 502}
        text = {**TEXT, "head_dim": 32, "sliding_window": 64}
        return Gemma3Config(text_config=text, vision_config={**EYES, **IMAGES}, mm_tokens_per_image=4, **tokens)
    eyes = CLIPVisionConfig(**EYES, **IMAGES, projection_dim=48)
    return LlavaConfig(
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=False), vision_config=eyes, image_token_index=500
    )


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A function: the name of an architecture -> a checkpoint of random weights with the tiny Llama's tokenizer."""
    made = {}

    def make(name):
        import torch
        from transformers import AutoModelForImageTextToText

        if name not in made:
            torch.manual_seed(0)
            out = tmp_path_factory.mktemp(name)
            model = AutoModelForImageTextToText.from_config(config_of(name))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(3 if parameter.dim() > 1 else 1)
            model.to(torch.bfloat16).save_pretrained(out)
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(TINY / "checkpoint" / file, out / file)
            (out / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
            made[name] = out
        return made[name]

    return make


@pytest.fixture
def proven(seeing, tmp_path):
    """A function: architecture, method, tokens -> source, quantized checkpoint, proof, what was said."""

    def run(name, method, scheme, tokens=None):
        source, out, witness, said = seeing(name), tmp_path / "checkpoint", tmp_path / "witness", []
        out.mkdir()
        witness.mkdir()
        told = partial(record, tokenizer_dir=source, out=witness)
        job = QuantizeJob(source, out, scheme, ("lm_head",), tokens, "cpu", 0, told, silent, Host({}, tmp_path))
        method.quantize(replace(job, progress=lambda what, *_: said.append(what)))
        session = Transformers().open(out, "cpu")
        try:
            return source, out, prove(out, witness, source, session, "transformers"), said
        finally:
            session.close()

    return run


def tensors(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def holds(name, source, out, result, said):
    import torch

    assert result.outcome == "pass", result.sentences
    assert result.numbers["mean_kl"] < 1e-9
    assert result.numbers["fingerprints"] == 14, "of every Linear, though the files call them otherwise"
    assert any(
        f"14 Linears W4A16; {OUTSIDE[name] + 1} ignored, {OUTSIDE[name]} of them outside" in what for what in said
    )
    before, after = tensors(source), tensors(out)
    packed = {key.removesuffix(".weight_packed") for key in after if key.endswith(".weight_packed")}
    assert len(packed) == 14
    assert all(".layers." in key and "vision" not in key and "visual" not in key for key in packed)
    kept = [key for key in before if key.removesuffix(".weight") not in packed]
    assert all(torch.equal(before[key], after[key]) for key in kept), "all the rest is as it was"
    assert (out / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert {config["dtype"], config["text_config"].get("dtype", "bfloat16")} == {"bfloat16"}
    # by the names of modules for transformers, and by those of tensors for servers
    ignored = set(config["quantization_config"]["ignore"])
    assert {
        key.removesuffix(".weight") for key in kept if "mlp.fc1.weight" in key or "linear_1.weight" in key
    } <= ignored
    assert any(entry.startswith("model.vis") for entry in ignored)


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_language_part_is_quantized_and_the_rest_comes_through_bit_by_bit(proven, name):
    holds(name, *proven(name, Rtn(), INT4))


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_gptq_calibrates_the_language_part_on_text_that_the_model_wrote(proven, seeing, name):
    tokens = Self(samples=4, tokens=64).draw(seeing(name), "cpu", silent).rows
    holds(name, *proven(name, Gptq(), INT4, tokens))


def planned(folder, model, **variant):
    changes = {"name": "int8", "scheme": "W4A16", "group_size": 32, "method": {"kind": "rtn"}, **variant}
    path = write_recipe(folder, tiny_recipe(model={"kind": "directory", "path": str(model)}, variants=[changes]))
    recipe = load(path).recipe
    return check(recipe, recipe.model.facts(), choose("cpu"), folder, tuple(recipe.variants), environments=False)


@pytest.mark.parametrize("name", OUTSIDE)
def test_plan_counts_the_language_part_alone_and_says_what_is_left_as_it_is(seeing, tmp_path, name):
    facts = checkpoint_facts(seeing(name))
    assert sum(facts.linears.values()) == 14
    found = planned(tmp_path, seeing(name))
    assert not found.problems, "shapes of the vision tower are none of the method's business"
    assert any("the vision part is left as it is, each module by name" in note for note in found.notes)


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ({"scheme": "Q8_0", "method": {"kind": "gguf"}, "group_size": None}, "the vision part would be lost"),
        ({"scheme": "NF4", "method": {"kind": "bitsandbytes"}, "group_size": None}, "bitsandbytes has not been tried"),
    ],
)
def test_what_would_lose_the_rest_is_refused_by_plan(seeing, tmp_path, variant, says):
    assert any(says in problem for problem in planned(tmp_path, seeing("llava"), **variant).problems)


@pytest.mark.slow
def test_a_recipe_on_a_model_that_sees_runs_evals_of_items_and_of_a_text(seeing, tmp_path):
    evals = [
        {"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")},
        {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")},
    ]
    variants = [{"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}}]
    model = {"kind": "directory", "path": str(seeing("qwen2_5_vl"))}
    path = write_recipe(tmp_path, tiny_recipe(model=model, evals=evals, variants=variants))
    result = command("run", path, "--store", tmp_path / "store", "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    (variant,) = json.loads(result.stdout)["variants"]
    assert variant["verdict"]["outcome"] != "error"
    assert {comparison["metric"] for comparison in variant["evidence"]["comparisons"]} >= {
        "facts.accuracy",
        "prose.kl_divergence",
    }
