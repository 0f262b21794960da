"""The reference of a packed checkpoint holds the weights that were packed, and says so where there are none to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quantize import proof
from quantize.errors import SourceError
from quantize.proof.witness import nothing_recorded, read

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
GROUP = 64


def pack(weight):
    """GPTQ's tensors of a weight (out, in), symmetric in 4 bits, and the weight that they stand for."""
    import torch

    grouped = weight.float().reshape(len(weight), -1, GROUP)
    scales = (grouped.abs().amax(2) / 7).half().float()
    integers = (grouped / scales[:, :, None]).round().clamp(-8, 7).to(torch.int32)
    columns = (integers.reshape(len(weight), -1) + 8).T.contiguous()  # (in, out)
    words = torch.zeros(len(columns) // 8, columns.shape[1], dtype=torch.int32)
    for place in range(8):
        words |= columns[place::8] << (4 * place)
    zeros = torch.full((columns.shape[0] // GROUP, columns.shape[1] // 8), 0x77777777, dtype=torch.int32)
    tensors = {"qweight": words, "qzeros": zeros, "scales": scales.T.half().contiguous()}
    tensors["g_idx"] = (torch.arange(columns.shape[0]) // GROUP).to(torch.int32)
    return tensors, (integers * scales[:, :, None]).reshape(weight.shape)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A GPTQ checkpoint as another program would have saved it, and a plain model with the weights that it holds."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    out = tmp_path_factory.mktemp("packed") / "checkpoint"
    shutil.copytree(TINY, out)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tensors = {}
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            parts, stands_for = pack(parameter.data)
            tensors |= {f"{module}.{leaf}": tensor for leaf, tensor in parts.items()}
            parameter.data = stands_for
        else:
            tensors[name] = parameter.data.to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "checkpoint_format": "gptq"}
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": settings}), encoding="utf-8")
    return out, model


def test_the_reference_holds_the_weights_that_were_packed(packed, tmp_path):
    checkpoint, model = packed
    (tmp_path / "own").mkdir()
    proof.record(model, TINY, tmp_path / "own", checkpoint)
    proof.refer(checkpoint, TINY, tmp_path, "cpu")
    found, expected = read(tmp_path), read(tmp_path / "own")
    assert found.referred
    assert not expected.referred
    assert found.top_ids.equal(expected.top_ids)
    assert float((found.top_logits - expected.top_logits).abs().max()) < 1e-4
    apart = {name: float((found.fingerprints[name] - t).norm() / t.norm()) for name, t in expected.fingerprints.items()}
    assert max(apart.values()) < 1e-6


def test_a_linear_that_is_not_there_is_named(packed, tmp_path):
    from safetensors.torch import load_file, save_file

    place = Path(shutil.copytree(packed[0], tmp_path / "copy"))
    tensors = load_file(place / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.2.mlp.down_proj." not in name}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"no weights for model\.layers\.2\.mlp\.down_proj, which the baseline has"):
        proof.refer(place, TINY, tmp_path, "cpu")


def test_where_no_reference_can_be_made_the_reason_is_written_down(packed, tmp_path):
    place = Path(shutil.copytree(packed[0], tmp_path / "copy"))
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "of tomorrow"}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    proof.refer(place, TINY, tmp_path, "cpu")
    why = nothing_recorded(tmp_path)
    assert why is not None
    assert "does not load in transformers" in why or "lacks" in why
