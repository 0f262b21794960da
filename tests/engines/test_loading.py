"""What the transformers engine refuses to load, and that it says which checkpoint."""

import shutil
from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.errors import Interrupted, QuantizeError

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


def test_a_checkpoint_that_does_not_load_is_named(tmp_path):
    for file in CHECKPOINT.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(QuantizeError, match="does not load in transformers") as caught:
        Transformers().open(tmp_path, "cpu")
    assert caught.value.where == str(tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path):
    import torch
    from safetensors.torch import load_file

    for file in CHECKPOINT.iterdir():
        shutil.copy(file, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(QuantizeError, match="does not load in transformers"):
        Transformers().open(tmp_path, "cpu")


def weights_of(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.fixture
def damaged(tmp_path):
    """A copy of the checkpoint whose weights may be changed: `damaged(change)` -> its folder."""
    from safetensors.torch import save_file

    def copy(change):
        shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
        tensors = weights_of(tmp_path)
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return copy


def test_weights_that_are_missing_are_not_made_up(damaged):
    folder = damaged(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(QuantizeError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight first") as caught:
        Transformers().open(folder, "cpu")
    assert caught.value.where == str(folder)


def test_a_weight_of_another_shape_and_a_file_cut_short_are_refused(damaged):
    folder = damaged(lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:7].contiguous()}))
    with pytest.raises(QuantizeError, match="does not load in transformers"):
        Transformers().open(folder, "cpu")
    (folder / "model.safetensors").write_bytes((CHECKPOINT / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(QuantizeError, match="does not load in transformers: SafetensorError"):
        Transformers().open(folder, "cpu")


def test_a_stop_on_request_while_loading_is_no_broken_checkpoint(monkeypatch):
    from transformers import AutoModelForCausalLM

    def stop(*_, **__):
        raise Interrupted("stopped by a signal.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(Interrupted):
        Transformers().open(CHECKPOINT, "cpu")
