"""Each (method, scheme) pair on the tiny Llama: what is written, and that it answers as it did in memory."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from quantize.calibrators import Self
from quantize.handed import Host, QuantizeJob
from quantize.methods import Autoround, Awq, Gptq, Rtn, Smoothquant
from quantize.scheme import preset
from quantize.unpacking import expand

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
HOST = Host({}, Path("nowhere"))
LINEARS = 4 * 7
INT4 = replace(preset("W4A16"), group_size=64)
#: Presets that rounding to nearest makes, on the shapes of the tiny Llama.
FP4 = ("NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16")
MORE = ("FP8", "FP8_BLOCK", "W8A16", "W4A16_ASYM", "W4A8", "W4AFP8", *FP4)
PAIRS = {
    "rtn-fp8": (Rtn(), preset("FP8_DYNAMIC")),
    "rtn-int8": (Rtn(), preset("W8A8")),
    "rtn-int4": (Rtn(), INT4),
    **{name: (Rtn(), preset(name)) for name in MORE},
    "gptq-int4": (Gptq(), INT4),
    "awq-int4": (Awq(n_grid=10), INT4),
    "smoothquant-int8": (Smoothquant(strength=0.6), preset("W8A8")),
    "smoothquant-gptq": (Smoothquant(then=Gptq()), preset("W8A8")),
    "autoround-int4": (Autoround(iters=4), INT4),
}


@pytest.fixture(scope="module")
def tokens():
    return Self(samples=16, tokens=128).draw(TINY, "cpu", lambda *_: None).rows


@pytest.fixture(scope="module")
def texts(tokens):
    """Rows that no method was calibrated on."""
    import torch

    return torch.stack(Self(samples=16, tokens=64, seed=1).draw(TINY, "cpu", lambda *_: None).rows)


def answers(model, rows):
    import torch

    with torch.no_grad():
        return torch.cat([model(input_ids=row[None], use_cache=False).logits for row in rows])


def load(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expand(model)
    return model


def tensors_of(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def quantize(method, scheme, out, tokens=None, *, witness=lambda _: None, ignore=("lm_head",)):
    out.mkdir()
    given = tokens if method.calibrated or scheme.calibrated else None
    method.quantize(QuantizeJob(TINY, out, scheme, ignore, given, "cpu", 0, witness, lambda *_: None, HOST))
    return out


def note(rows, seen, model):
    seen.append(answers(model, rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokens, texts):
    """Each pair's checkpoint and what the model in memory answered to `texts`."""
    root = tmp_path_factory.mktemp("made")
    results = {}
    for name, (method, scheme) in PAIRS.items():
        seen = []
        witness = partial(note, texts, seen)
        out = quantize(method, scheme, root / name, tokens, witness=witness)
        assert len(seen) == 1, "the witness is called once"
        results[name] = (out, seen[0])
    return results


@pytest.mark.parametrize("pair", PAIRS)
def test_every_linear_but_the_head_is_quantized(made, pair):
    import torch

    tensors = tensors_of(made[pair][0])
    scaled = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    assert len(scaled) == LINEARS
    assert "lm_head" not in scaled
    source = tensors_of(TINY)
    assert torch.equal(tensors["lm_head.weight"], source["lm_head.weight"])
    assert torch.equal(tensors["model.embed_tokens.weight"], source["model.embed_tokens.weight"])


@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_not_quantized_keeps_its_dtype_and_the_checkpoint_shrinks(made, pair):
    import torch

    out = made[pair][0]
    own = {name: t for name, t in tensors_of(out).items() if not name.endswith("_global_scale")}
    kept = {tensor.dtype for tensor in own.values() if tensor.dtype.is_floating_point}
    assert kept <= {torch.bfloat16, torch.float8_e4m3fn}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (out / "model.safetensors").stat().st_size < 0.7 * (TINY / "model.safetensors").stat().st_size


@pytest.mark.parametrize("pair", PAIRS)
def test_the_reloaded_checkpoint_answers_as_the_model_in_memory_did(made, texts, pair):
    import torch

    out, expected = made[pair]
    torch.testing.assert_close(answers(load(out), texts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_tokenizer_and_generation_config_are_the_sources_bytes(made, pair):
    names = {path.name for path in TINY.iterdir()} - {"config.json", "model.safetensors"}
    assert "generation_config.json" in names
    for name in names:
        assert (made[pair][0] / name).read_bytes() == (TINY / name).read_bytes(), name


def loss(logits, baseline):
    """Mean KL(baseline || variant) in nat."""
    import torch

    return torch.nn.functional.kl_div(
        logits.log_softmax(-1).flatten(0, 1),
        baseline.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    ).item()


def test_eight_bits_lose_less_than_four_and_calibration_makes_up_for_some(made, texts):
    baseline = answers(load(TINY), texts)
    lost = {name: loss(answers, baseline) for name, (_, answers) in made.items()}
    assert 0 < lost["rtn-fp8"] < lost["rtn-int4"]
    assert 0 < lost["rtn-int8"] < lost["rtn-int4"]
    assert lost["gptq-int4"] < 0.8 * lost["rtn-int4"]


def test_scales_of_whole_tensors_stay_in_float32_and_ranges_of_activations_are_stored(made):
    import torch

    tensors = tensors_of(made["NVFP4"][0])
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in tensors if name.endswith("_global_scale")}
    assert sum(name.endswith("input_global_scale") for name in wide) == LINEARS
    assert sum(name.endswith("input_scale") for name in tensors_of(made["FP8"][0])) == LINEARS


@pytest.mark.parametrize("name", MORE)
def test_what_plan_says_of_bits_is_what_lies_on_disk(made, name):
    """Bytes of a Linear's tensors, scales and all, but for the shape that packed integers carry."""
    tensors, layer = tensors_of(made[name][0]), "model.layers.0.mlp.down_proj."
    held = [t for key, t in tensors.items() if key.startswith(layer) and not key.endswith(("weight_shape", "l_scale"))]
    scales = [tensor for key, tensor in tensors.items() if key == f"{layer}input_scale"]
    found = sum(tensor.nbytes for tensor in held) - sum(tensor.nbytes for tensor in scales)
    assert 8 * found / (128 * 256) == pytest.approx(preset(name).bits_per_weight(256, 16), rel=1e-3)


@pytest.mark.parametrize("name", FP4)
def test_four_bit_floats_are_unpacked_in_the_dtype_of_the_arithmetic(made, name):
    """The library's own way is bfloat16, which no float32 Linear takes."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(made[name][0], dtype=torch.float32)
    plain.hf_quantizer.compressor.decompress_model(plain)
    weights = [model.model.layers[0].mlp.down_proj.weight for model in (plain, load(made[name][0]))]
    assert [weight.dtype for weight in weights] == [torch.bfloat16, torch.float32]


def test_awq_scales_channels_and_takes_the_scales_out_again(made, texts):
    import torch

    before, after = tensors_of(TINY), tensors_of(made["awq-int4"][0])
    norms = [name for name in before if name.endswith("layernorm.weight")]
    assert len(norms) == 2 * 4
    assert sum(not torch.equal(before[name], after[name]) for name in norms) >= 4
    # scales of which one side was lost would change every answer, not only the last digits
    assert loss(made["awq-int4"][1], answers(load(TINY), texts)) < 0.03


@pytest.mark.parametrize("pair", ["smoothquant-int8", "smoothquant-gptq"])
def test_smoothquant_moves_scales_between_norms_and_weights_and_the_model_stays_what_it_was(made, texts, pair):
    import torch

    before, after = tensors_of(TINY), tensors_of(made[pair][0])
    norms = [name for name in before if name.endswith("layernorm.weight")]
    assert all(not torch.equal(before[name], after[name]) for name in norms)
    assert loss(made[pair][1], answers(load(TINY), texts)) < 0.01


@pytest.mark.parametrize("pair", ["gptq-int4", pytest.param("autoround-int4", marks=pytest.mark.slow)])
def test_the_same_job_gives_the_same_bytes(made, tokens, tmp_path, pair):
    method, scheme = PAIRS[pair]
    again = quantize(method, scheme, tmp_path / "again", tokens)
    for path in made[pair][0].iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_group_size_overrides_the_presets(made, tmp_path):
    by_128 = quantize(Rtn(), preset("W4A16"), tmp_path / "by-128")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    assert tensors_of(made["rtn-int4"][0])[name].shape == (128, 256 // 64)
    assert tensors_of(by_128)[name].shape == (128, 256 // 128)


def test_modules_that_the_recipe_leaves_alone_are_left_alone(tmp_path):
    out = quantize(Rtn(), preset("W8A8"), tmp_path / "out", ignore=("lm_head", "re:.*down_proj"))
    scaled = {name for name in tensors_of(out) if name.endswith(".weight_scale")}
    assert len(scaled) == LINEARS - 4
    assert not any("down_proj" in name for name in scaled)


def test_a_generation_config_that_transformers_would_refuse_to_save_is_kept(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(TINY, source)
    settings = {**json.loads((TINY / "generation_config.json").read_text()), "do_sample": False, "temperature": 0.6}
    (source / "generation_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    out.mkdir()
    Rtn().quantize(
        QuantizeJob(source, out, preset("W8A8"), ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None, HOST)
    )
    assert json.loads((out / "generation_config.json").read_text()) == settings


@pytest.mark.parametrize("method", [Awq(n_grid=4), Smoothquant(), Gptq(), Autoround(iters=2, batch_size=4)])
def test_rows_of_different_lengths_are_each_seen_at_their_own(method, tokens, tmp_path, monkeypatch):
    import torch

    lengths = (64, 17, 40, 2, 64)
    rows = tuple(row[:length] for row, length in zip(tokens, lengths, strict=False))
    seen = []
    embed = torch.nn.Embedding.forward

    def watched(self, ids):
        seen.append(tuple(ids.shape))
        return embed(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", watched)
    scheme = preset("W8A8") if isinstance(method, Smoothquant) else INT4
    out = quantize(method, scheme, tmp_path / "out", rows)
    assert set(seen) == {(1, length) for length in lengths}, "nothing was padded, and every row was seen"
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(out).values() if tensor.is_floating_point())
