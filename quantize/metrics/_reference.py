"""The baseline's distributions, from its hidden states and its own head, and a variant's divergence from them.

Neither text nor vocabulary is ever held whole. Hidden states go to disk in shards of `_SHARD` positions and come back
as they are needed; logits exist for `_POSITIONS` x `_COLUMNS` (positions, vocabulary) at a time. Sums over the
vocabulary run on in float64, with the greatest logit so far taken out (M. Milakov and N. Gimelshein, "Online normalizer
calculation for softmax", 2018): a divergence of near arms is far below what float32 leaves of sums to one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quantize.errors import DataError, QuantizeError
from quantize.handed import EvaluateJob, HeadParameters, WholeSession
from quantize.metrics._shards import Shards, ShardWriter, blocks
from quantize.metrics._token_rows import Scores

if TYPE_CHECKING:
    import torch

__all__ = ["Exact", "Reference", "ReferenceWriter", "differences", "score"]

_HEAD = "head.json"

#: Positions in one file of hidden states.
_SHARD = 4096

#: Positions and vocabulary entries whose logits are held at a time.
_POSITIONS, _COLUMNS = 256, 4096

#: Positions whose logits are compared, and how far they may lie apart: bfloat16, the coarsest, rounds to 0.4 %.
_CHECKED, _TOLERANCE = 8, 1e-2

#: (hidden states, first column, column after the last) -> float32 logits (positions, columns).
Head = Callable[["torch.Tensor", int, int], "torch.Tensor"]


class Exact:
    """Scores an arm by whole distributions, against the baseline's where it is known. See `_token_rows.Scoring`."""

    def __init__(self, session: WholeSession, job: EvaluateJob) -> None:
        self._session = session
        self._vocabulary = session.head_parameters().vocabulary
        beside = job.reference is not None and job.baseline is not None
        self._known = Reference(cast("Path", job.reference), cast("Path", job.baseline)) if beside else None
        self._keep = ReferenceWriter(session, job.out, job.baseline) if job.reference is None else None

    def incomparable(self, windows: Sequence[torch.Tensor]) -> list[str]:
        """See `_token_rows.Scoring`."""
        import torch

        known = self._known
        if known is None:
            return []
        same = known.same_tokens(torch.cat([ids[1:] for ids in windows]))
        stops = differences(self._vocabulary, known.vocabulary, same_tokens=same)
        if stops:
            self._known = None
        return stops

    def scores(self, windows: Sequence[torch.Tensor], targets: torch.Tensor, offset: int) -> Iterator[Scores]:
        """See `_token_rows.Scoring`."""
        import torch

        hidden = torch.cat([states[:-1] for states in self._session.hidden(windows)])
        if self._keep is not None:
            self._keep.add(hidden, targets)
        return score(self._session.head, hidden, targets, self._vocabulary, self._known, offset)

    def close(self) -> None:
        """See `_token_rows.Scoring`."""
        if self._keep is not None:
            self._keep.close()


def differences(vocabulary: int, baseline: int, *, same_tokens: bool) -> list[str]:
    """Why distributions over so many tokens cannot be set beside the baseline's, if anything is in the way."""
    if not same_tokens:
        return ["the tokenizer gives other tokens than the baseline's: nothing can be compared"]
    if vocabulary != baseline:
        return [f"the output head has {vocabulary} entries, the baseline's {baseline}: nothing can be compared"]
    return []


class ReferenceWriter:
    """Keeps hidden states as they come, and how the head is applied.

    With the baseline's `checkpoint`, its stored head must give the first positions the logits that the session's
    gives: a head stored under another name or packed would falsify every divergence. `add` raises QuantizeError.
    """

    def __init__(self, session: WholeSession, out: Path, checkpoint: Path | None) -> None:
        self._session, self._out, self._checkpoint = session, out, checkpoint
        self._shards = ShardWriter(out, _SHARD)

    def add(self, hidden: torch.Tensor, tokens: torch.Tensor) -> None:
        """Keep `hidden` (positions, hidden), in the dtype that it has, and the scored `tokens` (positions)."""
        if not self._shards.started and self._checkpoint is not None:
            self._check(self._checkpoint, hidden[:_CHECKED])
        self._shards.add({"hidden": hidden, "tokens": tokens.int()})

    def close(self) -> None:
        """Write what is left."""
        head = {**asdict(self._session.head_parameters()), "shards": self._shards.close()}
        (self._out / _HEAD).write_text(json.dumps(head), encoding="utf-8")

    def _check(self, checkpoint: Path, hidden: torch.Tensor) -> None:
        import torch

        parameters = self._session.head_parameters()
        stored = _StoredHead(parameters, checkpoint)
        same = stored.vocabulary == parameters.vocabulary
        for start, stop in blocks(parameters.vocabulary, _COLUMNS) if same else ():
            first, second = (head(hidden, start, stop).cpu() for head in (stored.logits, self._session.head))
            same = same and torch.allclose(first, second, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        if not same:
            raise QuantizeError(
                "the output head in the weight files is not the one that the model applies.",
                where=str(checkpoint),
                fix="Leave the text eval out for this model.",
            )


class Reference:
    """What the baseline's `evaluate` artifact keeps, and the head in the baseline's checkpoint."""

    def __init__(self, artifact: Path, checkpoint: Path) -> None:
        head = json.loads((artifact / _HEAD).read_text(encoding="utf-8"))
        self._shards = Shards(artifact, head.pop("shards"))
        self._head = _StoredHead(HeadParameters(**head), checkpoint)

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        return self._head.vocabulary

    def same_tokens(self, tokens: torch.Tensor) -> bool:
        """True where these are all of the baseline's scored tokens."""
        return self._shards.same_tokens(tokens, _SHARD)

    def hidden(self, start: int, stop: int) -> torch.Tensor:
        """The baseline's final hidden states (positions, hidden) at scored positions `start` to `stop`."""
        return self._shards.read("hidden", start, stop)

    def logits(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The baseline's float32 logits (positions, columns) of the vocabulary's entries `start` to `stop`."""
        return self._head.logits(hidden, start, stop)


class _StoredHead:
    """The output head as a checkpoint's weight files hold it."""

    def __init__(self, parameters: HeadParameters, checkpoint: Path) -> None:
        import torch

        dtype = getattr(torch, parameters.dtype)
        self._weight = _tensor(checkpoint, parameters.weights).to(dtype)
        self._bias = _tensor(checkpoint, parameters.biases).to(dtype) if parameters.biases else None
        self._multiply, self._cap = parameters.multiply, parameters.cap

    @property
    def vocabulary(self) -> int:
        return len(self._weight)

    def logits(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Float32 logits (positions, columns), where `hidden` is; the head moves there once."""
        import torch

        if self._weight.device != hidden.device:
            self._weight = self._weight.to(hidden.device)
            self._bias = self._bias.to(hidden.device) if self._bias is not None else None
        bias = self._bias[start:stop] if self._bias is not None else None
        with torch.inference_mode():
            states = hidden.to(self._weight.dtype)
            logits = torch.nn.functional.linear(states, self._weight[start:stop], bias).float() * self._multiply
            return torch.tanh(logits / self._cap) * self._cap if self._cap else logits


def score(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, vocabulary: int, known: Reference | None, offset: int
) -> Iterator[Scores]:
    """Score `hidden` (positions, hidden) against the true next tokens `targets` (positions), some positions at a time.

    `offset` is the first one's place among all scored positions; `known` has as many logits as `vocabulary` says.
    """
    import torch

    for start, stop in blocks(len(targets), _POSITIONS):
        states, wanted = hidden[start:stop], targets[start:stop].to(hidden.device)
        before = known.hidden(offset + start, offset + stop).to(hidden.device) if known is not None else None
        variant, baseline = _Online(wanted), _Online(wanted)
        difference = torch.zeros(len(wanted), dtype=torch.float64, device=hidden.device)
        for first, last in blocks(vocabulary, _COLUMNS):
            q = variant.add(head(states, first, last).to(hidden.device), first)
            if known is not None and before is not None:
                p = baseline.add(known.logits(before, first, last), first)
                weighted = torch.einsum("ij,ij->i", baseline.weights, p.sub_(q))
                difference = difference * baseline.shrunk + weighted
        kld = agrees = delta_p = None
        if known is not None:
            # sum P_b (z_b - z_q) - (ln Z_b - ln Z_q); below 0 it is rounding, as no divergence is negative.
            kld = (difference / baseline.total - baseline.log_sum() + variant.log_sum()).clamp(min=0).cpu()
            agrees = (baseline.best == variant.best).cpu()
            delta_p = ((-variant.loss()).exp() - (-baseline.loss()).exp()).cpu()
        yield Scores(variant.loss().cpu(), kld, agrees, delta_p)


class _Online:
    """Running log-sum-exp, best entry and true token's logit of rows whose columns come block by block.

    After `add`, `weights` are the block's exp(logit - top), and `shrunk` what earlier sums of such weights must be
    multiplied by, because `top` has grown. A logit that is not finite makes its row NaN for good.
    """

    def __init__(self, targets: torch.Tensor) -> None:
        import torch

        self._targets = targets
        self._top = torch.full(targets.shape, -torch.inf, dtype=torch.float64, device=targets.device)
        self._logit = torch.zeros_like(self._top)
        self.total = torch.zeros_like(self._top)
        self.shrunk = torch.ones_like(self._top)
        self.best = torch.zeros_like(targets)
        self.weights = self.total

    def add(self, logits: torch.Tensor, first: int) -> torch.Tensor:
        """Take in the columns from `first` on, float32 (positions, columns); returns them in float64."""
        import torch

        exact = logits.double()
        top, at = exact.max(-1)
        self.best = torch.where(top > self._top, at + first, self.best)  # of equals the first, as argmax
        # Any inf or NaN of a block shows in its sum; finite float32 logits cannot reach inf in float64.
        top = torch.where(exact.sum(-1).isfinite(), torch.maximum(self._top, top), torch.nan)
        self.shrunk, self._top = (self._top - top).exp(), top
        self.weights = (exact - top.unsqueeze(1)).exp_()
        self.total = self.total * self.shrunk + self.weights.sum(-1)
        place = self._targets - first
        here = (place >= 0) & (place < logits.shape[1])
        found = exact.gather(1, place.clamp(0, logits.shape[1] - 1).unsqueeze(1))[:, 0]
        self._logit = torch.where(here, found, self._logit)
        return exact

    def log_sum(self) -> torch.Tensor:
        return self._top + self.total.log()

    def loss(self) -> torch.Tensor:
        return self.log_sum() - self._logit


def _tensor(checkpoint: Path, names: Any) -> torch.Tensor:
    """The first of `names` that a checkpoint's weight files hold."""
    from safetensors import safe_open

    for name in names:
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                    return cast("torch.Tensor", tensors.get_tensor(name))
    raise DataError(f"the checkpoint holds no output head under {' or '.join(names)}.", where=str(checkpoint))
