"""The one benefit that a recipe names: what a variant must bring to be worth moving to.

Without it everything that is not worse would pass, the baseline's own copy too. The whole interval must reach what is
asked for. Bytes are counted and have no interval; they need no benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from quantize.evidence import Comparison, Evidence, Spending
from quantize.gates import _load
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs, RatioInterval

__all__ = ["Benefit"]

_BYTES = "weights.bytes"


class Benefit(Record):
    """`metric` is better than the baseline's by the share `at_least`: 0.3 for 30 % fewer bytes, or 30 % more goodput.

    `weights.bytes`, or anything measured under load but failures. `alpha` is the chance of passing a variant that
    brings just less.
    """

    kind: Literal["benefit"] = "benefit"
    metric: str
    at_least: Annotated[float, Field(gt=0)]
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    advisory: bool = False

    @field_validator("metric")
    @classmethod
    def _has_a_ratio(cls, metric: str) -> str:
        if metric == _BYTES:
            return metric
        if metric == "memory.peak":
            raise ValueError("memory.peak is of the proof, without a server: take load.memory_peak")
        try:
            quantity, _ = _load.split(metric)
        except ValueError as error:
            raise ValueError(f"{error}; or `{_BYTES}`, which needs no benchmark") from None
        if quantity == _load.FAILURES:
            raise ValueError("there is no ratio of failures to none: take `kind: latency` or `kind: slo`")
        return metric

    @model_validator(mode="after")
    def _can_be_reached(self) -> Benefit:
        if not self._higher and self.at_least >= 1:
            raise ValueError(
                f"at_least is {self.at_least:g}, and nothing shrinks by all of it (1): write 0.3 for 30 % less"
            )
        return self

    @property
    def _higher(self) -> bool:
        return self.metric != _BYTES and _load.higher_is_better(_load.split(self.metric)[0])

    @property
    def _bound(self) -> float:
        """The ratio to the baseline at which the benefit is just reached."""
        return 1 + self.at_least if self._higher else 1 - self.at_least

    def look(self, pairs: Pairs | None, spending: Spending) -> None:
        """Nothing is stopped early for what it brings."""

    def judge(self, evidence: Evidence, pairs: Mapping[str, Pairs]) -> Finding:
        """Compare the ratio's limits, or the counted bytes, with what is asked for."""
        from quantize.stats import ratio_interval

        found = _load.find(self.metric, evidence.comparisons)
        unknown = "" if found is not None else _load.without_answers(self.metric, evidence.comparisons)
        if unknown:
            return self._finding("inconclusive", unknown, {})
        if found is None:
            known = ", ".join(c.metric for c in evidence.comparisons) or "none"
            return self._finding("error", f"{self.metric} was not measured (measured: {known}).", {})
        if self.metric == _BYTES:
            return self._of_bytes(found)
        logs = _load.values_of(found)
        if len(logs) < _load.LEAST_BLOCKS:
            sentence = _load.too_few(found, _load.named(self.metric))
            return self._finding(
                "inconclusive", sentence, {**self._numbers(found.difference, None), "blocks": len(logs)}
            )
        return self._of_blocks(found, ratio_interval(logs, self.alpha))

    def _of_bytes(self, found: Comparison) -> Finding:
        ratio = found.difference
        outcome: Outcome = "pass" if ratio <= self._bound else "fail"
        relation = "as the gate asks for" if outcome == "pass" else "and the gate asks for"
        share, limit = _load.numbers_apart([100 * ratio], 100 * self._bound, least=0)
        sentence = (
            f"The weights take {share} % of the baseline's bytes ({found.variant / 1e6:,.1f} MB beside "
            f"{found.baseline / 1e6:,.1f} MB), {relation}: at most {limit} %."
        )
        return self._finding(outcome, sentence, self._numbers(ratio, None))

    def _of_blocks(self, found: Comparison, ratio: RatioInterval) -> Finding:
        value, low, high, bound = _load.numbers_apart([ratio.ratio, ratio.lower, ratio.upper], self._bound)
        outcome = self._outcome(ratio)
        asked = f"{'at least' if self._higher else 'at most'} {bound}"
        said = {
            "pass": f", as the gate asks for: {asked}.",
            "fail": f", and the gate asks for {asked}.",
            "inconclusive": f": this neither shows nor excludes what the gate asks for, {asked}.{self._needed(ratio)}",
        }[outcome]
        sentence = (
            f"{_load.named(self.metric)} is {value} times the baseline's ({low} to {high} over {ratio.n} blocks; "
            f"{_load.both_arms(found)}){said}{_load.saturation(found)}"
        )
        return self._finding(outcome, sentence, self._numbers(ratio.ratio, ratio))

    def _outcome(self, ratio: RatioInterval) -> Outcome:
        if self._higher:
            return "pass" if ratio.lower >= self._bound else "fail" if ratio.upper < self._bound else "inconclusive"
        return "pass" if ratio.upper <= self._bound else "fail" if ratio.lower > self._bound else "inconclusive"

    def _needed(self, ratio: RatioInterval) -> str:
        """The blocks that would show the benefit that was seen; nothing where less was seen than is asked for."""
        from quantize.stats import blocks_for

        beyond = math.log(ratio.ratio / self._bound)
        needed = blocks_for(beyond if self._higher else -beyond, ratio.spread, self.alpha)
        if needed is None:
            return ""
        return f" If what was seen is true, about {max(needed, ratio.n + 1)} blocks would show it nine times in ten."

    def _numbers(self, value: float, ratio: RatioInterval | None) -> _load.Numbers:
        return {
            "ratio": value,
            "lower": ratio.lower if ratio else None,
            "upper": ratio.upper if ratio else None,
            "at_least": self.at_least,
            "alpha": self.alpha if ratio else None,
            "blocks": ratio.n if ratio else None,
        }

    def _finding(self, outcome: Outcome, sentence: str, numbers: _load.Numbers) -> Finding:
        return Finding(
            gate=f"{self.metric} better by at least {100 * self.at_least:g} %",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
        )
