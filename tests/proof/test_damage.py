"""Damaged files are one sentence each, and an engine that cannot open them leaves its log's tail beside it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from quantize import proof
from quantize.errors import QuantizeError

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


@pytest.fixture
def checkpoint(tmp_path):
    place = tmp_path / "checkpoint"
    shutil.copytree(TINY, place)
    return place


def shard(checkpoint):
    """The same tensors in two files with an index."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (place >= 20)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, checkpoint / file)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_a_whole_checkpoint_has_no_damage(checkpoint):
    assert proof.damage(checkpoint) == []
    shard(checkpoint)
    assert proof.damage(checkpoint) == []


def test_a_missing_shard_is_named(checkpoint):
    shard(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert proof.damage(checkpoint) == [
        "the checkpoint lacks 1 of 2 weight files, model-00002-of-00002.safetensors among them"
    ]


def test_no_weights_at_all_is_said(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert proof.damage(checkpoint) == ["the checkpoint has no weight files"]


@pytest.mark.parametrize("keep", [4, 5000, 1_500_000])
def test_a_file_that_was_cut_short_is_named(checkpoint, keep):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    (sentence,) = proof.damage(checkpoint)
    assert sentence.startswith("model.safetensors is damaged or cut short: ")


def test_scales_that_are_not_finite_are_named(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, checkpoint / "model.safetensors")
    (sentence,) = proof.damage(checkpoint)
    assert sentence.startswith("1 tensors of model.safetensors hold scales that are not finite, ")
    assert "model.layers.0.mlp.up_proj.weight_scale" in sentence


def test_a_gguf_file_of_a_few_bytes_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    (sentence,) = proof.damage(tmp_path)
    assert sentence.startswith("model.gguf is damaged or cut short: ")


def test_damage_is_the_sentence_and_the_engines_words_are_the_tail():
    error = QuantizeError("the server ended with status 1: there is no such file.\nline 1\nline 2", where="/log")
    found = proof.not_loaded(error, ["the checkpoint lacks 1 of 2 weight files, b among them"])
    assert found.outcome == "fail"
    assert found.sentences == ("the checkpoint lacks 1 of 2 weight files, b among them",)
    assert found.tail == "the server ended with status 1: there is no such file.\nline 1\nline 2"


def test_a_long_log_stays_out_of_the_sentence():
    log = "\n".join(f"line {number}" for number in range(15))
    found = proof.not_loaded(QuantizeError(f"vLLM ended with status 1: no kernel for it.\n{log}", where="/a/log"))
    assert found.sentences == ("the checkpoint does not load: vLLM ended with status 1: no kernel for it.",)
    assert found.tail == log
    one = proof.not_loaded(QuantizeError("x" * 5000))
    assert len(one.sentences[0]) < 700
    assert "x" * 5000 in one.tail
    assert found == proof.Proof.model_validate_json(found.model_dump_json())
