"""Times and failures under load: intervals for a ratio, or a difference of shares, of two arms over blocks.

The block is the sample: both arms ran in it, one after the other, with fresh servers. Requests of one block share a
server, a clock and a neighbour, and are no independent evidence. What is assumed of blocks: they are independent, and
the logarithms of their ratios are roughly normal. Skew that both arms have alike cancels in the ratio; what skew of the
ratio itself costs is measured by `tests/bench/latency_error_rates.py` and stands in docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from quantize.errors import DataError, QuantizeError
from quantize.stats.inputs import check_alpha, check_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

POWER = 0.9
_LEAST = 2  # values from which a spread can be estimated
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """The geometric mean of n blocks' ratios with a one-sided limit on each side; `spread` is the logs' (s)."""

    ratio: float
    lower: float
    upper: float
    n: int
    spread: float


@dataclass(frozen=True, slots=True)
class DifferenceLimits:
    """The mean of n blocks' differences of shares, variant - baseline, with a one-sided limit on each side."""

    difference: float
    lower: float
    upper: float
    n: int


def ratio_interval(logs: ArrayLike, alpha: float) -> RatioInterval:
    """One-sided ``1 - alpha`` limits ``exp(mean ∓ t_{n-1,1-alpha} s / sqrt(n))`` for the ratio of two arms.

    logs: shape (n,), ``ln(Q_variant / Q_baseline)`` of each block. Both limits together are a ``1 - 2 alpha`` interval.
    Raises DataError for fewer than two blocks or values that are not finite.

    Source: Student's t on logs, as in bioequivalence: D. Hauschke, V. Steinijans and I. Pigeot, Bioequivalence Studies
    in Drug Development, 2007, ch. 4.
    """
    values = _blocks(logs)
    mean, reach = _mean_and_reach(values, alpha)
    spread = float(values.std(ddof=1))
    return RatioInterval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), len(values), spread)


def equivalent(logs: ArrayLike, margin: float, alpha: float) -> bool:
    """Whether the whole interval lies within ``[1/(1 + margin), 1 + margin]``: two one-sided tests at `alpha` each.

    Symmetric in the arms: which of two like arms is called the baseline changes nothing.

    Source: D. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680.
    """
    _check_growth(margin)
    found = ratio_interval(logs, alpha)
    return found.lower >= 1 / (1 + margin) and found.upper <= 1 + margin


def share_limits(count: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact one-sided limits, lower and upper, for a share of which `count` of `n` were seen.

    ``BetaInv(alpha; x, n - x + 1)`` and ``BetaInv(1 - alpha; x + 1, n - x)``; with none seen 0 and
    ``1 - alpha^(1/n)``.

    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404-413.
    """
    check_alpha(alpha)
    check_counts(count, 0, n)
    lower = float(special.betaincinv(count, n - count + 1, alpha)) if count else 0.0
    upper = float(special.betaincinv(count + 1, n - count, 1 - alpha)) if count < n else 1.0
    return lower, upper


def difference_limits(differences: ArrayLike, alpha: float, failed: tuple[int, int], requests: int) -> DifferenceLimits:
    """One-sided ``1 - alpha`` limits for the difference of the shares of requests that failed, variant - baseline.

    differences: shape (n,), of each block. failed: requests that failed in all blocks together, of the baseline and of
    the variant; requests: how many each arm was sent.

    On each side the wider of two limits. Student's t over blocks sees failures that come in clusters, and is empty
    where nothing failed. The other is made of both arms' exact limits (`share_limits`), as independent requests:
    ``d + sqrt((u_v - p_v)^2 + (p_b - l_b)^2)`` above, ``d - sqrt((p_v - l_v)^2 + (u_b - p_b)^2)`` below, ``d = p_v -
    p_b``. With no failure in either arm it is ``∓(1 - alpha^(1/requests))``. What neither sees is a failure of whole
    blocks that did not happen in any.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10, with Clopper and Pearson's limits in
    place of Wilson's, which are too narrow near zero.
    """
    values = _blocks(differences)
    mean, reach = _mean_and_reach(values, alpha)
    baseline, variant = (count / requests if requests else math.nan for count in failed)
    (lower_b, upper_b), (lower_v, upper_v) = (share_limits(count, requests, alpha) for count in failed)
    below = variant - baseline - math.hypot(variant - lower_v, upper_b - baseline)
    above = variant - baseline + math.hypot(upper_v - variant, baseline - lower_b)
    return DifferenceLimits(mean, min(mean - reach, below), max(mean + reach, above), len(values))


def requests_needed(margin: float, alpha: float) -> int:
    """The fewest requests that show, with no failure among them, a share of failures of at most `margin`.

    ``ln(alpha) / ln(1 - margin)``, rounded up: the inversion of `share_limits` at a count of none.
    """
    check_alpha(alpha)
    if not 0 < margin < 1:
        raise QuantizeError(
            f"the margin is {margin!r}, not a share between 0 and 1", fix="Write 0.005 for half a point."
        )
    return math.ceil(math.log(alpha) / math.log1p(-margin) - 1e-9)


def blocks_needed(
    spread: float, margin: float, alpha: float, power: float = POWER, *, ratio: float = 1.0
) -> int | None:
    """Blocks with which a true `ratio` is shown to be at most ``1 + margin`` with the chance `power`.

    None where the ratio is not below that, or a million blocks are too few. See `blocks_for`.
    """
    _check_growth(margin)
    return blocks_for(math.log1p(margin) - math.log(ratio), spread, alpha, power)


def blocks_for(distance: float, spread: float, alpha: float, power: float = POWER) -> int | None:
    """The fewest blocks with which a one-sided t-test sees `distance` in the logs at the standard deviation `spread`.

    The least n with ``P(T_{n-1}(distance sqrt(n) / spread) > t_{n-1,1-alpha}) >= power``, T noncentral. None where
    the distance is not above zero, or a million blocks are too few.

    Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, ch. 2; exact, not approximated.
    """
    check_alpha(alpha)
    if distance <= 0:
        return None
    if spread == 0:
        return _LEAST
    # The normal approximation needs fewer than the t-test does: a floor to count up from.
    reach = float(special.ndtri(power)) - float(special.ndtri(alpha))
    floor = (reach * spread / distance) ** 2
    if floor > _MOST:
        return None
    n = max(_LEAST, math.floor(floor))
    while _power(n, distance / spread, alpha) < power:
        n += 1
    return n


def _power(n: int, effect: float, alpha: float) -> float:
    from scipy.stats import nct  # a second to import, and asked for by benchmarks alone

    bound = -float(special.stdtrit(n - 1, alpha))
    # Beyond any bound the library's sum loses its digits: there the test always sees it.
    shift = effect * math.sqrt(n)
    return 1.0 if shift > bound + 30 else float(nct.sf(bound, n - 1, shift))


def _mean_and_reach(values: NDArray[np.float64], alpha: float) -> tuple[float, float]:
    """The mean, and the distance of its one-sided limits: ``t_{n-1,1-alpha} s / sqrt(n)``."""
    check_alpha(alpha)
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()), float(special.stdtrit(n - 1, 1 - alpha)) * error


def _blocks(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < _LEAST:
        raise DataError(
            f"{found.size} block{'' if found.size == 1 else 's'} cannot show how far blocks scatter",
            fix=f"Measure at least {_LEAST} blocks.",
        )
    if not np.isfinite(found).all():
        raise DataError("a block's value is not finite", fix="Leave out blocks in which an arm measured nothing.")
    return found


def _check_growth(margin: float) -> None:
    if not (margin > 0 and math.isfinite(margin)):
        raise QuantizeError(f"the margin is {margin!r}, not above 0", fix="Write 0.05 for a ratio of at most 1.05.")
