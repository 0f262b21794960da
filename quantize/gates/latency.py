"""How much slower a variant may be: a ratio of times to the baseline's, at the same load, over blocks.

The whole one-sided limit decides: "not significantly slower" is not a pass. The same machine must have shown that it
finds the baseline equal to itself within the same margin (A/A), or it is too noisy to judge by. Shares of failures are
compared by their difference, as there is no ratio to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from quantize.evidence import Comparison, Evidence, Spending
from quantize.gates import _load
from quantize.gates._scale import Failures, Limits, Scale, Times
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Latency"]

#: What a quantity may grow by where the recipe does not say: a share of the baseline's time, or of all requests.
_DEFAULTS = {"tpot": 0.05, "ttft": 0.10, "e2e": 0.10, "itl": 0.10, _load.FAILURES: 0.005}

_MEND = "More blocks, more requests in a block, or a quieter machine would mend it."


class Latency(Record):
    """`metric` (`load.tpot_p50/<load>`) may be longer by the share `at_most` than the baseline's: 0.05 for 5 %.

    Of `load.failures/<load>`, `at_most` is the share of all requests by which more may fail. Left out, it is 0.05 for
    TPOT, 0.10 for TTFT, ITL and E2E, and 0.005 for failures. `alpha` is the chance of passing a variant that is worse
    by just that.
    """

    kind: Literal["latency"] = "latency"
    metric: str
    at_most: Annotated[float | None, Field(gt=0, le=10)] = None
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    advisory: bool = False

    @field_validator("metric")
    @classmethod
    def _lower_is_better(cls, metric: str) -> str:
        quantity, _ = _load.split(metric)
        if quantity not in (*_load.TIMES, _load.FAILURES):
            limit = "at_least" if _load.higher_is_better(quantity) else "at_most"
            raise ValueError(
                f"a latency gate bounds times (load.tpot_p50/<load>) and load.failures/<load>, and {quantity} is "
                f"neither: take `kind: benefit`, or `kind: slo` with `{limit}`"
            )
        return metric

    @model_validator(mode="after")
    def _a_share_of_requests(self) -> Latency:
        if self._quantity == _load.FAILURES and self.allowed >= 1:
            raise ValueError(f"at_most is {self.allowed:g}, and no more than all requests (1) can fail: write 0.005")
        return self

    @property
    def _quantity(self) -> str:
        return _load.split(self.metric)[0]

    @property
    def allowed(self) -> float:
        """What the quantity may grow by."""
        return self.at_most if self.at_most is not None else _DEFAULTS[self._quantity.partition("_")[0]]

    @property
    def _scale(self) -> Scale:
        scale = Failures if self._quantity == _load.FAILURES else Times
        return scale(self.allowed, self.alpha)

    def look(self, pairs: Pairs | None, spending: Spending) -> None:
        """Latency is never stopped early."""

    def judge(self, evidence: Evidence, pairs: Mapping[str, Pairs]) -> Finding:
        """Compare the blocks' limits with what is allowed, if the machine is quiet enough to tell."""
        found = _load.find(self.metric, evidence.comparisons)
        own = _load.find(self.metric, evidence.noise)
        unknown = "" if found is not None else _load.without_answers(self.metric, evidence.comparisons)
        if unknown:
            return self._finding("inconclusive", unknown, {})
        if found is None:
            measured = _load.known(c.metric for c in evidence.comparisons)
            return self._finding("error", f"{self.metric} was not measured (measured: {measured}).", {})
        scale = self._scale
        quiet = scale.limits(own) if own is not None and _enough(own) else None
        if not _enough(found):
            sentence = _load.too_few(found, _load.named(self.metric))
            return self._finding("inconclusive", sentence, self._numbers(found, None, quiet))
        limits = scale.limits(found)
        said, numbers = scale.measured(found, limits), self._numbers(found, limits, quiet)
        noisy = self._noisy(own, quiet)
        if noisy:
            return self._finding("inconclusive", f"{said}, but {noisy}", numbers)
        outcome: Outcome = (
            "pass" if limits.upper <= scale.highest else "fail" if limits.lower > scale.highest else "inconclusive"
        )
        relation = _relation(scale, outcome, limits)
        if outcome == "pass" and _load.overtaxed(found):
            # What it is slow at then is not this quantity but its queue, which would only grow.
            outcome, relation = "inconclusive", f"{relation} It does not pass at a load that it cannot keep up with."
        return self._finding(
            outcome, f"{said}{relation}{_load.saturation(found)}{self._without_time(evidence)}", numbers
        )

    def _noisy(self, own: Comparison | None, quiet: Limits | None) -> str:
        """Why the machine cannot tell the arms apart within the margin; empty where it can."""
        if own is None:
            return "the baseline was not measured beside itself (A/A), so it is not known how noisy this machine is."
        if quiet is None:
            counted = _load.blocks_said(len(_load.values_of(own)), own)
            return (
                f"of the baseline beside itself (A/A) there are {counted}, and {_load.LEAST_BLOCKS} are the least that "
                f"can show how noisy this machine is. {_MEND}"
            )
        scale = self._scale
        if scale.lowest <= quiet.lower and quiet.upper <= scale.highest:
            return ""
        return (
            f"the machine is too noisy to judge: the baseline beside itself (A/A) is {scale.interval(quiet)}, not "
            f"within the gate's {scale.within()} either way. {_MEND}"
        )

    def _without_time(self, evidence: Evidence) -> str:
        """How many of the variant's requests failed, where that is not what is judged: no time knows of them."""
        failures = _load.find(_load.failures_at(self.metric), evidence.comparisons)
        failed = int(failures.extra["failed"]["variant"]) if failures is not None else 0
        if self._quantity == _load.FAILURES or not failed:
            return ""
        return f" {failed} of the variant's requests failed and have no time."

    def _numbers(self, found: Comparison, limits: Limits | None, own: Limits | None) -> _load.Numbers:
        return {
            self._scale.key: limits.value if limits else None,
            "lower": limits.lower if limits else None,
            "upper": limits.upper if limits else None,
            "at_most": self.allowed,
            "alpha": self.alpha,
            "blocks": len(_load.values_of(found)),
            "invalid": int(found.extra.get("invalid") or 0),
            "aa_lower": own.lower if own else None,
            "aa_upper": own.upper if own else None,
            "needed": limits.needed if limits else None,
        }

    def _finding(self, outcome: Outcome, sentence: str, numbers: _load.Numbers) -> Finding:
        grown = "more" if self._quantity == _load.FAILURES else "longer"
        return Finding(
            gate=f"{self.metric} at most {self._scale.within()} {grown}",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
        )


def _enough(comparison: Comparison) -> bool:
    return len(_load.values_of(comparison)) >= _load.LEAST_BLOCKS


def _relation(scale: Scale, outcome: Outcome, limits: Limits) -> str:
    """What the limits are to the gate's."""
    allowed = scale.allowed(limits)
    if outcome == "fail":
        return f", above {allowed}."
    if outcome == "pass":
        return (
            f": {scale.worse}, within the margin of {allowed}." if limits.lower > scale.even else f", within {allowed}."
        )
    more = f" {scale.mend(limits.needed)}" if limits.needed is not None else ""
    return f": this neither shows nor excludes more than {allowed}.{more}"
