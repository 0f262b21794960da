"""How many GPUs a model needs, on models whose answer is known from their cards and from practice."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from quantize.errors import SourceError
from quantize.scheme import preset
from quantize.serving import CARDS, Limits, Served, Shape, kv_bytes_per_token, read_shape, size_for

ROOT = Path(__file__).parents[2]
LLAMA_8B = Shape(layers=32, heads=32, kv_heads=8, head_size=128, intermediate_size=14336, context=131072)
LLAMA_70B = Shape(layers=80, heads=64, kv_heads=8, head_size=128, intermediate_size=28672, context=131072)
QWEN_7B = Shape(layers=28, heads=28, kv_heads=4, head_size=128, intermediate_size=18944, context=32768)
LIMITS = Limits(8192, 1024)


def served(shape: Shape | None, gigabytes: float, scheme: str | None = None) -> Served:
    format_ = "none" if scheme is None else "compressed-tensors"
    return Served("model", "variant", format_, None if scheme is None else preset(scheme), int(gigabytes * 1e9), shape)


def gpus(what: Served, card: float) -> int | None:
    size = size_for(what, card * 1e9, LIMITS)
    return None if size is None else size.gpus


def test_the_cache_of_a_token_is_that_of_the_published_models():
    assert kv_bytes_per_token(LLAMA_8B, 16) == 128 * 1024
    assert kv_bytes_per_token(LLAMA_70B, 16) == 320 * 1024
    assert kv_bytes_per_token(LLAMA_70B, 8) == 160 * 1024
    assert kv_bytes_per_token(LLAMA_70B, 16, gpus=8) == 40 * 1024
    assert kv_bytes_per_token(QWEN_7B, 16, gpus=8) == kv_bytes_per_token(QWEN_7B, 16, gpus=4), "KV heads are copied"


@pytest.mark.parametrize(
    ("model", "card", "expected"),
    [
        (served(LLAMA_8B, 16.1), 24, 1),
        (served(LLAMA_8B, 5.7, "W4A16"), 24, 1),
        (served(LLAMA_70B, 72.7, "FP8_DYNAMIC"), 80, 2),
        (served(LLAMA_70B, 72.7, "FP8_DYNAMIC"), 141, 1),
        (served(LLAMA_70B, 141.1), 80, 4),
        (served(LLAMA_70B, 141.1), 192, 1),
        (served(LLAMA_70B, 39.8, "W4A16"), 48, 2),
        (served(LLAMA_70B, 39.8, "W4A16"), 80, 1),
        (served(LLAMA_70B, 800), 24, None),
    ],
)
def test_known_models_on_known_cards(model, card, expected):
    assert gpus(model, card) == expected


def test_a_split_divides_heads_and_whole_groups_of_input_channels():
    """28 heads go on 1, 2 or 4 GPUs; 18944 = 148 * 128 input channels on 1, 2 or 4 in groups of 128."""
    assert [gpus(served(QWEN_7B, weights), 24) for weights in (15, 30, 60)] == [1, 2, 4]
    assert gpus(served(QWEN_7B, 120), 24) is None, "8 does not divide 28 heads"
    odd = replace(LLAMA_8B, intermediate_size=128 * 3)
    assert gpus(served(odd, 30), 24) == 2
    assert gpus(served(odd, 30, "W4A16"), 24) is None, "192 channels a GPU are one and a half groups"


def test_more_memory_never_takes_more_gpus_nor_serves_fewer_on_the_same():
    sizes = [size_for(served(LLAMA_70B, 72.7, "FP8_DYNAMIC"), card * 1e9, LIMITS) for card in CARDS]
    found = [size for size in sizes if size is not None]
    assert [size.gpus for size in found] == sorted((size.gpus for size in found), reverse=True)
    for before, after in pairwise(found):
        assert before.gpus > after.gpus or before.requests <= after.requests


def test_what_fits_is_within_the_card():
    """The formula turned round: weights, cache and runtime on each GPU are 90 % of its memory at most."""
    for card in CARDS:
        size = size_for(served(LLAMA_70B, 72.7, "FP8_DYNAMIC"), card * 1e9, LIMITS)
        assert size is not None
        held = 72.7e9 / size.gpus + size.tokens * kv_bytes_per_token(LLAMA_70B, 16, size.gpus) + 2e9
        assert 0.89 * card * 1e9 < held <= 0.9 * card * 1e9
        assert size.tokens >= 2 * LIMITS.context


def test_an_fp8_cache_holds_twice_the_tokens_and_a_draft_takes_its_share():
    model, draft = served(LLAMA_8B, 16.1), served(LLAMA_8B, 5.7, "W4A16")
    whole, half = (size_for(model, 80e9, LIMITS, bits=bits) for bits in (16, 8))
    assert whole is not None and half is not None
    assert half.tokens == pytest.approx(2 * whole.tokens, abs=1)
    both = size_for(model, 80e9, LIMITS, draft=draft)
    assert both is not None and both.tokens < whole.tokens / 2


def test_without_a_shape_nothing_is_claimed():
    assert size_for(served(None, 1), 80e9, LIMITS) is None


def test_shapes_are_read_from_configs(tmp_path):
    assert read_shape(ROOT / "tests" / "shapes" / "llama-3.1-8b") == LLAMA_8B
    config = json.loads((ROOT / "tests/shapes/llama-3.1-8b/config.json").read_text(encoding="utf-8"))
    without = {k: v for k, v in config.items() if k not in ("head_dim", "num_key_value_heads")}
    for text, expected in (
        ({"text_config": config, "model_type": "llava"}, LLAMA_8B),
        (without, replace(LLAMA_8B, kv_heads=32)),
        ({**config, "kv_lora_rank": 512}, None),
        ({"model_type": "mamba", "hidden_size": 768}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(text), encoding="utf-8")
        assert read_shape(tmp_path) == expected


def test_a_checkpoint_without_a_config_is_an_error_with_its_place(tmp_path):
    with pytest.raises(SourceError, match=r"config\.json") as error:
        read_shape(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_limits_keep_within_the_models_context():
    assert Limits.of(LLAMA_8B) == Limits(8192, 1024)
    assert Limits.of(replace(LLAMA_8B, context=1024)) == Limits(1024, 128)
    assert Limits.of(None).input == 7168
