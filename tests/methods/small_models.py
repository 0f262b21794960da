"""Models of many architectures, small and random, with the tiny Llama's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from program import TINY

VOCABULARY, LAYERS, EXPERTS = 512, 2, 4
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_LIKE = {**SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": False}
MOE = {**LLAMA_LIKE, "head_dim": 32, "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
#: Config class -> its arguments, and the Linears in a layer that are quantized.
MODELS = {
    "LlamaConfig": (LLAMA_LIKE, 7),
    "MistralConfig": ({**LLAMA_LIKE, "sliding_window": 64}, 7),
    "Qwen3Config": ({**LLAMA_LIKE, "head_dim": 32, "tie_word_embeddings": True}, 7),
    "Gemma3TextConfig": ({**LLAMA_LIKE, "head_dim": 32, "tie_word_embeddings": True}, 7),
    "Phi3Config": (LLAMA_LIKE, 4),
    "PhiConfig": ({**SHAPE, "tie_word_embeddings": False}, 6),
    "GPTNeoXConfig": ({**SHAPE, "tie_word_embeddings": False}, 4),
    "Qwen3MoeConfig": (MOE, 4 + 3 * EXPERTS),
}


def save(name: str, out: Path) -> Path:
    """A checkpoint of a config class."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**MODELS[name][0]))
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, every next token would be about as likely
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    model.to(torch.bfloat16).save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / "checkpoint" / file, out / file)
    return out
