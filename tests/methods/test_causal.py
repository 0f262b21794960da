"""Methods are calibrated on what the model computes: attention sees what came before, in every architecture."""

from __future__ import annotations

import pytest
from small_models import VOCABULARY, save

from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn, _causal, _llmcompressor
from quantize.scheme import preset


@pytest.fixture
def attended(tmp_path, monkeypatch):
    """A function: config class -> what the first layer's attention gave while it was calibrated, and what it gives."""
    seen = []

    def watch(model):
        layer = model.get_submodule("model.layers.0.self_attn")
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out[0].detach().clone()))

    def run(name):
        import torch
        from transformers import AutoModelForCausalLM

        source, out = save(name, tmp_path / "source"), tmp_path / "out"
        out.mkdir()
        row = torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(_llmcompressor, "keep_names", watch)
        host, silent = Host({}, tmp_path), lambda *_: None
        Rtn().quantize(QuantizeJob(source, out, preset("FP8"), ("lm_head",), (row,), "cpu", 0, silent, silent, host))
        calibrated = seen[0]
        seen.clear()
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        watch(model)
        with torch.no_grad():
            model(input_ids=row[None], use_cache=False)
        return calibrated, seen[0]

    return run


@pytest.mark.parametrize("name", ["LlamaConfig", "MistralConfig", "Phi3Config", "Qwen3MoeConfig"])
def test_attention_gives_in_calibration_what_it_gives_in_the_model(attended, name):
    calibrated, own = attended(name)
    assert (calibrated - own).abs().max() < 1e-5 * own.abs().max()


def test_a_calibration_without_a_mask_is_an_error_and_not_another_model(attended, monkeypatch):
    """As the library does it by itself."""
    monkeypatch.setattr(_causal, "_AFFECTED", ())
    with pytest.raises(QuantizeError, match="would calibrate MistralAttention without its causal mask"):
        attended("MistralConfig")


def test_the_library_is_as_it_was_afterwards():
    from llmcompressor.pipelines.sequential.ast_utils import AutoWrapper

    with _causal.causal_tracing():
        assert hasattr(AutoWrapper, "visit_Assign")
    assert not hasattr(AutoWrapper, "visit_Assign")
