"""Intervals for single proportions and for ratios over documents, and the advisory McNemar test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special

from quantize.errors import DataError, QuantizeError
from quantize.stats.inputs import check_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from quantize.stats.tango import Floats

RESAMPLES = 9999
_FEW_DOCUMENTS = 10
_CHUNK = 1 << 21  # resampling counts held at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval at ``confidence``; its ends are one-sided limits at ``(1 - confidence) / 2`` each."""

    estimate: float
    lower: float
    upper: float
    confidence: float
    method: Literal["wilson", "bootstrap-t", "student-t"]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion: ``(p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``.

    Source: E. B. Wilson, JASA 22 (1927) 209-212. It stays inside [0, 1] and is not empty at 0 or n successes.
    """
    check_counts(successes, 0, n)
    z = -float(special.ndtri(_tail(confidence)))
    share = successes / n
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    lower = 0.0 if successes == 0 else (centre - reach) / scale
    upper = 1.0 if successes == n else (centre + reach) / scale
    return Interval(share, lower, upper, confidence, "wilson")


def document_bootstrap(
    sums: ArrayLike, counts: ArrayLike, confidence: float = 0.95, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Interval for ``sum(sums) / sum(counts)`` when whole documents, not tokens, are the independent units.

    sums: shape (G,), per document: summed NLL (nats), summed KL, or summed NLL differences (the ratio is then ln of
    the perplexity ratio). counts: shape (G,), scored tokens. For perplexity take exp of all three numbers.

    Bootstrap-t (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, ch. 12.5) with the linearised,
    cluster-robust standard error ``sqrt(G/(G-1) sum (S_g - r N_g)^2) / sum N_g``. Not percentile: with few or
    skewed documents percentile intervals are too short (simulated for 20 lognormal documents at a nominal 95 %: 85
    % coverage against 92 %). Below 10 documents, or where so few documents differ that a resample can hold none of
    them, the bootstrap has nothing to resample: Student's t with G - 1 degrees of freedom is used and named as the
    method.
    """
    share = _tail(confidence)
    total, tokens = _documents(sums, counts)
    estimate = float(total.sum() / tokens.sum())
    residual = total - estimate * tokens
    documents = len(total)
    error = math.sqrt(documents / (documents - 1) * float(residual @ residual)) / float(tokens.sum())
    if documents >= _FEW_DOCUMENTS and error > 0:
        resampled = studentized(residual, tokens, seed, resamples)
        low, high = np.quantile(resampled, [share, 1 - share], method="nearest")
        if np.isfinite(low) and np.isfinite(high):
            ends = (estimate - float(high) * error, estimate - float(low) * error)
            return Interval(estimate, *ends, confidence, "bootstrap-t")
    reach = -float(special.stdtrit(documents - 1, share)) * error
    return Interval(estimate, estimate - reach, estimate + reach, confidence, "student-t")


def mcnemar_p_value(losses: int, gains: int) -> float:
    """Exact one-sided McNemar p for "losses outnumber gains": P(Bin(losses + gains, 1/2) >= losses). Advisory.

    A regression alarm, never a gate: a large p does not show that the variant is as good. 1 where nothing flipped.
    Source: Q. McNemar, Psychometrika 12 (1947) 153-157; exact form: the sign test.
    """
    check_counts(losses, gains, max(losses + gains, 1))
    return 1.0 if losses == 0 else float(special.betainc(losses, gains + 1, 0.5))


def studentized(
    residual: Floats, tokens: Floats, seed: int, resamples: int, times: NDArray[np.int64] | None = None
) -> Floats:
    """``(r* - r) / se*`` of each resample of documents, shape (resamples,); infinite where se* is 0 and r* is not r.

    residual: (G,) ``S_g - r N_g``; tokens: (G,) ``N_g``; times: (G,) how many documents look exactly like this one
    (default 1): the resamples then have the same distribution and cost a draw per kind instead of one per document.
    """
    times = np.ones(len(residual), dtype=np.int64) if times is None else times
    documents = int(times.sum())
    moments = np.stack([residual, tokens, residual**2, residual * tokens, tokens**2], axis=1)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(residual))
    parts = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = random.multinomial(documents, times / documents, size=size)
        parts.append(drawn @ moments)
    shift, length, squares, cross, length_squares = np.concatenate(parts).T
    change = shift / length
    spread = squares - 2 * change * cross + change**2 * length_squares
    spread = np.where(spread > 1e-12 * squares, spread, 0.0)
    error = np.sqrt(documents / (documents - 1) * spread) / length
    still = np.where(change == 0, 0.0, np.copysign(np.inf, change))
    result: Floats = np.where(error > 0, change / np.where(error > 0, error, 1.0), still)
    return result


def _documents(sums: ArrayLike, counts: ArrayLike) -> tuple[Floats, Floats]:
    total, tokens = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if total.ndim != 1 or total.shape != tokens.shape:
        raise DataError(
            f"sums have shape {total.shape} and counts {tokens.shape}", fix="Give one sum and one count per document."
        )
    if len(total) < 2:
        raise DataError(
            f"{len(total)} document(s) do not tell how documents differ",
            fix="Score at least 2 documents, better 50: split a long text at its own breaks.",
        )
    if not (np.isfinite(total).all() and np.isfinite(tokens).all() and (tokens > 0).all()):
        raise DataError(
            "a document has a sum that is not finite, or no scored token",
            fix="Leave out empty documents; a NaN comes from the model's logits.",
        )
    return total, tokens


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise QuantizeError(f"the confidence is {confidence!r}, not between 0 and 1", fix="0.95 is usual.")
    return (1 - confidence) / 2
