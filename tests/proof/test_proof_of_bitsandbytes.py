"""bitsandbytes checkpoints: honest ones pass, a wrong scale, a swapped layer and a damaged packing do not."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from quantize import proof
from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods.bitsandbytes import Bitsandbytes
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
VARIANTS = {
    "nf4": ("NF4", Bitsandbytes()),
    "fp4": ("FP4", Bitsandbytes(double_quant=False)),
    "int8": ("INT8", Bitsandbytes()),
}
#: The tensor that every weight of a Linear is multiplied with.
SCALES = {"nf4": "weight.nested_absmax", "fp4": "weight.absmax", "int8": "SCB"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    for name, (scheme, method) in VARIANTS.items():
        out, witness = root / name / "checkpoint", root / name / "witness"
        out.mkdir(parents=True)
        witness.mkdir()
        note = partial(proof.record, tokenizer_dir=TINY, out=witness, checkpoint=out)
        host = Host({}, root)
        method.quantize(
            QuantizeJob(TINY, out, preset(scheme), ("lm_head",), None, "cpu", 0, note, lambda *_: None, host)
        )
    return root


@pytest.fixture
def damaged(made, tmp_path):
    from safetensors.torch import load_file, save_file

    def run(name, change):
        shutil.copytree(made / name, tmp_path / name)
        path = tmp_path / name / "checkpoint" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return prove(tmp_path / name)

    return run


def prove(place, engine=Transformers()):  # noqa: B008
    session = engine.open(place / "checkpoint", "cpu", Host({}, place))
    try:
        return proof.prove(place / "checkpoint", place / "witness", TINY, session)
    finally:
        session.close()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_honest_checkpoint_passes(made, name, dtype):
    result = prove(made / name, Transformers(dtype=dtype))
    assert result.outcome == "pass", result.sentences
    assert result.numbers["fingerprints"] == 28
    # read by a decoder that is not the library's, and still the same numbers
    assert result.numbers["fingerprint_difference"] == 0
    assert result.numbers["mean_kl"] <= (1e-9 if dtype == "float32" else 0.02)


@pytest.mark.parametrize("name", VARIANTS)
def test_five_percent_on_the_scales_of_one_linear_fails(damaged, name):
    result = damaged(name, lambda tensors: tensors[f"model.layers.3.self_attn.q_proj.{SCALES[name]}"].mul_(1.05))
    assert result.outcome == "fail"
    assert "model.layers.3.self_attn.q_proj" in result.sentences[0]
    # nested scales have an offset beside them, which was left as it is
    assert result.numbers["fingerprint_difference"] > (0.001 if name == "nf4" else 0.04)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_swapped_layers_fail_by_weights_and_by_answers(damaged, name):
    def swap(tensors):
        for key in [key for key in tensors if key.startswith("model.layers.1.")]:
            other = key.replace("layers.1.", "layers.2.")
            tensors[key], tensors[other] = tensors[other], tensors[key]

    result = damaged(name, swap)
    assert any("14 of 28" in sentence for sentence in result.sentences)
    assert any("does not answer" in sentence for sentence in result.sentences)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_two_halves_of_a_byte_swapped_fail(damaged, name):
    def swap(tensors):
        packed = tensors["model.layers.2.mlp.down_proj.weight"]
        packed.copy_((packed >> 4) | (packed << 4))

    result = damaged(name, swap)
    assert "1 of 28" in result.sentences[0]
    assert "model.layers.2.mlp.down_proj" in result.sentences[0]
