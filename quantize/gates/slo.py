"""A service level: what a variant must keep by itself under load, whatever the baseline does.

For a deployment target with a promise of its own, and the only rule where the baseline does not fit the device. The
variant's 95 % interval over blocks decides, so each side errs at most 2.5 % of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from quantize.evidence import Evidence, Measurement, Spending
from quantize.gates import _load
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["ServiceLevel"]


class ServiceLevel(Record):
    """`metric` keeps `at_most` (times in seconds, bytes, shares of failures) or `at_least` (rates, requests that fit).

    With a `target` it judges only the variants which that deployment target may draw from.
    """

    kind: Literal["slo"] = "slo"
    metric: str
    at_most: Annotated[float | None, Field(gt=0)] = None
    at_least: Annotated[float | None, Field(gt=0)] = None
    target: str | None = None
    advisory: bool = False

    @field_validator("metric")
    @classmethod
    def _measured_under_load(cls, metric: str) -> str:
        _load.split(metric)
        return metric

    @model_validator(mode="after")
    def _one_limit_on_the_right_side(self) -> ServiceLevel:
        quantity, _ = _load.split(self.metric)
        wanted, other = ("at_least", "at_most") if _load.higher_is_better(quantity) else ("at_most", "at_least")
        if getattr(self, other) is not None or getattr(self, wanted) is None:
            better = "higher" if wanted == "at_least" else "lower"
            raise ValueError(f"{quantity} is better when {better}: give `{wanted}`, and no `{other}`")
        return self

    def look(self, pairs: Pairs | None, spending: Spending) -> None:
        """Latency is never stopped early."""

    def judge(self, evidence: Evidence, pairs: Mapping[str, Pairs]) -> Finding:
        """Compare the interval of the variant's own measurement with the limit."""
        found = next((m for m in evidence.measurements if m.name == self.metric), None)
        unknown = "" if found is not None else _load.without_answers(self.metric, evidence.comparisons)
        if unknown:
            return self._finding("inconclusive", unknown, {})
        if found is None:
            measured = _load.known(m.name for m in evidence.measurements)
            return self._finding("error", f"{self.metric} was not measured (measured: {measured}).", {})
        numbers: _load.Numbers = {
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "blocks": found.n,
        }
        few = self._too_little(found)
        if few:
            return self._finding("inconclusive", few, numbers)
        low = found.value if found.low is None else found.low
        high = found.value if found.high is None else found.high
        outcome = self._outcome(low, high)
        said = {
            "pass": "within the limit of",
            "fail": "above the limit of" if self.at_least is None else "below the limit of",
            "inconclusive": "too close to tell from the limit of",
        }[outcome]
        shown = _load.value_of(self.metric, found.value)
        around = f"{_load.value_of(self.metric, low)} to {_load.value_of(self.metric, high)} over {found.n} blocks"
        saturated = ""
        comparison = _load.find(self.metric, evidence.comparisons)
        if comparison is not None:
            saturated = _load.saturation(comparison)
        sentence = f"{_load.named(self.metric)} is {shown} ({around}), {said} {self._limit_said}.{saturated}"
        return self._finding(outcome, sentence, numbers)

    @property
    def _limit_said(self) -> str:
        limit = self.at_most if self.at_most is not None else self.at_least
        return _load.value_of(self.metric, limit or 0.0) + (f" that {self.target} promises" if self.target else "")

    def _too_little(self, found: Measurement) -> str:
        """Why the measurement shows nothing; empty where it does."""
        name = _load.named(self.metric)
        if found.n < _load.LEAST_BLOCKS:
            return (
                f"{name} has {found.n} valid block{'' if found.n == 1 else 's'}, and {_load.LEAST_BLOCKS} are the "
                f"least that can show anything: use a quieter machine, or raise `benchmark.reruns`."
            )
        if found.low is None or found.high is None:
            return (
                f"{name} has no interval, as it is not known in every block (in some all requests failed, or too few "
                f"were sent for this percentile), so whether it keeps {self._limit_said} is not shown."
            )
        return ""

    def _outcome(self, low: float, high: float) -> Outcome:
        if self.at_most is not None:
            return "pass" if high <= self.at_most else "fail" if low > self.at_most else "inconclusive"
        least = self.at_least or 0.0
        return "pass" if low >= least else "fail" if high < least else "inconclusive"

    def _finding(self, outcome: Outcome, sentence: str, numbers: _load.Numbers) -> Finding:
        limit = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return Finding(
            gate=f"{self.metric} {limit}{f' for {self.target}' if self.target else ''}",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
        )
