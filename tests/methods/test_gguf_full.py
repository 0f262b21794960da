"""The unquantized GGUF file and the importance matrix, by llama.cpp; read by the Python package gguf."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from gguf_cases import PARTS, SHAPES, TINY, load, metadata, quantize, save, silent, weights

from quantize.errors import MissingDependency, QuantizeError
from quantize.handed import Host
from quantize.methods import Gguf, collect_imatrix, convert_to_gguf
from quantize.methods._gguf_child_convert import pre_tokenizer
from quantize.methods._gguf_imatrix import read_imatrix


@pytest.mark.engine
@pytest.mark.parametrize(("which", "dtype"), [("tiny", "BF16"), ("wide", "F32")])
def test_converting_keeps_every_number_in_the_checkpoints_own_dtype(which, dtype, wide, converted):
    from safetensors.torch import load_file

    checkpoint = TINY if which == "tiny" else wide
    path, told = converted(checkpoint)
    assert told["dtype"] == dtype
    stored, original = weights(path), load_file(checkpoint / "model.safetensors")
    for part in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):  # query and key are permuted within heads
        kind, values = stored[f"blk.1.{part}.weight"]
        assert kind == dtype
        assert np.array_equal(values, original[f"model.layers.1.{PARTS[part]}.weight"].float().numpy())


@pytest.mark.engine
def test_a_converted_model_says_its_name_tokenizer_and_template_and_has_the_text_files_beside_it(converted):
    path, _ = converted(TINY)
    told = metadata(path)
    assert told["general.name"] == "llama"
    assert told["general.file_type"] == 32  # mostly BF16
    assert told["tokenizer.ggml.model"] == "gpt2"
    assert told["tokenizer.ggml.pre"] == "gpt-2"
    assert told["tokenizer.ggml.eos_token_id"] == 0
    assert told["tokenizer.chat_template"] == (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (path.parent / name).read_bytes() == (TINY / name).read_bytes()


@pytest.mark.engine
def test_the_model_card_beside_a_checkpoint_becomes_card_fields_of_the_file(host, tmp_path):
    checkpoint, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(TINY, checkpoint)
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\nmodel_name: Small Llama\n---\n", encoding="utf-8")
    out.mkdir()
    convert_to_gguf(checkpoint, None, out, host, silent)
    told = metadata(out / "model.gguf")
    assert told["general.license"] == "apache-2.0"
    assert told["general.name"] == "Small Llama"


@pytest.mark.engine
def test_a_gguf_source_is_expanded_exactly_and_keeps_what_it_says_of_itself(host, converted, wide, tmp_path):
    """Quantized to Q4_1 it is a source such as people publish."""
    source = tmp_path / "source"
    quantize(Gguf(), "Q4_1", wide, converted(wide)[0], host, source)
    out = tmp_path / "out"
    out.mkdir()
    told = convert_to_gguf(wide, source / "model.gguf", out, host, silent)
    assert told["dtype"] == "F32"
    assert told["from"] == "gguf"
    expanded = weights(out / "model.gguf")
    for name, (_, values) in weights(source / "model.gguf").items():
        assert expanded[name][0] == "F32"
        np.testing.assert_allclose(expanded[name][1], values, rtol=1e-6, atol=1e-7)
    before, after = metadata(source / "model.gguf"), metadata(out / "model.gguf")
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed <= {"general.file_type", "GGUF.kv_count", "GGUF.tensor_count"}


@pytest.mark.engine
def test_an_unquantized_gguf_source_keeps_its_dtype(host, converted, tmp_path):
    told = convert_to_gguf(TINY, converted(TINY)[0], tmp_path, host, silent)
    assert told["dtype"] == "BF16"
    assert set(told["types"]) == {"BF16"}


@pytest.mark.engine
def test_sums_by_llama_cpp_are_those_of_transformers(converted, wide, some_tokens, imatrix):
    import torch

    model = load(wide)
    sums, handles = {}, []

    def add(name):
        def hook(_module, inputs, _output):
            squares = inputs[0].double().square().reshape(-1, inputs[0].shape[-1]).sum(0)
            sums[name] = sums.get(name, 0) + squares

        return hook

    for layer in range(2):
        for part, module in PARTS.items():
            found = model.get_submodule(f"model.layers.{layer}.{module}")
            handles.append(found.register_forward_hook(add(f"blk.{layer}.{part}.weight")))
    handles.append(model.lm_head.register_forward_hook(add("output.weight")))
    with torch.no_grad():
        for row in some_tokens:
            model(input_ids=row[None], use_cache=False)
    means = read_imatrix(imatrix)
    assert set(means) == set(sums)
    for name, total in sums.items():
        np.testing.assert_allclose(means[name][0], (total / some_tokens.numel()).numpy(), rtol=1e-3)


@pytest.mark.engine
def test_every_expert_has_sums_of_its_own_over_the_tokens_that_were_sent_to_it(host, some_tokens, tmp_path):
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        **SHAPES | {"hidden_size": 64, "intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2}
    )
    model = MixtralForCausalLM(config).eval()
    checkpoint, full = save(model, tmp_path / "mixtral"), tmp_path / "full"
    full.mkdir()
    convert_to_gguf(checkpoint, None, full, host, silent)
    collect_imatrix(full / "model.gguf", some_tokens, tmp_path / "imatrix.gguf", "cpu", host, silent)
    block, seen = model.model.layers[1].mlp, []
    block.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].reshape(-1, 64)))
    with torch.no_grad():
        for row in some_tokens:
            model(input_ids=row[None], use_cache=False)
        inputs = torch.cat(seen)
        chosen = (inputs @ block.gate.weight.T).topk(2).indices
        means = read_imatrix(tmp_path / "imatrix.gguf")
        for expert in range(4):
            sent = inputs[(chosen == expert).any(1)]
            gate, up = (sent @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
            inner = torch.nn.functional.silu(gate) * up
            for name, values in (("ffn_up_exps", sent), ("ffn_down_exps", inner)):
                expected = values.double().square().mean(0).numpy()
                np.testing.assert_allclose(means[f"blk.1.{name}.weight"][expert], expected, rtol=1e-3)


@pytest.mark.engine
def test_the_importance_matrix_is_llama_cpps_own_file(imatrix, some_tokens):
    from gguf import GGUFReader

    told = metadata(imatrix)
    assert told["general.type"] == "imatrix"
    assert "general.architecture" not in told
    assert (told["imatrix.chunk_count"], told["imatrix.chunk_size"]) == tuple(some_tokens.shape)
    assert told["imatrix.datasets"]
    shapes = {tensor.name: tuple(tensor.data.shape) for tensor in GGUFReader(imatrix).tensors}
    assert shapes["blk.0.ffn_down.weight.in_sum2"] == (1, 512)
    counts = next(t.data for t in GGUFReader(imatrix).tensors if t.name == "blk.0.ffn_down.weight.counts")
    assert counts.reshape(-1).tolist() == [some_tokens.numel()]


@pytest.mark.engine
def test_a_truncated_model_is_an_error_with_what_llama_cpp_said(host, converted, some_tokens, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(converted(TINY)[0].read_bytes()[:-5000])
    with pytest.raises(QuantizeError, match="measuring importance ended with status 1") as caught:
        collect_imatrix(broken, some_tokens, tmp_path / "imatrix.gguf", "cpu", host, silent)
    assert "llama" in str(caught.value)
    assert not (tmp_path / "imatrix.gguf").exists()


@pytest.mark.engine
def test_a_killed_child_is_an_error_that_names_the_signal(host, wide, converted, tmp_path):
    import torch

    rows = torch.zeros((100_000, 8), dtype=torch.int64)

    def kill(what, done, total):
        if done:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
            for guard in children:
                for child in Path(f"/proc/{guard}/task/{guard}/children").read_text(encoding="utf-8").split():
                    os.kill(int(child), signal.SIGKILL)

    with pytest.raises(QuantizeError, match=r"measuring importance was killed \(SIGKILL\)"):
        collect_imatrix(converted(TINY)[0], rows, tmp_path / "imatrix.gguf", "cpu", host, kill)


def test_without_its_environment_the_error_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingDependency, match="quantize env create llamacpp"):
        convert_to_gguf(TINY, None, tmp_path, Host({}, tmp_path), silent)


def test_a_pre_tokenizer_is_known_by_its_parts_or_not_at_all():
    own = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    assert pre_tokenizer(own) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    sequence = {"type": "Sequence", "pretokenizers": [digits, own["pre_tokenizer"]]}
    assert pre_tokenizer({"pre_tokenizer": sequence}) == "smollm"
    assert pre_tokenizer({"pre_tokenizer": own["pre_tokenizer"] | {"add_prefix_space": True}}) is None
    assert pre_tokenizer({"pre_tokenizer": {"type": "Whitespace"}}) is None
    assert pre_tokenizer({**own, "normalizer": {"type": "NFC"}}) is None
