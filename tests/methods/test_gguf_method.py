"""Quantized GGUF files, by llama.cpp. What was written is read by the Python package gguf."""

import numpy as np
import pytest
from gguf_cases import PARTS, SHAPES, TINY, metadata, quantize, save, silent, weights
from pydantic import ValidationError

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.handed import Host
from quantize.methods import Gguf, convert_to_gguf, gguf_contents
from quantize.methods._gguf_imatrix import read_imatrix
from quantize.scheme import preset


def facts(*shapes):
    """Of a model with one Linear of each of `shapes`."""
    return ModelFacts(
        architecture="LlamaForCausalLM",
        layers=1,
        hidden_size=256,
        vocab_size=512,
        dtype="float32",
        linears=dict.fromkeys(shapes, 1) or None,
        parameters=None,
        bytes=None,
        unknown=[],
    )


@pytest.mark.engine
def test_the_witness_keeps_a_rope_scaling_that_the_file_only_holds_as_factors(host, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = LlamaForCausalLM(LlamaConfig(**SHAPES, rope_parameters=scaling)).eval()
    checkpoint, full = save(model, tmp_path / "scaled"), tmp_path / "full"
    full.mkdir()
    convert_to_gguf(checkpoint, None, full, host, silent)
    assert "rope_freqs.weight" in weights(full / "model.gguf")
    witness = quantize(Gguf(), "F32", checkpoint, full / "model.gguf", host, tmp_path / "out")
    ids = torch.arange(2, 130)[None]
    with torch.no_grad():
        torch.testing.assert_close(witness(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("scheme", "types", "error"),
    [
        ("Q8_0", {"Q8_0"}, 0.01),
        ("Q4_0", {"Q4_0", "Q6_K"}, 0.15),
        ("IQ4_NL", {"IQ4_NL", "Q6_K", "Q5_K"}, 0.12),
        ("Q4_K_M", {"Q4_K", "Q6_K"}, 0.12),
        ("Q2_K", {"Q2_K", "Q3_K", "Q4_K", "Q6_K"}, 0.45),
    ],
)
def test_a_type_is_stored_as_named_and_the_witness_computes_what_is_stored(
    scheme, types, error, host, wide, converted, tmp_path
):
    import torch

    full = converted(wide)[0]
    witness = quantize(Gguf(), scheme, wide, full, host, tmp_path / "out")
    stored, original = weights(tmp_path / "out" / "model.gguf"), weights(full)
    assert {kind for name, (kind, values) in stored.items() if values.ndim > 1} <= types
    for name, (_, values) in stored.items():
        distance = np.linalg.norm(values - original[name][1]) / np.linalg.norm(original[name][1])
        assert distance <= error, name
    down = torch.from_numpy(stored["blk.1.ffn_down.weight"][1])
    assert torch.equal(witness.model.layers[1].mlp.down_proj.weight, down)
    assert metadata(tmp_path / "out" / "model.gguf")["general.quantized_by"] == "quantize"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (wide / "tokenizer.json").read_bytes()


@pytest.mark.engine
@pytest.mark.parametrize("scheme", ["Q5_K_M", "Q4_K_M", "Q3_K_L", "Q2_K", "IQ4_XS"])
def test_rows_that_do_not_fit_get_the_larger_types_that_the_note_before_the_run_names(
    scheme, host, converted, tmp_path
):
    quantize(Gguf(), scheme, TINY, converted(TINY)[0], host, tmp_path / "out")
    told = gguf_contents(tmp_path / "out" / "model.gguf")
    (note,) = Gguf().notes(preset(scheme), facts("128x128", "128x256", "256x128"))
    assert "128x128, 256x128 (out x in; 67% of all Linears)" in note
    names = note.partition("stores those as")[2]
    misfits = [part for part in PARTS if part != "ffn_down"]
    assert all(kind in names for part in misfits for kind in told["tensors"][f"blk.*.{part}.weight"])
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    assert preset(scheme).nominal_bits < told["bits_per_weight"] < 8 * size / told["parameters"]


@pytest.mark.engine
def test_an_importance_matrix_lowers_the_error_that_it_weighs(host, wide, converted, imatrix, tmp_path):
    full = converted(wide)[0]
    quantize(Gguf(), "Q3_K_S", wide, full, host, tmp_path / "without")
    quantize(Gguf(imatrix=True), "Q3_K_S", wide, full, host, tmp_path / "with", importance=imatrix)
    means, original = read_imatrix(imatrix), weights(full)

    def loss(out):
        stored = weights(out / "model.gguf")
        return sum(float(np.sum((stored[n][1] - original[n][1]) ** 2 * means[n])) for n in means)

    assert loss(tmp_path / "with") < 0.98 * loss(tmp_path / "without")


@pytest.mark.engine
def test_the_coarsest_types_are_made_with_an_importance_matrix_and_refused_without(
    host, wide, converted, imatrix, tmp_path
):
    full = converted(wide)[0]
    quantize(Gguf(imatrix=True), "IQ2_XXS", wide, full, host, tmp_path / "with", importance=imatrix)
    assert "IQ2_XXS" in gguf_contents(tmp_path / "with" / "model.gguf")["types"]
    assert any("imatrix: true" in problem for problem in Gguf().problems(preset("IQ2_XXS"), facts()))
    with pytest.raises(QuantizeError, match="needs an importance matrix"):
        quantize(Gguf(), "IQ2_XXS", wide, full, host, tmp_path / "without")


@pytest.mark.engine
def test_types_by_tensor_are_honoured(host, wide, converted, tmp_path):
    method = Gguf(
        tensor_types={r"blk\.0\.": "Q8_0", "ffn_down": "Q8_0"}, output_type="F16", token_embedding_type="Q5_K"
    )
    quantize(method, "Q4_K_S", wide, converted(wide)[0], host, tmp_path / "out")
    types = {name: kind for name, (kind, values) in weights(tmp_path / "out" / "model.gguf").items() if values.ndim > 1}
    named = {name for name in types if name.startswith("blk.0.") or "ffn_down" in name}
    assert {types[name] for name in named} == {"Q8_0"}
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "Q5_K"
    assert types["blk.1.ffn_up.weight"] == "Q4_K"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        ({"blk.7.": "Q8_0"}, "fits no matrix"),
        ({"attn_q": "Q8_0", r"blk\.0": "Q6_K"}, "by one pattern and Q6_K by"),
        ({"ffn_up": "Q4_K"}, "do not fit"),
    ],
)
def test_types_that_cannot_be_had_are_refused_by_name(types, sentence, host, converted, tmp_path):
    with pytest.raises(QuantizeError, match=sentence):
        quantize(Gguf(tensor_types=types), "Q8_0", TINY, converted(TINY)[0], host, tmp_path / "out")


@pytest.mark.engine
def test_equal_inputs_give_equal_bytes(host, converted, tmp_path):
    for name in ("one", "two"):
        quantize(Gguf(), "Q4_K_M", TINY, converted(TINY)[0], host, tmp_path / name)
    assert (tmp_path / "one" / "model.gguf").read_bytes() == (tmp_path / "two" / "model.gguf").read_bytes()


def test_modules_cannot_be_left_out_by_name(tmp_path):
    host = Host({}, tmp_path)
    with pytest.raises(QuantizeError, match=r"method\.tensor_types"):
        quantize(Gguf(), "Q8_0", TINY, tmp_path / "none.gguf", host, tmp_path / "out", ignore=("re:.*down_proj",))


def test_schemes_of_others_and_a_needless_importance_matrix_are_problems():
    assert "gguf makes gguf schemes" in Gguf().problems(preset("W4A16"), facts())[0]
    assert "makes no use" in Gguf(imatrix=True).problems(preset("Q8_0"), facts())[0]
    assert Gguf(imatrix=True).problems(preset("Q4_K_M"), facts()) == []
    assert Gguf().problems(preset("Q4_K_M"), facts()) == []
    mixed = Gguf(tensor_types={"ffn_up": "IQ1_S"})
    assert "IQ1_S cannot be found" in mixed.problems(preset("Q4_K_M"), facts())[0]


def test_rows_that_every_block_fits_need_no_note():
    assert Gguf().notes(preset("Q4_K_M"), facts("256x512")) == []
    assert Gguf().notes(preset("Q8_0"), facts("64x96")) == []
    assert "F16" in Gguf().notes(preset("Q8_0"), facts("64x100"))[0]


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValidationError, match="not a regular expression"):
        Gguf(tensor_types={"blk.(": "Q8_0"})
