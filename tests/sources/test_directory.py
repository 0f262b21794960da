"""A model that is not whole, not safe or not finite is refused with its place, before anything is spent on it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantize.errors import MissingDependency, SourceError
from quantize.sources import Directory, Package, checkpoint_facts, config_facts
from quantize.sources._digests import remembered_sha256

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage; its weights are float32, which numpy knows."""
    import torch
    from safetensors.torch import load_file as load_torch

    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    tensors = {name: t.to(torch.float32).numpy() for name, t in load_torch(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def fetch(folder: Path, out: Path) -> list[str]:
    """Fetch a directory source; the names of what came."""
    out.mkdir(exist_ok=True)
    Directory(path=str(folder)).fetch(out, lambda what, done, total: None)
    return sorted(path.name for path in out.iterdir())


def refused(folder: Path, out: Path, *, early: bool = True) -> str:
    """The sentence with which a directory is refused: by `facts` already (which a plan asks for) if `early`."""
    if early:
        with pytest.raises(SourceError):
            Directory(path=str(folder)).facts()
    else:
        Directory(path=str(folder)).facts()
    with pytest.raises(SourceError) as caught:
        fetch(folder, out)
    assert str(folder) in str(caught.value) or str(out) in str(caught.value)
    return str(caught.value)


def shard(folder: Path) -> None:
    """Split the weights into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    mapping = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        mapping |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_a_whole_model_is_linked_and_not_copied(model, tmp_path):
    assert "model.safetensors" in fetch(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").resolve() == model / "model.safetensors"


def test_only_pickle_weights_are_refused(model, tmp_path):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    said = refused(model, tmp_path / "out")
    assert "only pickle weights (pytorch_model.bin)" in said
    assert "safe_serialization=True" in said


def test_of_pickle_and_safetensors_only_safetensors_are_taken(model, tmp_path):
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling_evil.py"):
        (model / name).write_bytes(b"\x80\x04.")
    before = Directory(path=str(model)).identity()
    taken = fetch(model, tmp_path / "out")
    assert not [name for name in taken if name.endswith((".bin", ".pt", ".py"))]
    (model / "pytorch_model.bin").write_bytes(b"other")
    assert Directory(path=str(model)).identity() == before, "what is not taken is not part of the identity"


def test_no_weights_are_refused(model, tmp_path):
    (model / "model.safetensors").unlink()
    assert "there are no weights" in refused(model, tmp_path / "out")


@pytest.mark.parametrize("left", [0, 5, 8, 100, -1, -1000])
def test_truncated_weights_are_refused(model, tmp_path, left):
    path = model / "model.safetensors"
    os.truncate(path, left if left >= 0 else path.stat().st_size + left)
    assert "truncated" in refused(model, tmp_path / "out")


@pytest.mark.parametrize(
    "header", [b"[]", b'{"a": 1}', b'{"a": {"shape": [1]}}', b"not json", b'{"a": {"data_offsets": []}}']
)
def test_weights_with_a_broken_header_are_refused(model, tmp_path, header):
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a safetensors file" in refused(model, tmp_path / "out")


def test_a_sharded_model_has_the_facts_of_a_whole_one(model, tmp_path):
    whole = checkpoint_facts(model)
    shard(model)
    assert len(fetch(model, tmp_path / "out")) == 8
    sharded = checkpoint_facts(model)
    assert (sharded.parameters, sharded.linears) == (whole.parameters, whole.linears)


def test_a_second_form_of_the_weights_is_not_counted_twice(model):
    whole = checkpoint_facts(model)
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert checkpoint_facts(model) == whole
    shard(model)
    assert checkpoint_facts(model).parameters == whole.parameters


def test_a_missing_shard_is_named(model, tmp_path):
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "the shard model-00002-of-00002.safetensors is missing" in refused(model, tmp_path / "out")


def test_a_tensor_that_is_not_in_its_shard_is_named(model, tmp_path):
    shard(model)
    index = model / "model.safetensors.index.json"
    data = json.loads(index.read_text(encoding="utf-8"))
    data["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(data), encoding="utf-8")
    assert "the tensor model.extra is not in its shard" in refused(model, tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../a.safetensors"}}'])
def test_a_broken_index_is_refused(model, tmp_path, text):
    (model / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert "index" in refused(model, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(model, tmp_path, value):
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5:7] = value
    save_file(tensors, model / "model.safetensors")
    assert f"the tensor {name} has 2 values that are NaN or infinite" in refused(model, tmp_path / "out", early=False)


def test_large_weights_that_are_finite_are_taken(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = np.full_like(tensors["lm_head.weight"], np.finfo(np.float32).max)
    save_file(tensors, model / "model.safetensors")
    assert fetch(model, tmp_path / "out"), "only their sum overflows"


def test_a_model_without_a_tokenizer_is_refused(model, tmp_path):
    (model / "tokenizer.json").unlink()
    assert "there is no tokenizer" in refused(model, tmp_path / "out")


def test_a_model_with_code_of_its_own_is_refused(model, tmp_path):
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "auto_map" in refused(model, tmp_path / "out")


def test_a_missing_directory_is_refused_whatever_is_asked(tmp_path):
    source = Directory(path=str(tmp_path / "nope"))
    for ask in (source.identity, source.facts, lambda: source.fetch(tmp_path, lambda what, done, total: None)):
        with pytest.raises(SourceError, match="no such model directory"):
            ask()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no config.json"),
        ("{", "this is not JSON"),
        ("[]", "a config is a JSON object"),
        ('{"model_type": "llama"}', "hidden_size of this llama is None"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(model, tmp_path, text, says):
    (model / "config.json").unlink()
    if text is not None:
        (model / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=says):
        Directory(path=str(model)).facts()


def test_facts_from_a_config_are_those_of_the_weights():
    weights = checkpoint_facts(TINY)
    config = config_facts(json.loads((TINY / "config.json").read_text(encoding="utf-8")))
    assert (config.parameters, config.linears) == (weights.parameters, weights.linears)
    assert weights.unknown == []


def test_of_an_architecture_without_a_table_the_shapes_are_said_to_be_unknown():
    facts = config_facts({"model_type": "mamba", "hidden_size": 64, "vocab_size": 100})
    assert facts.parameters is None
    assert any("shapes of its Linear layers" in what for what in facts.unknown)


def test_a_changed_byte_is_another_identity_even_where_size_and_time_are_the_same(model):
    source = Directory(path=str(model))
    path = model / "tokenizer.json"
    before, times = source.identity(), path.stat()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert source.identity() != before


def test_the_digest_of_a_large_file_is_remembered_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    first = remembered_sha256(path)
    assert remembered_sha256(path) == first
    assert list((tmp_path / "cache").rglob("digests.json"))
    path.write_bytes(b"1" + bytes((2 << 20) - 1))
    os.utime(path, ns=(1, 1))
    assert remembered_sha256(path) != first
    (tmp_path / "cache" / "quantize" / "digests.json").write_text("{broken", encoding="utf-8")
    assert remembered_sha256(path) != first


def test_a_package_that_is_not_installed_is_said_with_its_command():
    source = Package(distribution="llm-nothing", module="llm_nothing", file="model.gguf")
    for ask in (source.identity, source.facts):
        with pytest.raises(MissingDependency, match=r"pip install --no-deps llm-nothing -c constraints\.txt"):
            ask()


@pytest.mark.parametrize("file", ["../secret.gguf", "/etc/passwd", "sub/../../secret.gguf", "link.gguf"])
def test_a_file_that_leads_out_of_the_package_is_refused(tmp_path, monkeypatch, file):
    package = tmp_path / "quantize_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    (package / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    source = Package(distribution="quantize-test-package", module="quantize_test_package", file=file)
    with pytest.raises(SourceError, match="leads out of the package"):
        source.identity()


def test_a_package_is_known_by_the_bytes_of_its_file_and_never_imported(tmp_path, monkeypatch):
    package = tmp_path / "quantize_other_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    source = Package(distribution="quantize-other-package", module="quantize_other_package", file="model.gguf")
    before = source.identity()
    (package / "model.gguf").write_bytes(b"GGUG")
    assert source.identity() != before


def test_the_list_that_pull_lays_beside_a_model_is_no_part_of_the_next_model(tmp_path):
    from quantize.registry import MANIFEST_FILE

    shutil.copytree(TINY, tmp_path / "model")
    before = Directory(path=str(tmp_path / "model")).identity()
    (tmp_path / "model" / MANIFEST_FILE).write_text("{}", encoding="utf-8")
    assert Directory(path=str(tmp_path / "model")).identity() == before
