"""A proof passes for an honest checkpoint and fails for one wrong layer, two swapped ones, or another end of text."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from program import seldom

from quantize import proof
from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn
from quantize.scheme import preset

TINY = Path(__file__).parent / "tiny_llama" / "checkpoint"
SCHEMES = {
    "fp8": preset("FP8_DYNAMIC"),
    "int8": preset("W8A8"),
    "int4": replace(preset("W4A16"), group_size=64),
    "int4-asym": preset("W4A16_ASYM"),
    "int8-weights": preset("W8A16"),
}
MAIN = ("fp8", "int8", "int4")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantized")
    for name, scheme in SCHEMES.items():
        checkpoint, witness = root / name / "checkpoint", root / name / "witness"
        checkpoint.mkdir(parents=True)
        witness.mkdir()
        note = partial(proof.record, tokenizer_dir=TINY, out=witness, checkpoint=checkpoint)
        host = Host({}, root)
        Rtn().quantize(QuantizeJob(TINY, checkpoint, scheme, ("lm_head",), None, "cpu", 0, note, lambda *_: None, host))
    return root


@pytest.fixture
def copy(quantized, tmp_path):
    """A checkpoint to damage, and its witness."""

    def make(name):
        shutil.copytree(quantized / name, tmp_path / name)
        return tmp_path / name

    return make


def prove(place, engine=Transformers()):  # noqa: B008
    checkpoint = place / "checkpoint"
    session = engine.open(checkpoint, "cpu", Host({}, place))
    try:
        return proof.prove(checkpoint, place / "witness", TINY, session)
    finally:
        session.close()


def change_tensors(place, change):
    from safetensors.torch import load_file, save_file

    path = place / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", SCHEMES)
def test_an_honest_checkpoint_passes(quantized, name):
    result = prove(quantized / name)
    assert result.outcome == "pass", result.sentences
    assert result.numbers["max_kl"] <= 1e-9
    assert result.numbers["top1_agreement"] == 1.0
    assert result.numbers["fingerprints"] == 28
    assert result == proof.Proof.model_validate_json(result.model_dump_json())


@pytest.mark.parametrize("name", MAIN)
def test_an_honest_checkpoint_passes_in_an_engine_that_computes_in_another_dtype(quantized, name):
    result = prove(quantized / name, Transformers(dtype="bfloat16"))
    assert result.outcome == "pass", result.sentences
    assert result.numbers["session_dtype"] == "bfloat16"
    assert result.numbers["max_kl"] > 0


@pytest.mark.parametrize("name", seldom(MAIN, often=("int4",)))
def test_five_percent_on_the_scales_of_any_one_linear_fails(copy, name):
    from safetensors.torch import load_file

    place = copy(name)
    honest = (place / "checkpoint" / "model.safetensors").read_bytes()
    scales = [key for key in load_file(place / "checkpoint" / "model.safetensors") if key.endswith(".weight_scale")]
    assert len(scales) == 28
    # every third of them is of every kind and from every layer: there are seven to a layer
    for key in scales[::3]:
        change_tensors(place, lambda tensors, key=key: tensors[key].mul_(1.05))
        result = prove(place)
        assert result.outcome == "fail", key
        assert any(key.removesuffix(".weight_scale") in sentence for sentence in result.sentences)
        (place / "checkpoint" / "model.safetensors").write_bytes(honest)


def test_weight_only_answers_alone_tell_five_percent_on_one_linear(copy):
    place = copy("int4")
    change_tensors(place, lambda tensors: tensors["model.layers.3.self_attn.q_proj.weight_scale"].mul_(1.05))
    result = prove(place)
    assert result.numbers["mean_kl"] > 10 * result.numbers["limit"]
    assert any("does not answer" in sentence for sentence in result.sentences)


@pytest.mark.parametrize("name", MAIN)
def test_two_swapped_layers_fail_by_weights_and_by_answers(copy, name):
    def swap(tensors):
        for key in [key for key in tensors if key.startswith("model.layers.1.")]:
            other = key.replace("layers.1.", "layers.2.")
            tensors[key], tensors[other] = tensors[other], tensors[key]

    place = copy(name)
    change_tensors(place, swap)
    result = prove(place)
    assert result.outcome == "fail"
    assert any("7 of 28" in sentence or "14 of 28" in sentence for sentence in result.sentences)
    assert any("does not answer" in sentence for sentence in result.sentences)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_another_end_of_text_fails(copy, name, file):
    place = copy(name)
    values = {"eos_token": "<|pad|>"} if file == "tokenizer_config.json" else {"eos_token_id": 5}
    change_json(place / "checkpoint" / file, **values)
    result = prove(place)
    assert result.outcome == "fail"
    assert "eos_token_id" in result.sentences[0]
    # The engine follows the generation settings; only where they are another's does it talk on, or end in mid-sentence.
    ends = [sentence for sentence in result.sentences if sentence.startswith("generation does not stop at token 0")]
    assert len(ends) == (file == "generation_config.json")


def test_another_chat_template_fails(copy):
    place = copy("int8")
    (place / "checkpoint" / "chat_template.jinja").write_text("{{ messages }}")
    files, engine = prove(place).sentences
    assert files == "the chat template is not the baseline's"
    assert engine.startswith("the engine makes other ids of conversation 1 of 3 than the baseline's chat template")


def test_a_tokenizer_that_cuts_words_otherwise_fails(copy):
    place = copy("int8")
    path = place / "checkpoint" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = data["model"]["merges"][:20]
    path.write_text(json.dumps(data))
    files, prompts, chat = prove(place).sentences
    assert "the tokenizer gives other ids" in files
    assert "the engine makes other ids of 15 of 16 prompts" in prompts
    assert "the engine makes other ids of conversation 1" in chat


def test_answers_that_are_not_finite_fail(copy):
    place = copy("int8")
    change_tensors(place, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    assert any(sentence == "logits are not finite at 128 of 128 positions" for sentence in prove(place).sentences)


def test_a_missing_linear_fails(copy):
    place = copy("int8")

    def drop(tensors):
        for part in ("weight", "weight_scale"):
            del tensors[f"model.layers.0.mlp.up_proj.{part}"]

    session = Transformers().open(place / "checkpoint", "cpu", Host({}, place))
    change_tensors(place, drop)
    result = proof.prove(place / "checkpoint", place / "witness", TINY, session)
    assert result.outcome == "fail"
    assert "lacks 1 of 28 quantized Linears, model.layers.0.mlp.up_proj" in result.sentences[0]


def test_a_checkpoint_that_does_not_load_is_a_failed_proof():
    result = proof.not_loaded("no such format")
    assert result.outcome == "fail"
    assert result.sentences == ("the checkpoint does not load: no such format",)
