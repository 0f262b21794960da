"""A limit on a difference: the ratio of perplexities, the divergence, the bytes.

Where the comparison has an interval, the whole interval must lie within the limit to pass and outside it to fail; what
straddles the limit is inconclusive. Advisory by default, as a bound on an average is no proof about the user's items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from quantize.evidence import Evidence, Spending
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Limit"]


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
        numbers: dict[str, float | int | str | None] = {
            "difference": comparison.difference,
            "low": low,
            "high": high,
            "limit": self.at_most,
            "n": comparison.n,
        }
        return self._finding(outcome, sentence, numbers)

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
