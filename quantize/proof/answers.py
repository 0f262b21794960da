"""The engine's next-token distributions beside the witness's.

KL(in memory || loaded) at every recorded position, over the tokens that both name and one bucket for all others. By the
log-sum inequality lumping tokens together can only lower it: it is exact where an engine gives whole distributions, and
a lower bound where it gives the likeliest tokens only. `compared_mass` says how much of the probability was told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantize.handed import Session
from quantize.proof.limits import limit
from quantize.proof.prompts import POSITIONS
from quantize.proof.result import Numbers
from quantize.proof.witness import Witness

if TYPE_CHECKING:
    import torch

__all__ = ["answer_differences", "closeness", "finite_answers"]

#: What the sum of an engine's own probabilities may miss of 1 by rounding: the bucket of the others is no smaller.
#: Top-k engines answer in float32, whole distributions are normalised in float64.
_ROUNDING = {"full": 1e-15, "top": 1e-6}


def answer_differences(session: Session, witness: Witness, engine: str, numbers: Numbers) -> list[str]:
    """Ask the session what the witness was asked; fills `numbers`, returns what is wrong."""
    import torch

    rounded = witness.rounded or (engine == "llamacpp" and bool(witness.ggml_types - {"F32", "F16", "BF16"}))
    allowed = limit(engine, rounded, witness.dtype, session.arithmetic)
    numbers |= {"distributions": session.distributions, "session_dtype": session.arithmetic}
    numbers["witness"] = "reference" if witness.referred else "in memory"
    numbers |= {"positions": len(witness.top_ids), "limit": allowed}
    if int(witness.top_ids.max()) >= session.vocabulary:
        return [f"the vocabulary has {session.vocabulary} tokens, fewer than the model in memory had"]
    counts = [min(POSITIONS, len(ids)) for ids in witness.prompts]
    asked = zip(witness.prompts, torch.split(witness.top_ids, counts), strict=True)
    found = torch.cat([session.log_probabilities(ids, kept).double().cpu() for ids, kept in asked])
    known = ~found.isnan()
    silent = int((~known.any(1)).sum())
    if silent:
        return [f"logits are not finite at {silent} of {len(found)} positions"]
    kl, mass = _divergence(witness, found, known, _ROUNDING[session.distributions])
    largest, mean = float(kl.max()), float(kl.mean())
    agreement = float((found.nan_to_num(-torch.inf).argmax(1) == 0).double().mean())
    numbers |= {"max_kl": largest, "mean_kl": mean, "top1_agreement": agreement, "compared_mass": float(mass.mean())}
    if mean <= allowed:
        return []
    sentence = (
        f"the checkpoint does not answer as {_whom(numbers)}: over {len(kl)} positions the KL divergence is "
        f"{_at_least(numbers)}{mean:.1e} nat on average (limit {allowed:.0e}) and {largest:.1e} at most, and the most "
        f"likely token agrees at {agreement:.0%}"
    )
    return [sentence]


def closeness(numbers: Numbers) -> str:
    """The sentence of a proof that passed."""
    said = (
        f"the checkpoint answers as {_whom(numbers)}: over {numbers['positions']} positions the KL divergence "
        f"is {_at_least(numbers)}{numbers['mean_kl']:.1e} nat on average (limit {numbers['limit']:.0e})"
    )
    share = numbers["compared_mass"]
    if numbers["distributions"] == "full" or not isinstance(share, float):
        return said
    return f"{said}, a lower bound from the tokens that the engine names, which hold {share:.2%} of the probability"


def finite_answers(session: Session, tokenizer_dir: Path, numbers: Numbers) -> list[str]:
    """For a checkpoint without a witness: whether the session gives a probability to what the prompts go on with."""
    import torch
    from transformers import AutoTokenizer

    from quantize.proof.prompts import PROMPTS

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    numbers |= {"distributions": session.distributions, "session_dtype": session.arithmetic, "witness": "none"}
    prompts = [torch.tensor(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    found = torch.cat([session.log_probabilities(ids, ids[-POSITIONS:, None]) for ids in prompts])
    silent = int((~found.isfinite().any(1)).sum())
    numbers["positions"] = len(found)
    return [f"logits are not finite at {silent} of {len(found)} positions"] if silent else []


def _whom(numbers: Numbers) -> str:
    return (
        "a reading of its files by a reference does" if numbers["witness"] == "reference" else "the model in memory did"
    )


def _at_least(numbers: Numbers) -> str:
    return "" if numbers["distributions"] == "full" else "at least "


def _divergence(
    witness: Witness, found: torch.Tensor, known: torch.Tensor, rounding: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL in nat (positions), and the probability of the tokens that were told apart (positions).

    `found` float64 (positions, kept) are log-probabilities, used where `known`; one bucket takes all the rest.
    """
    import torch

    expected = torch.cat([witness.top_logits.double(), witness.rest[:, None]], 1).log_softmax(1)
    tokens, lumped = expected[:, :-1], expected.clone()
    lumped[:, :-1] = lumped[:, :-1].masked_fill(known, -torch.inf)
    others = lumped.logsumexp(1)
    theirs = 1 - found.masked_fill(~known, -torch.inf).exp().sum(1)
    # Below what the engine's rounding leaves of 1, there is nothing to compare.
    seen = torch.maximum(others.exp(), theirs) > rounding
    bucket = torch.where(seen, _terms(others, theirs.clamp_min(rounding).log()), 0.0)
    terms = torch.where(known, _terms(tokens, found.nan_to_num(0.0)), 0.0)
    return terms.sum(1) + bucket, tokens.exp().where(known, 0.0).sum(1)


def _terms(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """P ln(P/Q) - P + Q of log-probabilities. Over a whole distribution the last two cancel.

    With them no term is negative, and errors of rounding enter by their square: without them those of an engine that
    answers in float32 add up to 1e-7.
    """
    import torch

    # what has no probability adds nothing; 0 times minus infinity would be NaN
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)) - p.exp() + q.exp()
