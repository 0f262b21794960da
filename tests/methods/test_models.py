"""Architectures: which Linears are quantized in each, that what is saved loads as that model, and answers alike."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
from small_models import EXPERTS, LAYERS, LLAMA_LIKE, MODELS, VOCABULARY, save

from quantize.engines import Transformers
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gptq, Rtn
from quantize.proof import prove, record
from quantize.scheme import preset

INT4 = replace(preset("W4A16"), group_size=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function: the name of a config class -> a checkpoint of random weights with the tiny Llama's tokenizer."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture
def proven(checkpoint, tmp_path):
    """A function: config class, method, scheme -> the checkpoint, the proof in transformers, what was said."""

    def run(name, method, scheme, tokens=None):
        source, out, witness, said = checkpoint(name), tmp_path / "checkpoint", tmp_path / "witness", []
        out.mkdir()
        witness.mkdir()
        told = partial(record, tokenizer_dir=source, out=witness)
        host = Host({}, tmp_path)
        method.quantize(
            QuantizeJob(
                source, out, scheme, ("lm_head",), tokens, "cpu", 0, told, lambda what, *_: said.append(what), host
            )
        )
        session = Transformers().open(out, "cpu")
        try:
            assert type(session.model.config).__name__ == name
            return out, prove(out, witness, source, session, "transformers"), said
        finally:
            session.close()

    return run


def some_tokens():
    import torch

    return torch.randint(3, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))


def scaled(out):
    from safetensors import safe_open

    names = [name for file in out.glob("*.safetensors") for name in safe_open(file, "pt").keys()]  # noqa: SIM118
    return {name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")}


def holds(name, out, result, said, scheme):
    """The expected number of Linears, none of them the head; equal answers; and the count was said."""
    _, in_layer = MODELS[name]
    found = scaled(out)
    assert len(found) == in_layer * LAYERS, sorted(found)
    assert not any("lm_head" in one or "embed" in one or one.endswith("mlp.gate") for one in found)
    assert result.outcome == "pass", result.sentences
    assert result.numbers["fingerprints"] in (in_layer * LAYERS, 0)
    line = f"{in_layer * LAYERS} Linears {scheme.name}; 1 ignored; the head lm_head is left as it is"
    assert any(line in what for what in said), said


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_but_the_head_is_quantized_and_answers_as_in_memory(proven, name):
    holds(name, *proven(name, Rtn(), INT4), INT4)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("GPTNeoXConfig", "W8A8"),
        ("Qwen3MoeConfig", "FP8_DYNAMIC"),
        ("Qwen3MoeConfig", "NVFP4"),
    ],
)
def test_rounded_activations_are_rounded_after_loading_too_in_experts_as_well(proven, name, scheme):
    numbers = preset(scheme)
    out, result, said = proven(name, Rtn(), numbers, some_tokens() if numbers.calibrated else None)
    holds(name, out, result, said, numbers)
    if "Moe" in name:
        ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
        assert {f"model.layers.{layer}.mlp.gate" for layer in range(LAYERS)} < set(ignored), (
            "vLLM's routers are Linears"
        )
    reached = [line for line in said if f"of {LAYERS * EXPERTS} experts by itself" in line]
    assert len(reached) == ("Moe" in name and numbers.calibrated)
    assert result.numbers["mean_kl"] < 1e-9, "the limit for rounded activations is for other kernels"


def test_experts_that_have_no_names_of_their_own_are_refused_and_not_left_out(proven, monkeypatch):
    moe = {**LLAMA_LIKE, "num_local_experts": EXPERTS, "head_dim": 32}
    monkeypatch.setitem(MODELS, "MixtralConfig", (moe, 0))
    with pytest.raises(
        QuantizeError, match=r"experts of a mixtral, which model\.layers\.0\.mlp\.experts holds"
    ) as caught:
        proven("MixtralConfig", Rtn(), INT4)
    assert "qwen3_moe" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3Config", "Qwen3MoeConfig"])
def test_gptq_quantizes_every_linear_experts_included(proven, name):
    holds(name, *proven(name, Gptq(), INT4, some_tokens()), INT4)
