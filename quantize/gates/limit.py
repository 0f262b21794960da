"""A limit on a difference: the ratio of perplexities, the divergence, the bytes.

Where the comparison has an interval, the whole interval must lie within the limit to pass and outside it to fail; what
straddles the limit is inconclusive. Advisory by default, as a bound on an average is no proof about the user's items.

An engine that gives the likeliest tokens only bounds a divergence from below (`<metric>_at_least`). Such a bound can
show that a limit is exceeded, and never that it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from quantize.evidence import Comparison, Evidence, Spending
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Limit"]

#: What a quantity's name ends in where only a lower bound of it is known.
_AT_LEAST = "_at_least"


class Limit(Record):
    """`metric`'s difference from the baseline may be at most `at_most`, in the comparison's own unit."""

    kind: Literal["limit"] = "limit"
    metric: str
    at_most: float
    advisory: bool = True

    def look(self, pairs: Pairs | None, spending: Spending) -> None:
        """Nothing is certain before the end: these numbers have no bound."""

    def judge(self, evidence: Evidence, pairs: Mapping[str, Pairs]) -> Finding:
        """Compare the difference, with its interval, with the limit."""
        comparison = next((c for c in evidence.comparisons if c.metric == self.metric), None)
        bound = next((c for c in evidence.comparisons if c.metric == f"{self.metric}{_AT_LEAST}"), None)
        if comparison is None and bound is not None:
            return self._bounded(bound)
        if comparison is None:
            known = ", ".join(c.metric for c in evidence.comparisons) or "none"
            return self._finding("error", f"{self.metric} was not measured (measured: {known}).", {})
        low = comparison.difference if comparison.low is None else comparison.low
        high = comparison.difference if comparison.high is None else comparison.high
        outcome: Outcome = "pass" if high <= self.at_most else "fail" if low > self.at_most else "inconclusive"
        relation = {"pass": "within", "fail": "above", "inconclusive": "too close to tell from"}[outcome]
        interval = f" (interval {low:+.4f} to {high:+.4f})" if comparison.low is not None else ""
        sentence = (
            f"{self.metric} is {comparison.difference:+.4f} {comparison.unit}{interval}, "
            f"{relation} the limit of {self.at_most:g}."
        )
        return self._finding(outcome, sentence, self._numbers(comparison, low, high))

    def _bounded(self, bound: Comparison) -> Finding:
        """Fail where even what the quantity is at least lies above the limit; else nothing is known."""
        low = bound.difference if bound.low is None else bound.low
        over = low > self.at_most
        reason = (
            f"above the limit of {self.at_most:g}"
            if over
            else f"which cannot show that it is within the limit of {self.at_most:g}: the engine gives the likeliest "
            f"tokens only"
        )
        interval = f" (the bound's interval {low:+.4f} to {bound.high:+.4f})" if bound.high is not None else ""
        sentence = f"{self.metric} is at least {bound.difference:.4f} {bound.unit}{interval}, {reason}."
        return self._finding("fail" if over else "inconclusive", sentence, self._numbers(bound, low, None))

    def _numbers(self, found: Comparison, low: float, high: float | None) -> dict[str, float | int | str | None]:
        return {"difference": found.difference, "low": low, "high": high, "limit": self.at_most, "n": found.n}

    def _finding(self, outcome: Outcome, sentence: str, numbers: dict[str, float | int | str | None]) -> Finding:
        return Finding(
            gate=f"{self.metric} at most {self.at_most:g}",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
        )
