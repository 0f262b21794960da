"""Groups of modules with numbers of their own, and rounded keys and values: what is written, and that it answers so."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
from program import TINY

from quantize.calibrators import Self
from quantize.engines import Transformers
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gptq, Rtn
from quantize.proof import prove, record
from quantize.scheme import Group, mixed, preset

SOURCE = TINY / "checkpoint"
LAYERS = 4
ATTENTION = Group("attention", ("re:.*self_attn",), preset("FP8_DYNAMIC"))
MLP = Group("mlp", ("re:.*mlp",), replace(preset("W4A16"), group_size=64))


@pytest.fixture(scope="module")
def tokens():
    return Self(samples=4, tokens=64).draw(SOURCE, "cpu", lambda *_: None).rows


@pytest.fixture
def proven(tmp_path, tokens):
    """A function: a method, a scheme and what to leave alone -> the checkpoint, the proof, what was said."""

    def run(method, scheme, ignore=("lm_head",)):
        out, witness, said = tmp_path / "checkpoint", tmp_path / "witness", []
        out.mkdir()
        witness.mkdir()
        given = tokens if method.calibrated or scheme.calibrated else None
        told = partial(record, tokenizer_dir=SOURCE, out=witness)
        host = Host({}, tmp_path)
        method.quantize(
            QuantizeJob(SOURCE, out, scheme, ignore, given, "cpu", 0, told, lambda what, *_: said.append(what), host)
        )
        session = Transformers().open(out, "cpu")
        try:
            return out, prove(out, witness, SOURCE, session, "transformers"), said
        finally:
            session.close()

    return run


def tensors_of(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("method", [Rtn(), Gptq()])
def test_each_group_has_its_own_numbers_and_loads_with_them(proven, method):
    import torch

    attention = replace(ATTENTION, scheme=preset("W8A8")) if method.kind == "gptq" else ATTENTION
    out, result, said = proven(method, mixed([attention, MLP]), ("lm_head", "re:.*layers\\.0\\.mlp"))
    assert result.outcome == "pass", result.sentences
    tensors = tensors_of(out)
    packed = {name for name in tensors if name.endswith(".weight_packed")}
    bytewise = {n for n, t in tensors.items() if t.dtype in (torch.float8_e4m3fn, torch.int8)}
    assert len(packed) == 3 * (LAYERS - 1) and all(".mlp." in name and ".layers.0." not in name for name in packed)
    assert len(bytewise) == 4 * LAYERS and all("self_attn" in name for name in bytewise)
    counted = f"{4 * LAYERS} Linears {attention.scheme.name}, {3 * (LAYERS - 1)} Linears W4A16; 4 ignored"
    assert any(counted in line and "the head lm_head is left as it is" in line for line in said)


@pytest.mark.parametrize(
    ("groups", "ignore", "said"),
    [
        (
            (replace(ATTENTION, targets=("re:.*self_atn",)), MLP),
            ("lm_head",),
            ["attention: re:.*self_atn", "self_attn."],
        ),
        ((ATTENTION,), ("lm_head",), ["layers.0.mlp.gate_proj", "in no group"]),
        ((ATTENTION, MLP, replace(MLP, name="down", targets=("re:.*down_proj",))), ("lm_head",), ["mlp and down"]),
        ((ATTENTION, MLP), ("lm_head", "re:.*vision"), ["ignore: re:.*vision", "matches nothing"]),
    ],
)
def test_patterns_that_do_not_fit_the_model_stop_it_before_calibration(proven, groups, ignore, said):
    with pytest.raises(QuantizeError) as caught:
        proven(Gptq(), mixed(groups), ignore)
    assert all(part in str(caught.value) for part in said), caught.value


def test_keys_and_values_are_rounded_in_transformers_too_and_their_scales_are_stored(proven):
    import torch

    out, result, _ = proven(Rtn(), replace(preset("FP8_DYNAMIC"), kv_cache="fp8"))
    assert result.outcome == "pass", result.sentences
    names = [name for name in tensors_of(out) if name.endswith(("k_scale", "v_scale"))]
    assert len(names) == 2 * LAYERS
    assert json.loads((out / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    session = Transformers().open(out, "cpu")
    ids = torch.arange(2, 66)[None]
    rounded = session.logits(ids)
    for module in session.model.modules():
        if hasattr(module, "k_scale"):
            module.quantization_enabled = False
    assert not torch.equal(session.logits(ids), rounded), "what is measured has rounded keys and values"
