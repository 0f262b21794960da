"""bitsandbytes on the tiny Llama: what is written, that it reloads in the engine, and what arithmetic answers."""

import json
from functools import partial
from pathlib import Path

import pytest

from quantize.artifact import ModelFacts
from quantize.engines import Transformers
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Bitsandbytes
from quantize.scheme import PRESETS, preset

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
LINEARS = 4 * 7
CASES = {
    "nf4": (Bitsandbytes(), preset("NF4")),
    "nf4-once": (Bitsandbytes(double_quant=False), preset("NF4")),
    "fp4": (Bitsandbytes(), preset("FP4")),
    "int8": (Bitsandbytes(), preset("INT8")),
}
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    layers=4,
    hidden_size=100,
    vocab_size=512,
    dtype="bfloat16",
    linears={"100x100": 28},
    parameters=None,
    bytes=None,
    unknown=[],
)


def prompt():
    import torch

    return torch.arange(5, 85)[None]


def answers(model):
    import torch

    with torch.inference_mode():
        return model(prompt(), use_cache=False).logits


def dequantized(model):
    """Name -> weight (out, in) in float32 of every 4-bit Linear, by the library's own routine."""
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }


def note(seen, model):
    seen["answers"] = answers(model)
    seen["weights"] = dequantized(model)


def quantize(method, scheme, out, ignore=("lm_head",)):
    out.mkdir()
    seen = {}
    job = QuantizeJob(
        TINY, out, scheme, ignore, None, "cpu", 0, partial(note, seen), lambda *_: None, Host({}, out.parent)
    )
    method.quantize(job)
    return out, seen


def tensors_of(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each case's checkpoint and what the model in memory was."""
    root = tmp_path_factory.mktemp("made")
    return {name: quantize(method, scheme, root / name) for name, (method, scheme) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_answers_from_the_checkpoint_as_the_model_in_memory_did(made, case):
    import torch

    out, seen = made[case]
    session = Transformers().open(out, "cpu", Host({}, out.parent))
    torch.testing.assert_close(session.logits(prompt()), seen["answers"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["nf4", "nf4-once", "fp4"])
def test_four_bit_answers_are_those_of_the_dequantized_weights_in_float32(made, case):
    """Whatever the processor: with AVX512-BF16 the library would compute in bfloat16, which moves logits by 0.1."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    weights = made[case][1]["weights"]
    assert len(weights) == LINEARS
    for name, weight in weights.items():
        plain.get_submodule(name).weight.data = weight
    torch.testing.assert_close(made[case][1]["answers"], answers(plain), rtol=0, atol=2e-3)


@pytest.mark.parametrize("case", CASES)
def test_every_linear_but_the_head_is_packed_and_the_rest_keeps_its_dtype(made, case):
    import torch

    tensors, source = tensors_of(made[case][0]), tensors_of(TINY)
    packed = {
        name for name, tensor in tensors.items() if name.endswith("proj.weight") and not tensor.is_floating_point()
    }
    assert len(packed) == LINEARS
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(tensors[name], source[name])
    config = json.loads((made[case][0] / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_four_bits_take_less_than_eight_and_eight_less_than_sixteen(made):
    def weights(tensors):
        """Bytes of the packed weights alone: on a model this small the tables beside them are as large."""
        return sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith("proj.weight"))

    full = weights(tensors_of(TINY))
    assert weights(tensors_of(made["int8"][0])) == full // 2
    assert weights(tensors_of(made["nf4"][0])) == full // 4
    sizes = {case: (made[case][0] / "model.safetensors").stat().st_size for case in made}
    assert sizes["nf4"] < sizes["int8"] < (TINY / "model.safetensors").stat().st_size


def test_nested_scales_are_smaller_and_lose_a_little_more(made):
    def scales(case):
        return sum(t.nbytes for name, t in tensors_of(made[case][0]).items() if name.endswith(".absmax"))

    assert scales("nf4") * 4 == scales("nf4-once")
    once, twice = made["nf4-once"][1]["answers"], made["nf4"][1]["answers"]
    assert 0 < (once - twice).abs().max() < 3


@pytest.mark.parametrize("case", CASES)
def test_text_files_are_the_sources_bytes(made, case):
    names = {path.name for path in TINY.iterdir()} - {"config.json", "model.safetensors"}
    assert {path.name for path in made[case][0].iterdir()} == names | {"config.json", "model.safetensors"}
    for name in names:
        assert (made[case][0] / name).read_bytes() == (TINY / name).read_bytes(), name


def test_other_programs_are_told_to_compute_in_the_checkpoints_dtype(made):
    settings = json.loads((made["nf4"][0] / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"
    assert settings["bnb_4bit_use_double_quant"] is True


@pytest.mark.parametrize("scheme", ["FP4", "INT8"])
def test_modules_that_the_recipe_leaves_alone_are_left_alone(tmp_path, scheme):
    import torch

    out, seen = quantize(Bitsandbytes(), preset(scheme), tmp_path / "out", ("lm_head", "re:.*down_proj"))
    tensors, source = tensors_of(out), tensors_of(TINY)
    down = [name for name in source if name.endswith("down_proj.weight")]
    assert len(down) == 4
    for name in down:
        assert torch.equal(tensors[name], source[name])
    packed = {
        name for name, tensor in tensors.items() if name.endswith("proj.weight") and not tensor.is_floating_point()
    }
    assert len(packed) == LINEARS - 4
    session = Transformers().open(out, "cpu", Host({}, out.parent))
    torch.testing.assert_close(session.logits(prompt()), seen["answers"], rtol=0, atol=1e-5)


def test_the_output_head_is_refused_before_anything_is_quantized(tmp_path):
    with pytest.raises(QuantizeError, match="output head lm_head") as caught:
        quantize(Bitsandbytes(), preset("NF4"), tmp_path / "out", ())
    assert "ignore" in caught.value.fix


def test_the_same_job_gives_the_same_bytes(made, tmp_path):
    again, _ = quantize(*CASES["nf4"], tmp_path / "again")
    for path in made["nf4"][0].iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", PRESETS)
def test_only_its_own_schemes_are_taken_and_any_shape_fits(name):
    found = Bitsandbytes().problems(preset(name), FACTS)
    if preset(name).family == "bitsandbytes":
        assert found == []
    else:
        (sentence,) = found
        assert "NF4" in sentence and name in sentence
