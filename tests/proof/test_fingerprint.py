"""Every format's decoder gives the weight that was packed, and the projection that its library's own weight has."""

import json

import pytest
import torch  # noqa: TID253 (every test here computes with it)
from safetensors.torch import save_file

from quantize import fingerprint

OUT, IN, GROUP = 64, 96, 32


def project(weight):
    """W·r by hand."""
    columns = weight.shape[1]
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    return (weight.double() @ vector).float()


def integers(bits, *shape):
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int64)


def packed(values, bits):
    """Unsigned integers (rows, columns) -> int32 words along the rows, the first value in the lowest bits.

    By whole numbers of any length, one column at a time: nothing like how it is unpacked.
    """
    columns = []
    for column in values.T.tolist():
        number = sum(value << (bits * place) for place, value in enumerate(column))
        count = len(column) * bits // 32
        words = [(number >> (32 * place)) & 0xFFFFFFFF for place in range(count)]
        columns.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(columns, dtype=torch.int32).T.contiguous()


def write(folder, tensors, settings):
    save_file({f"proj.{leaf}": tensor.contiguous() for leaf, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["as it comes", "by activation"])
def test_gptq_is_read_at_every_width_version_and_order(tmp_path, bits, version, order):
    groups = torch.arange(IN) // GROUP
    if order == "by activation":
        groups = groups[torch.randperm(IN, generator=torch.Generator().manual_seed(0))]
    values, zeros = integers(bits, IN, OUT), integers(bits, IN // GROUP, OUT)
    scales = torch.rand(IN // GROUP, OUT).half()
    # version 1 stores one less, and of zero what lies below it in so many bits
    stored = zeros if version == "gptq_v2" else (zeros - 1) % 2**bits
    write(
        tmp_path,
        {
            "qweight": packed(values, bits),
            "qzeros": packed(stored.T, bits).T,
            "scales": scales,
            "g_idx": groups.int(),
        },
        {"quant_method": "gptq", "bits": bits, "checkpoint_format": version},
    )
    weight = ((values - zeros[groups]) * scales.float()[groups]).T
    for kind in ("gptq", "plain"):
        found = fingerprint.on_disk(tmp_path, {"proj": {"kind": kind}}, "float32")
        assert torch.allclose(found["proj"], project(weight), rtol=1e-5, atol=1e-4)


def test_awq_is_read_in_the_order_of_its_kernel(tmp_path):
    values, zeros = integers(4, IN, OUT), integers(4, IN // GROUP, OUT)
    scales = torch.rand(IN // GROUP, OUT).half()
    shuffled = torch.tensor([8 * word + place for word in range(OUT // 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)])
    write(
        tmp_path,
        {
            "qweight": packed(values[:, shuffled].T, 4).T,
            "qzeros": packed(zeros[:, shuffled].T, 4).T,
            "scales": scales,
        },
        {"quant_method": "awq", "bits": 4},
    )
    spread = torch.arange(IN) // GROUP
    weight = ((values - zeros[spread]) * scales.float()[spread]).T
    for kind in ("awq", "plain"):
        found = fingerprint.on_disk(tmp_path, {"proj": {"kind": kind}}, "float32")
        assert torch.allclose(found["proj"], project(weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("quantized", [["Q8_0"], ["Q4_0"], ["Q5_1"], ["F16"], ["BF16"], ["F32"]])
def test_gguf_is_read_from_every_type_that_the_package_writes(tmp_path, quantized):
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    (name,) = quantized
    kind = GGMLQuantizationType[name]
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3)).numpy()
    data = quantize(weight, kind)
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", weight[0].copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    projections, layouts = fingerprint.of_gguf(path)
    assert layouts == {"blk.0.attn_q.weight": {"kind": "gguf", "type": name}}
    expected = project(torch.tensor(dequantize(data, kind)))
    assert torch.equal(projections["blk.0.attn_q.weight"], expected)
    assert torch.equal(fingerprint.on_disk(tmp_path, layouts, "float32")["blk.0.attn_q.weight"], expected)


def test_a_plain_model_is_fingerprinted_without_its_head(tmp_path):
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    tiny = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    projections, layouts = fingerprint.in_memory(model)
    assert len(projections) == 28
    assert {layout["kind"] for layout in layouts.values()} == {"plain"}
    found = fingerprint.on_disk(tiny, layouts, "float32")
    assert all(torch.equal(found[name], projections[name]) for name in projections)
