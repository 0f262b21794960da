"""A head that is the embedding: left alone it stays that; quantized it becomes a matrix of its own, and is proven."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from program import TINY

from quantize import proof
from quantize.engines import Transformers
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob, silent
from quantize.methods import Bitsandbytes, ModelFree, Rtn
from quantize.scheme import preset

INT4 = replace(preset("W4A16"), group_size=32)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """The tiny Llama with its embedding as head too."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(TINY / "checkpoint", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folder


def made(method, source, out, ignore, scheme=INT4):
    """The quantized checkpoint's tensors and whether its config ties, and the proof of it."""
    import torch
    from safetensors.torch import load_file

    where, witness = out / "checkpoint", out / "witness"
    where.mkdir()
    witness.mkdir()
    told = partial(proof.record, tokenizer_dir=source, out=witness)
    refer = partial(proof.refer, baseline=source, out=witness, device="cpu")
    method.quantize(
        QuantizeJob(source, where, scheme, ignore, None, "cpu", 0, told, silent, Host({}, out), refer=refer)
    )
    session = Transformers().open(where, "cpu")
    try:
        result = proof.prove(where, witness, source, session)
        embedding = session.model.get_input_embeddings().weight
        before = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
        assert torch.equal(embedding, before.float()), "the embedding itself is never rounded"
        session.hidden([torch.arange(3, 40)])  # raises where the head is not the matrix that it says
    finally:
        session.close()
    names = set(load_file(where / "model.safetensors"))
    return names, json.loads((where / "config.json").read_text())["tie_word_embeddings"], result


def test_a_tied_head_that_is_quantized_becomes_a_matrix_of_its_own(tied, tmp_path):
    names, ties, result = made(Rtn(), tied, tmp_path, ())
    assert {"lm_head.weight_packed", "model.embed_tokens.weight"} <= names
    assert not ties, "or a reader would put the embedding in its place"
    assert (result.outcome, result.numbers["fingerprints"]) == ("pass", 29)


@pytest.mark.parametrize("method", [Rtn(), ModelFree()], ids=["rtn", "model_free"])
def test_a_tied_head_that_is_left_alone_stays_tied(tied, tmp_path, method):
    names, ties, result = made(method, tied, tmp_path, ("lm_head",))
    assert not any("lm_head" in name for name in names)
    assert ties
    assert (result.outcome, result.numbers["fingerprints"]) == ("pass", 28)


def test_a_tied_head_is_not_left_to_a_method_that_would_round_the_embedding_with_it(tied, tmp_path):
    with pytest.raises(QuantizeError, match=r"would quantize the output head lm_head\. Put lm_head into"):
        made(Bitsandbytes(), tied, tmp_path, (), preset("NF4"))
