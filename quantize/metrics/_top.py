"""A variant's divergence from the baseline where an engine gives the k likeliest tokens only: a bound from below.

Both arms' distributions are taken over the same parts: each token that both list, the true token, and all others as
one. Their probabilities are known exactly in both arms, and merging outcomes never makes a divergence greater (the data
processing inequality; T. Cover and J. Thomas, "Elements of Information Theory", 2006, section 2.8), so

    KLD_t >= sum over parts of P_b(part) * ln(P_b(part) / P_q(part))

with equality where k is the whole vocabulary. A greater k makes finer parts, and the bound never smaller. What is known
of the true token is exact, and so is whether the likeliest tokens agree.

The probability of "all others" is 1 less a sum, of which float32 log-probabilities leave an error of about 1e-7. It is
therefore taken for at least `_ROUNDING` in the variant: that only lowers the bound, and is the one thing that may make
it smaller as k grows, by about as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.errors import DataError, QuantizeError
from quantize.handed import EvaluateJob, Top, TopSession
from quantize.metrics._reference import differences
from quantize.metrics._shards import Shards, ShardWriter, blocks
from quantize.metrics._token_rows import Scores

if TYPE_CHECKING:
    import torch

__all__ = ["Likeliest", "divergence_at_least"]

_FILE = "top.json"

#: Positions in one file, and in one comparison.
_SHARD, _POSITIONS = 4096, 1024

#: What a sum of probabilities from float32 log-probabilities may be off by, a few times over.
_ROUNDING = 1e-6


class Likeliest:
    """Scores an arm by its `k` likeliest tokens. See `_token_rows.Scoring`.

    The baseline's are kept: 12 bytes for each token and position, and 12 for the true one.
    """

    def __init__(self, session: TopSession, job: EvaluateJob, k: int) -> None:
        self._session, self._out = session, job.out
        self._k = min(k, session.vocabulary)
        self._known = _Kept(job.reference) if job.reference is not None else None
        self._keep = ShardWriter(job.out, _SHARD) if job.reference is None else None

    def incomparable(self, windows: Sequence[torch.Tensor]) -> list[str]:
        """See `_token_rows.Scoring`."""
        import torch

        known = self._known
        if known is None:
            return []
        same = known.shards.same_tokens(torch.cat([ids[1:] for ids in windows]), _SHARD)
        stops = differences(self._session.vocabulary, known.vocabulary, same_tokens=same)
        if stops:
            self._known = None
        return stops

    def scores(self, windows: Sequence[torch.Tensor], targets: torch.Tensor, offset: int) -> Iterator[Scores]:
        """See `_token_rows.Scoring`."""
        found = _joined(self._session.top(windows, self._k), windows, self._k)
        if self._keep is not None:
            columns = {"true": found.true, "ids": found.ids.int(), "log_probabilities": found.log_probabilities}
            self._keep.add({**columns, "tokens": targets.int()})
        for start, stop in blocks(len(targets), _POSITIONS):
            variant = Top(found.true[start:stop], found.ids[start:stop], found.log_probabilities[start:stop])
            if self._known is None:
                yield Scores(-variant.true, None, None, None)
                continue
            baseline = self._known.top(offset + start, offset + stop)
            yield Scores(
                nll=-variant.true,
                kld=None,
                agrees=baseline.ids[:, 0] == variant.ids[:, 0],
                delta_p=variant.true.exp() - baseline.true.exp(),
                kld_at_least=divergence_at_least(baseline, variant, targets[start:stop]),
            )

    def close(self) -> None:
        """See `_token_rows.Scoring`."""
        if self._keep is not None:
            kept = {"k": self._k, "vocabulary": self._session.vocabulary, "shards": self._keep.close()}
            (self._out / _FILE).write_text(json.dumps(kept), encoding="utf-8")


class _Kept:
    """What the baseline's `evaluate` artifact keeps of its likeliest tokens."""

    def __init__(self, artifact: Path) -> None:
        try:
            kept = json.loads((artifact / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                "the baseline was measured by whole distributions, and this engine gives the likeliest tokens only.",
                where=str(artifact),
                fix="Measure the baseline in the variant's engine.",
            ) from None
        self.vocabulary = int(kept["vocabulary"])
        self.shards = Shards(artifact, kept["shards"])

    def top(self, start: int, stop: int) -> Top:
        """Of scored positions `start` to `stop`."""
        true, ids, found = (self.shards.read(name, start, stop) for name in ("true", "ids", "log_probabilities"))
        return Top(true, ids.long(), found)


def divergence_at_least(baseline: Top, variant: Top, targets: torch.Tensor) -> torch.Tensor:
    """The bound by position, float64 nats, never negative. `targets` (positions) are the true tokens.

    NaN where a log-probability of either arm is not finite.
    """
    import torch

    ids, order = variant.ids.sort(dim=1)
    listed = variant.log_probabilities.gather(1, order)
    at = torch.searchsorted(ids, baseline.ids).clamp(max=ids.shape[1] - 1)
    shared = ids.gather(1, at) == baseline.ids
    # The true token is a part of its own where it is not one of those already.
    apart = ~(shared & (baseline.ids == targets.unsqueeze(1))).any(1, keepdim=True)
    p = torch.cat([baseline.log_probabilities, baseline.true.unsqueeze(1)], dim=1)
    q = torch.cat([listed.gather(1, at), variant.true.unsqueeze(1)], dim=1)
    parts = torch.cat([shared, apart], dim=1)
    weights = p.exp() * parts
    others_p = (1 - weights.sum(1)).clamp(min=0)
    others_q = (1 - (q.exp() * parts).sum(1)).clamp(min=_ROUNDING)
    others = torch.xlogy(others_p, others_p) - others_p * others_q.log()
    bound = ((weights * (p - q)).sum(1) + others).clamp(min=0)
    finite = p.isfinite().all(1) & variant.log_probabilities.isfinite().all(1) & variant.true.isfinite()
    return torch.where(finite, bound, torch.nan)


def _joined(found: Sequence[Top], windows: Sequence[torch.Tensor], k: int) -> Top:
    """All windows' answers one after the other, on the CPU; a position is NaN where anything in it is not finite.

    Raises QuantizeError where the engine did not answer what was asked.
    """
    import torch

    expected = [(len(ids) - 1, k) for ids in windows]
    if [tuple(top.ids.shape) for top in found] != expected:
        raise QuantizeError(f"the engine did not give the {k} likeliest tokens of every position.")
    true = torch.cat([top.true.cpu().double() for top in found])
    listed = torch.cat([top.log_probabilities.cpu().double() for top in found])
    ids = torch.cat([top.ids.cpu().long() for top in found])
    return Top(torch.where(listed.isfinite().all(1), true, torch.nan), ids, listed)
