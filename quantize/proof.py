"""The proof that a checkpoint on disk answers like the model that was in memory when it was written.

`record` is the witness: it runs while the quantized model is still in memory, before it is saved, and writes down what
it answers to fixed prompts. `prove` runs in a clean process on the checkpoint as its engine loaded it, asks again, and
looks at what a user would trip over first: distributions, token ids, the chat template, and when generation stops. A
failure ends the variant before any eval time is spent on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantize.protocols import Session
from quantize.record import Record

if TYPE_CHECKING:
    import torch

Numbers = dict[str, float | int | str | None]

__all__ = ["LIMITS", "PROMPTS", "Proof", "not_loaded", "prove", "record"]

WITNESS_FILE = "witness.safetensors"
FINGERPRINT = "fingerprint."
#: The last positions of each prompt that are compared.
POSITIONS = 8
#: Logits that are kept of each position; the rest of the vocabulary is kept as one sum.
TOP = 1024
STOP_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

#: Short texts of many kinds: the answers differ, and so do the weights that they lean on.
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at a lower temperature on a mountain because the air there",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "12 + 30 = 42, 13 + 31 = 44, 14 + 32 =",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "field":',
    "Once upon a time there was a fox who could not sleep, so every night she",
    "Question: Which planet is the largest?\nAnswer:",
    "Der Zug nach Hamburg fährt um acht Uhr ab, und der nächste",
    "La lluvia en Sevilla es una maravilla, pero la nieve",
    "SELECT customer, SUM(price) FROM orders WHERE year = 2020 GROUP BY",
    "1. Wash the rice.\n2. Add two cups of water.\n3.",
    "Dear Sir or Madam,\n\nI am writing to complain about the",
    "the cat sat on the mat the cat sat on the mat the cat sat on the",
    "<html>\n  <head>\n    <title>Hello</title>\n  </head>\n  <body>\n    <h1>",
    "x = 3; y = 4; therefore x² + y² = 25 and the hypotenuse is",
    "東京は日本の首都です。京都は",
)

#: Limits in nat for the KL divergence, averaged over the positions, by the dtype of the arithmetic and by whether
#: activations are rounded. Measured on the trained test model (0.8M parameters) and on SmolLM2-135M-Instruct:
#:
#: | mean KL                                 | weights rounded | activations too (W8A8, FP8_DYNAMIC) |
#: |---|---|---|
#: | float32, reloaded, same kernels         | 0               | 0            |
#: | float32, other number of threads        | <= 1e-12        | <= 0.012     |
#: | float32, other attention kernel         | <= 1e-11        | <= 0.025     |
#: | bfloat16 against itself or float32      | <= 0.002        | <= 0.086     |
#: | 5 % on the scales of any one Linear     | >= 4.7e-6       | >= 7e-5      |
#: | two layers swapped                      | >= 0.22         | >= 0.197     |
#:
#: In float32 with only weights rounded answers are reproducible, and the limit is sharp. Rounded activations are not:
#: a last-bit difference flips roundings, and flips move the answers further than 5 % on one layer does. There the limit
#: is for gross errors only, and `fingerprint` finds the fine ones. The mean, because the largest KL of an honest reload
#: in another dtype (7.5) is as large as that of two swapped layers (1.8 to 28).
LIMITS: dict[tuple[str, bool], float] = {
    ("float32", False): 1e-7,
    ("float32", True): 0.07,
    ("bfloat16", False): 0.02,
    ("bfloat16", True): 0.13,
    ("float16", False): 0.02,
    ("float16", True): 0.13,
}


class Proof(Record):
    """What came of it: one sentence for each thing that differs, or one that says how close the answers were."""

    version: Literal[1] = 1
    outcome: Literal["pass", "fail"]
    sentences: tuple[str, ...]
    numbers: Numbers


def record(model: Any, tokenizer_dir: Path, out: Path) -> None:
    """Write what `model` (a transformers causal LM) answers to the prompts into `out`/witness.safetensors.

    Tensors: `ids` int64 (all prompts, end to end) and `lengths` int64 (prompts); `top_ids` int64 and `top_logits`
    float32 (positions, kept); `rest` float64 (positions), the log of the summed exponentials of all other logits; and
    `fingerprint.<module>` float32. Raw logits and not log-probabilities, because normalising in float32 would be the
    largest error of the comparison.
    """
    import torch
    from safetensors.torch import save_file

    from quantize import fingerprint

    prompts = _encode(tokenizer_dir)
    device = model.get_input_embeddings().weight.device
    rows = []
    with torch.inference_mode():
        for ids in prompts:
            answer = model(input_ids=torch.tensor([ids], device=device), use_cache=False)
            rows.append(answer.logits[0, -POSITIONS:].float().cpu())
    logits = torch.cat(rows)
    top = logits.topk(min(TOP, logits.shape[1])).indices
    kept, rest = _coarsen(logits, top)
    tensors = {
        "ids": torch.tensor([token for ids in prompts for token in ids]),
        "lengths": torch.tensor([len(ids) for ids in prompts]),
        "top_ids": top,
        "top_logits": kept,
        "rest": rest,
    }
    tensors |= {f"{FINGERPRINT}{name}": projection for name, projection in fingerprint.in_memory(model).items()}
    schemes = fingerprint.schemes(model)
    metadata = {
        "version": "1",
        "dtype": str(model.dtype).removeprefix("torch."),
        "activations_rounded": str(any(entry["scheme"]["input_activations"] for entry in schemes.values())),
        "schemes": json.dumps(schemes),
    }
    # One entry, because safetensors writes several in an order of its own: the same model gives the same bytes.
    save_file(tensors, out / WITNESS_FILE, metadata={"witness": json.dumps(metadata, sort_keys=True)})


def prove(checkpoint: Path, witness: Path, baseline: Path, session: Session) -> Proof:
    """Compare `checkpoint`, as loaded in `session`, with the witness in `witness` and with the baseline's directory.

    The same bytes give the same proof: how long it took and what it cost stands in the stage's manifest instead.
    """
    from safetensors import safe_open

    with safe_open(witness / WITNESS_FILE, "pt") as file:
        metadata: dict[str, str] = json.loads(file.metadata()["witness"])
        recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers: Numbers = {"dtype": metadata["dtype"]}
    broken = [
        *_text_differences(checkpoint, baseline),
        *_weight_differences(checkpoint, recorded, metadata, numbers),
        *_answer_differences(session, recorded, metadata, numbers),
    ]
    if broken:
        return Proof(outcome="fail", sentences=tuple(broken), numbers=numbers)
    sentence = (
        f"the checkpoint answers as the model in memory did: over {numbers['positions']} positions the KL divergence "
        f"is {numbers['mean_kl']:.1e} nat on average (limit {numbers['limit']:.0e})"
    )
    return Proof(outcome="pass", sentences=(sentence,), numbers=numbers)


def not_loaded(reason: str) -> Proof:
    """The proof of a checkpoint that its engine could not open."""
    return Proof(outcome="fail", sentences=(f"the checkpoint does not load: {reason}",), numbers={})


def _encode(tokenizer_dir: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return [list(tokenizer(prompt).input_ids) for prompt in PROMPTS]


def _coarsen(logits: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, vocabulary) -> those at `kept` (rows, k), and log-sum-exp (rows) of all others in float64."""
    import torch

    others = logits.double().scatter(1, kept, -torch.inf)
    return logits.gather(1, kept).contiguous(), others.logsumexp(1)


def _log_probabilities(kept: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Float64 (rows, k + 1): the kept tokens and one bucket for the rest, normalised in float64."""
    import torch

    return torch.cat([kept.double(), rest[:, None]], dim=1).log_softmax(1)


def _answer_differences(
    session: Session, recorded: dict[str, torch.Tensor], metadata: dict[str, str], numbers: Numbers
) -> list[str]:
    """KL(in memory || reloaded) at every recorded position; fills `numbers`, returns what is wrong."""
    import torch

    prompts = torch.split(recorded["ids"], recorded["lengths"].tolist())
    logits = torch.cat([session.logits(ids[None])[0, -POSITIONS:].float().cpu() for ids in prompts])
    rounded = metadata["activations_rounded"] == "True"
    arithmetic = _dtype_behind(logits)
    limit = max(LIMITS[metadata["dtype"], rounded], LIMITS[arithmetic, rounded])
    numbers |= {"positions": len(logits), "session_dtype": arithmetic, "limit": limit}
    finite = logits.isfinite().all(1)
    if not bool(finite.all()):
        return [f"logits are not finite at {int((~finite).sum())} of {len(logits)} positions"]
    if int(recorded["top_ids"].max()) >= logits.shape[1]:
        return [f"the vocabulary has {logits.shape[1]} tokens, fewer than the model in memory had"]
    expected = _log_probabilities(recorded["top_logits"], recorded["rest"])
    found = _log_probabilities(*_coarsen(logits, recorded["top_ids"]))
    # a bucket without probability adds nothing; 0 times (-inf minus -inf) would be NaN
    terms = torch.where(expected.isneginf(), 0.0, expected.exp() * (expected - found))
    kl = terms.sum(1).clamp_min(0.0)
    largest, mean = float(kl.max()), float(kl.mean())
    agreement = float((logits.argmax(1) == recorded["top_ids"][:, 0]).double().mean())
    numbers |= {"max_kl": largest, "mean_kl": mean, "top1_agreement": agreement}
    if mean <= limit:
        return []
    sentence = (
        f"the checkpoint does not answer as the model in memory did: over {len(kl)} positions the KL divergence is "
        f"{mean:.1e} nat on average (limit {limit:.0e}) and {largest:.1e} at most, and the most likely token agrees at "
        f"{agreement:.0%}"
    )
    return [sentence]


def _dtype_behind(logits: torch.Tensor) -> str:
    """The dtype in which a session computed float32 `logits`: those of a bfloat16 head are all bfloat16 numbers."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(logits.to(dtype).float(), logits):
            return str(dtype).removeprefix("torch.")
    return "float32"


def _weight_differences(
    checkpoint: Path, recorded: dict[str, torch.Tensor], metadata: dict[str, str], numbers: Numbers
) -> list[str]:
    """Fingerprints of the quantized Linears, in memory and on disk; fills `numbers`, returns what is wrong."""
    from quantize import fingerprint

    expected = {name.removeprefix(FINGERPRINT): t for name, t in recorded.items() if name.startswith(FINGERPRINT)}
    found = fingerprint.on_disk(checkpoint, json.loads(metadata["schemes"]), metadata["dtype"])
    numbers["fingerprints"] = len(found)
    # An architecture whose tensors have other names on disk than its modules in memory: the answers must do.
    if not found:
        return []
    missing = sorted(set(expected) - set(found))
    if missing:
        return [f"the checkpoint lacks {len(missing)} of {len(expected)} quantized Linears, {missing[0]} among them"]
    apart = {name: float((found[name] - t).norm() / t.norm().clamp_min(1e-30)) for name, t in expected.items()}
    numbers |= {"fingerprint_difference": max(apart.values()), "fingerprint_limit": fingerprint.FINGERPRINT_LIMIT}
    wrong = {name: value for name, value in apart.items() if not value <= fingerprint.FINGERPRINT_LIMIT}
    if not wrong:
        return []
    worst = max(wrong, key=lambda name: wrong[name])
    sentence = (
        f"{len(wrong)} of {len(expected)} quantized Linears have other weights on disk than they had in memory; "
        f"the worst is {worst}, {wrong[worst]:.1%} apart"
    )
    return [sentence]


def _text_differences(checkpoint: Path, baseline: Path) -> list[str]:
    """What turns text into ids and ids into an end of text: a sentence for each thing that is not the baseline's."""
    from transformers import AutoTokenizer

    broken = []
    theirs, ours = AutoTokenizer.from_pretrained(baseline), AutoTokenizer.from_pretrained(checkpoint)
    changed = [p for p in PROMPTS if list(theirs(p).input_ids) != list(ours(p).input_ids)]
    if changed:
        broken.append(f"the tokenizer gives other ids than the baseline's for {len(changed)} of {len(PROMPTS)} prompts")
    if theirs.chat_template != ours.chat_template:
        broken.append("the chat template is not the baseline's")
    for place in ("config.json", "generation_config.json"):
        before, after = _stop_tokens(baseline / place), _stop_tokens(checkpoint / place)
        broken += [
            f"{name} in {place} is {after[name]}, the baseline's is {before[name]}"
            for name in STOP_TOKENS
            if before[name] != after[name]
        ]
    broken += [
        f"the tokenizer's {name} is {getattr(ours, name)}, the baseline's is {getattr(theirs, name)}"
        for name in STOP_TOKENS
        if getattr(ours, name) != getattr(theirs, name)
    ]
    return broken


def _stop_tokens(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    nested = values.get("text_config") or {}
    return {name: values.get(name, nested.get(name)) for name in STOP_TOKENS}
