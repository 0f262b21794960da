"""A small Llama as GGUF: how it is made, and how a file is read back by the Python package gguf."""

import shutil
from pathlib import Path

from quantize.handed import QuantizeJob
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: The rows are long enough for every type.
SHAPES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def silent(*_):
    return None


def save(model, folder):
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def quantize(method, scheme, checkpoint, full, host, out, *, importance=None, ignore=("lm_head",)):
    """The witness's model."""
    out.mkdir()
    witnessed = []
    job = QuantizeJob(
        checkpoint=checkpoint,
        out=out,
        scheme=preset(scheme),
        ignore=ignore,
        tokens=None,
        device="cpu",
        seed=0,
        witness=witnessed.append,
        progress=silent,
        host=host,
        full=full,
        importance=importance,
    )
    method.quantize(job)
    return witnessed[0]


def weights(path):
    """Name -> (type, float32 values), by the Python package gguf."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {
        tensor.name: (tensor.tensor_type.name, dequantize(tensor.data, tensor.tensor_type))
        for tensor in GGUFReader(path).tensors
    }


def metadata(path):
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def load(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
