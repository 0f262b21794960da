"""The column loop for CPUs beside llm-compressor's own, on whole weights: every bit is the same."""

import pytest

from quantize.methods._gptq_block import _usable, quantize_gptq_block_on_cpu, register


def arguments(**changes):
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(**{"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"} | changes)


def quantized(args, batch, rows, columns):
    """llm-compressor's result for seeded weights and inputs; `columns` is no multiple of its blocks of 128."""
    import torch
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(batch, rows, columns, generator=draw)
    inputs = torch.randn(batch, columns, 2 * columns, generator=draw)
    grouped = weights.unflatten(-1, (-1, args.group_size or columns))
    steps = 2**args.num_bits - 1
    if args.symmetric:
        scale = grouped.abs().amax(-1) * 2 / steps
        zero = torch.zeros_like(scale, dtype=torch.int8)
    else:
        scale = (grouped.amax(-1) - grouped.amin(-1)) / steps
        zero = (-(2 ** (args.num_bits - 1)) - torch.round(grouped.amin(-1) / scale)).to(torch.int8)
    return quantize_weight(weights, inputs @ inputs.mT, scale, zero, None, args)


@pytest.fixture
def eager(monkeypatch):
    """A table without the loop, as llm-compressor has it; the loop may be put into it."""
    from compressed_tensors.utils.impl_backend import ImplBackend
    from llmcompressor.modifiers.gptq import gptq_quantize  # noqa: F401 (registers its own)

    monkeypatch.setattr(ImplBackend, "_backends", {"gptq_block_update": []})
    monkeypatch.setattr(ImplBackend, "_fn_registry", {})


@pytest.mark.parametrize(
    "args",
    [
        {"group_size": 32, "actorder": "static"},
        {"group_size": 32, "actorder": "weight", "symmetric": False},
        {"group_size": 32, "symmetric": False},
        {"strategy": "channel", "num_bits": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_loop_for_cpus_computes_the_librarys_own_bits(eager, args, batch):
    import torch
    from compressed_tensors.utils.impl_backend import ImplBackend

    args = arguments(**args)
    own = quantized(args, batch, 24, 160)
    register.__wrapped__()  # in this table, whatever is known of the process's own
    assert [entry[0] for entry in ImplBackend._backends["gptq_block_update"]] == [quantize_gptq_block_on_cpu]
    ours = quantized(args, batch, 24, 160)
    assert own[0].std() > 0
    for mine, theirs in zip(ours, own, strict=True):
        assert torch.equal(mine, theirs)


def test_other_numbers_are_left_to_the_librarys_own_loop():
    import torch

    work = torch.zeros(1, 2, 2)
    assert _usable(work, scale=work, quant_args=arguments(group_size=32))
    assert not _usable(work, scale=work.bfloat16(), quant_args=arguments(group_size=32))
    assert not _usable(work.double(), scale=work, quant_args=arguments(group_size=32))
    assert not _usable(work, scale=work, quant_args=arguments(strategy="channel", num_bits=8, type="float"))
    assert not _usable(work.to("meta"), scale=work, quant_args=arguments(group_size=32))
