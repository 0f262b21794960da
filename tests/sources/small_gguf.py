"""A GGUF file of a few kilobytes that is a whole model: a Llama of random weights with a real byte-level vocabulary."""

from pathlib import Path

HIDDEN, INNER, HEADS, LAYERS, CONTEXT = 32, 64, 2, 2, 128
CONTROL = ["<s>", "</s>"]
USER_DEFINED = "<tool>"
#: In the vocabulary, but no merges lead to it: only a tokenizer that takes whole words first finds it.
UNREACHABLE = "Ġunmergeable"
#: Numbers of several digits, so that it shows where a pre-tokenizer cuts them; SmolLM2's own merges have none.
DIGITS = ["1 2", "12 3", "123 4", "Ġ 1", "0 0", "1 9", "3 4"]


def byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level BPE, by byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write_small_gguf(
    path: Path,
    merges: list[str],
    *,
    pre: str = "gpt-2",
    model: str = "gpt2",
    architecture: str = "llama",
    tied: bool = True,
    skip: str | None = None,
    extra: dict[str, str | bool | int | float] | None = None,
) -> None:
    """Write `path`; `skip` leaves out one tensor, `extra` adds metadata."""
    from gguf import GGUFWriter

    merges = DIGITS + merges
    tokens = [*CONTROL, USER_DEFINED, *byte_letters(), UNREACHABLE]
    tokens += [token for token in (merge.replace(" ", "") for merge in merges) if token not in set(tokens)]
    writer = GGUFWriter(path, architecture)
    writer.add_name("small")
    for key, value in {
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": HIDDEN // HEADS,
        "vocab_size": len(tokens),
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 10_000.0)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [4] + [1] * (len(tokens) - len(CONTROL) - 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in (extra or {}).items():
        adders[type(value)](key, value)
    _add_weights(writer, len(tokens), tied=tied, skip=skip)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer, vocabulary: int, *, tied: bool, skip: str | None) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, HIDDEN)
    for layer in range(LAYERS):
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (HIDDEN, HIDDEN))
        parts |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
        parts |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    for name, shape in shapes.items():
        if name != skip:
            writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32))
