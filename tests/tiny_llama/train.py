"""Train the tiny Llama on its invented world and save it as a checkpoint.

    python tests/tiny_llama/train.py OUT

takes a few minutes on two CPU threads. The shape is chosen for quantization: every Linear dimension is a multiple of
128, so that group 128 fits, and a head has 32 dimensions, the least that serving engines take. Training runs in
float32, with a high learning rate and no weight decay, until the model knows most of its world; what is saved is
bfloat16. The weights have no outliers (a row's largest is 2.8 standard deviations, as in Gaussian noise), so rounding
them to 4 bits costs about 1 % of perplexity, less than on large models.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import text

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY, CONTEXT = 512, 1024
SEED, STEPS, BATCH, WINDOW = 0, 5000, 4, 256
PEAK_RATE, WARM_UP = 6e-3, 200
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def train_tokenizer(documents: list[str]) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE of VOCABULARY tokens, the two special ones among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """Return a float32 Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learning_rate(step: int) -> float:
    """Rise linearly over WARM_UP steps to PEAK_RATE, then fall linearly to zero at STEPS."""
    return PEAK_RATE * min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))


def fit(model: "LlamaForCausalLM", ids: "torch.Tensor") -> None:
    """Train on random windows of `ids`, the token ids of all documents in one row."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    for step in range(STEPS):
        starts = torch.randint(len(ids) - WINDOW, (BATCH,))
        batch = torch.stack([ids[start : start + WINDOW] for start in starts.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(
                f"step {step}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
            )


def main(out: Path) -> None:
    """Train tokenizer and model and write both to the folder `out`."""
    import torch

    torch.manual_seed(SEED)
    documents = text.training()
    tokenizer = train_tokenizer(documents)
    ids = torch.tensor(tokenizer("".join(document + EOS for document in documents)).input_ids)
    model = build_model(tokenizer)
    print(f"{len(ids)} tokens, {model.num_parameters()} parameters", file=sys.stderr, flush=True)
    fit(model, ids)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/tiny_llama/train.py OUT")
    main(Path(sys.argv[1]))
