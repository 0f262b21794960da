"""GGUF files in llama.cpp: honest ones pass, and what is planted in the file's weights or words fails."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from quantize import proof
from quantize.engines import LlamaCpp, Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gguf, convert_to_gguf
from quantize.scheme import preset

pytestmark = pytest.mark.engine

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
#: Bytes of a block of 32, which begins with its scale in float16.
BLOCKS = {"Q8_0": 34, "Q4_0": 18}


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"llamacpp": environment("llamacpp")}, tmp_path_factory.mktemp("log"), 1)


@pytest.fixture(scope="module")
def made(host, tmp_path_factory):
    """The model itself as GGUF, and two quantized ones, each with its witness."""
    root = tmp_path_factory.mktemp("made")
    places = {name: (root / name / "checkpoint", root / name / "witness") for name in ("full", *BLOCKS)}
    for folder in [folder for pair in places.values() for folder in pair]:
        folder.mkdir(parents=True)
    checkpoint, witness = places["full"]
    convert_to_gguf(TINY, None, checkpoint, host, lambda *_: None)
    session = Transformers().open(TINY, "cpu", host)
    proof.record(session.model, TINY, witness, checkpoint)
    for name in BLOCKS:
        out, seen = places[name]
        note = partial(proof.record, tokenizer_dir=TINY, out=seen, checkpoint=out)
        full = checkpoint / "model.gguf"
        kept = ("lm_head",)
        job = QuantizeJob(TINY, out, preset(name), kept, None, "cpu", 0, note, lambda *_: None, host, full)
        Gguf().quantize(job)
    return root


@pytest.fixture
def damaged(made, tmp_path, host):
    """Prove a copy of a checkpoint in whose mapped file `change` was let loose."""
    from gguf import GGUFReader

    def run(name, change):
        shutil.copytree(made / name, tmp_path / name)
        reader = GGUFReader(tmp_path / name / "checkpoint" / "model.gguf", "r+")
        change(reader)
        reader.data.flush()
        return prove(tmp_path / name, host)

    return run


def prove(place, host):
    session = LlamaCpp().open(place / "checkpoint", "cpu", host)
    try:
        return proof.prove(place / "checkpoint", place / "witness", TINY, session, "llamacpp")
    finally:
        session.close()


def tensors(reader):
    return {tensor.name: tensor.data for tensor in reader.tensors}


@pytest.mark.parametrize("name", ["full", *BLOCKS])
def test_an_honest_file_passes_and_says_what_was_looked_at(made, host, name):
    result = prove(made / name, host)
    assert result.outcome == "pass", result.sentences
    assert result.numbers["fingerprints"] == 30
    assert result.numbers["fingerprint_difference"] == 0
    assert (result.numbers["conversations"], result.numbers["end_tokens"]) == (3, 1)
    # llama.cpp computes in its own way: nothing here may be compared with itself
    assert 0 < result.numbers["mean_kl"] <= result.numbers["limit"] / 10


@pytest.mark.parametrize("name", BLOCKS)
def test_five_percent_on_the_scales_of_one_matrix_fails(damaged, name):
    def scale(reader):
        blocks = tensors(reader)["blk.3.attn_q.weight"].reshape(-1, BLOCKS[name])
        blocks[:, :2] = (blocks[:, :2].copy().view(np.float16) * np.float16(1.05)).view(np.uint8)

    result = damaged(name, scale)
    assert result.outcome == "fail"
    assert "1 of 30 quantized" in result.sentences[0]
    assert "blk.3.attn_q.weight, 5.0% apart" in result.sentences[0]


def test_values_in_another_order_within_their_blocks_fail(damaged):
    def permute(reader):
        blocks = tensors(reader)["blk.2.ffn_down.weight"].reshape(-1, BLOCKS["Q8_0"])
        blocks[:, 2:] = blocks[:, :1:-1].copy()

    result = damaged("Q8_0", permute)
    assert "1 of 30 quantized" in result.sentences[0]
    assert "blk.2.ffn_down.weight" in result.sentences[0]


def test_two_swapped_layers_fail_by_weights_and_by_answers(damaged):
    def swap(reader):
        found = tensors(reader)
        for name in [name for name in found if name.startswith("blk.1.")]:
            one, other = found[name], found[name.replace("blk.1.", "blk.2.")]
            one[...], other[...] = other.copy(), one.copy()

    result = damaged("Q8_0", swap)
    assert result.outcome == "fail"
    assert "14 of 30 quantized" in result.sentences[0]
    assert any("does not answer" in sentence for sentence in result.sentences)


def test_scales_that_are_not_finite_are_the_only_sentence(damaged):
    def spoil(reader):
        tensors(reader)["blk.0.ffn_up.weight"].reshape(-1, BLOCKS["Q8_0"])[7, :2] = (0, 0x7E)  # NaN in float16

    assert damaged("Q8_0", spoil).sentences == (
        "1 tensors of model.gguf hold scales that are not finite, blk.0.ffn_up.weight among them",
    )


def test_a_file_that_names_another_end_of_text_fails_though_llamacpp_still_stops(damaged):
    def rename(reader):
        field = reader.fields["tokenizer.ggml.eos_token_id"]
        field.parts[field.data[0]][0] = 5

    assert damaged("Q8_0", rename).sentences == ("eos_token_id in model.gguf is 5, the baseline's is 0",)


def test_a_file_with_another_chat_template_fails(damaged):
    def reword(reader):
        field = reader.fields["tokenizer.chat_template"]
        text = field.parts[field.data[0]]
        words = bytes(text)
        assert b"role" in words or b"content" in words
        text[:] = np.frombuffer(words.replace(b"content", b"role   "), np.uint8)

    (sentence,) = damaged("Q8_0", reword).sentences
    assert sentence.startswith("the engine makes other ids of conversation 1 of 3 than the baseline's chat template")


def test_a_file_with_another_tokenizer_fails(damaged):
    def swap(reader):
        """The first merges last: words are cut otherwise."""
        field = reader.fields["tokenizer.ggml.tokens"]
        places = [number for number in field.data if len(field.parts[number]) == 1][40:80]
        for one, other in zip(places[::2], places[1::2], strict=True):
            first, second = field.parts[one].copy(), field.parts[other].copy()
            field.parts[one][:], field.parts[other][:] = second, first

    sentences = damaged("Q8_0", swap).sentences
    assert any("the engine makes other ids of" in sentence for sentence in sentences)


def test_a_file_that_was_cut_short_does_not_load_and_one_sentence_says_why(made, host, tmp_path):
    from quantize.errors import QuantizeError

    shutil.copytree(made / "Q8_0", tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "checkpoint"
    path = checkpoint / "model.gguf"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(QuantizeError) as caught:
        LlamaCpp().open(checkpoint, "cpu", host)
    result = proof.not_loaded(caught.value, proof.damage(checkpoint))
    (sentence,) = result.sentences
    assert sentence.startswith("model.gguf is damaged or cut short: ")
    assert result.tail
