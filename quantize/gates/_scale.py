"""The two scales on which a variant under load is held against the baseline: ratios of times, differences of failures.

Each knows its limits from the blocks of a comparison, what a gate's margin is on it, and how both are said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quantize.evidence import Comparison
from quantize.gates import _load

__all__ = ["Failures", "Limits", "Scale", "Times"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What blocks show, with a one-sided limit on each side; `needed` blocks or requests would decide, where known."""

    value: float
    lower: float
    upper: float
    blocks: int
    needed: int | None = None


class Scale(Protocol):
    """`lowest` and `highest` are a margin's ends, `even` is where both arms are alike, between them.

    `key` names the value among a finding's numbers, `worse` is the word for a variant beyond `even`.
    """

    @property
    def key(self) -> str: ...

    @property
    def worse(self) -> str: ...

    @property
    def even(self) -> float: ...

    @property
    def lowest(self) -> float: ...

    @property
    def highest(self) -> float: ...

    def limits(self, found: Comparison) -> Limits:
        """The blocks' limits. Raises DataError for fewer than two."""
        ...

    def measured(self, found: Comparison, limits: Limits) -> str:
        """The quantity with its interval, as a sentence begins."""
        ...

    def allowed(self, limits: Limits) -> str:
        """What the gate allows, with as many decimals as the measured needs."""
        ...

    def within(self) -> str:
        """The margin itself."""
        ...

    def interval(self, limits: Limits) -> str:
        """Both limits, and over how many blocks."""
        ...

    def mend(self, needed: int) -> str:
        """How much more would show it."""
        ...


@dataclass(frozen=True, slots=True)
class Times:
    """A ratio may be up to `1 + margin`."""

    margin: float
    alpha: float
    key: str = "ratio"
    worse: str = "slower"
    even: float = 1.0

    @property
    def lowest(self) -> float:
        """As far below 1 as `highest` is above it, whichever arm is divided by which."""
        return 1 / (1 + self.margin)

    @property
    def highest(self) -> float:
        """The largest ratio allowed."""
        return 1 + self.margin

    def limits(self, found: Comparison) -> Limits:
        """Of the ratio; the blocks needed are for a true ratio of 1, or for the one seen where those were enough."""
        from quantize.stats import blocks_needed, ratio_interval

        ratio = ratio_interval(_load.values_of(found), self.alpha)
        needed = blocks_needed(ratio.spread, self.margin, self.alpha)
        if needed is not None and needed <= ratio.n:
            planned = blocks_needed(ratio.spread, self.margin, self.alpha, ratio=ratio.ratio)
            needed = max(planned, ratio.n + 1) if planned is not None else None
        return Limits(ratio.ratio, ratio.lower, ratio.upper, ratio.n, needed)

    def measured(self, found: Comparison, limits: Limits) -> str:
        """`TPOT p50 at load single is 1.12 times the baseline's (1.09 to 1.15 over 10 blocks; ...)`."""
        ratio, low, high, _ = self._shown(limits)
        around = f"{low} to {high} over {limits.blocks} blocks; {_load.both_arms(found)}"
        return f"{_load.named(found.metric)} is {ratio} times the baseline's ({around})"

    def allowed(self, limits: Limits) -> str:
        """`the 1.05 that the gate allows`."""
        return f"the {self._shown(limits)[-1]} that the gate allows"

    def within(self) -> str:
        """`5 %`."""
        return f"{100 * self.margin:g} %"

    def interval(self, limits: Limits) -> str:
        """`0.98 to 1.03 times over 10 blocks`."""
        _, low, high, _ = self._shown(limits)
        return f"{low} to {high} times over {limits.blocks} blocks"

    def mend(self, needed: int) -> str:
        """In blocks."""
        return f"About {needed} blocks would show it nine times in ten."

    def _shown(self, limits: Limits) -> list[str]:
        return _load.numbers_apart([limits.value, limits.lower, limits.upper], self.highest)


@dataclass(frozen=True, slots=True)
class Failures:
    """Of all requests a share larger by up to `margin` may fail."""

    margin: float
    alpha: float
    key: str = "difference"
    worse: str = "more"
    even: float = 0.0

    @property
    def lowest(self) -> float:
        """The margin, the other way round."""
        return -self.margin

    @property
    def highest(self) -> float:
        """The largest difference allowed."""
        return self.margin

    def limits(self, found: Comparison) -> Limits:
        """Of the difference; the requests needed are such of which none fails."""
        from quantize.stats import difference_limits, requests_needed

        failed, requests = found.extra["failed"], int(found.extra["requests"])
        counts = (int(failed["baseline"]), int(failed["variant"]))
        shares = difference_limits(_load.values_of(found), self.alpha, counts, requests)
        least = requests_needed(self.margin, self.alpha)
        needed = least if least > requests else None
        return Limits(shares.difference, shares.lower, shares.upper, shares.n, needed)

    def measured(self, found: Comparison, limits: Limits) -> str:
        """`The share of failed requests at load traffic is 1.40 % beside 0.00 %, +1.40 points (...)`."""
        around = f"{self.interval(limits)}, {int(found.extra['requests'])} requests to each arm"
        both = _load.both_arms(found)
        return f"{_load.named(found.metric)} is {both}, {_load.points(limits.value)} points ({around})"

    def allowed(self, limits: Limits) -> str:
        """`the 0.5 points that the gate allows`."""
        return f"the {self.within()} that the gate allows"

    def within(self) -> str:
        """`0.5 points`."""
        return f"{100 * self.margin:g} points"

    def interval(self, limits: Limits) -> str:
        """`-0.10 to +1.10 points over 10 blocks`."""
        return f"{_load.points(limits.lower)} to {_load.points(limits.upper)} points over {limits.blocks} blocks"

    def mend(self, needed: int) -> str:
        """In requests."""
        return f"It takes at least {needed} requests to each arm, and none that fails, to show it."
