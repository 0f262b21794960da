"""What `tests/gpu/test_llama3_8b_shape.py` does on a GPU, on a CPU with a tiny shape: the same code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from llama_shape import LLAMA_3_8B, build, quantized, speeds, tokens_of

from quantize.methods import Awq, Gptq, Rtn
from quantize.scheme import preset

SMALL = {
    **LLAMA_3_8B,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build(tmp_path_factory.mktemp("shape") / "checkpoint", SMALL, "cpu")


def test_a_checkpoint_of_the_shape_is_written_and_timed(checkpoint):
    from quantize.sources import checkpoint_facts

    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 2 * 9 + 3
    assert (
        checkpoint_facts(checkpoint).parameters == 2 * (2 * (128 + 64) * 128 + 3 * 128 * 256 + 256) + 1024 * 128 + 128
    )
    ceilings, row = speeds(checkpoint, "cpu", [(2, 16, 4)], side=256, size=2**24)
    assert ceilings.startswith("ceilings") and row.startswith("2 x 16 + 4: prefill") and row.endswith("eager")


@pytest.mark.parametrize(
    ("method", "scheme", "rows"),
    [
        (Gptq(), replace(preset("W4A16"), group_size=64), (4, 32)),
        (Awq(n_grid=4), replace(preset("W4A16"), group_size=64), (4, 32)),
        (Rtn(), preset("FP8_DYNAMIC"), None),
    ],
)
def test_every_method_runs_on_it_and_says_what_it_took(checkpoint, tmp_path, method, scheme, rows):
    tokens = None if rows is None else tokens_of(SMALL, *rows)
    cost = quantized(method, scheme, checkpoint, tmp_path / "out", "cpu", tokens)
    original = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert cost.seconds > 0 and cost.peak > 0 and 0 < cost.written < original
    assert "GiB written" in str(cost)
