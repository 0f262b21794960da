"""How much memory a measurement takes, and models of any vocabulary to measure it on."""

from quantize.engines import Transformers


def random_llama(folder, tokenizer, vocabulary, hidden=16):
    """A random one-layer Llama with `vocabulary` logits, at least as many as the tokenizer has entries."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Transformers().open(folder, "cpu")


def peak_bytes(measure):
    """The greatest sum of bytes that tensors held at once during `measure()`, beyond those that were there."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = measure()
    held = peak = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 0
    return peak, result
