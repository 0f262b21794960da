"""The gate that a promotion rests on: paired non-inferiority at a margin fixed before measuring.

H0: the variant's mean score is lower than the baseline's by the margin or more. "Not significantly different" is not a
pass: with too few items the finding is inconclusive and says how many would be needed. The alpha that decides is what
is left of the recipe's after earlier attempts and after looking early (`evidence.Spending`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from quantize.evidence import Evidence, Look, Spending
from quantize.record import Record
from quantize.verdict import Finding, Outcome

if TYPE_CHECKING:
    from quantize.stats import Pairs, SequentialTest

__all__ = ["NonInferiority"]

_STOPPED = {
    "pass": "Decided after {n} of {total} items: a loss of the margin was already excluded.",
    "fail": "Decided after {n} of {total} items: a loss beyond the margin was already shown.",
    "futile": "Ended after {n} of {total} items: even with every other item right it could not have passed.",
}


class NonInferiority(Record):
    """`metric` is `<eval>.accuracy`, `<eval>.accuracy/<slice>` or `<eval>.parsed`; `margin` in shares (0.02: 2 points).

    `alpha` is the chance of passing a variant that is worse by just the margin, over all attempts together.
    """

    kind: Literal["noninferiority"] = "noninferiority"
    metric: str
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    advisory: bool = False

    def judge(self, evidence: Evidence, pairs: Mapping[str, Pairs]) -> Finding:
        """Decide from the paired scores (`quantize.stats.judge_pairs`)."""
        from quantize.stats import judge_pairs

        sample = pairs.get(self.metric)
        if sample is None and any(m.name == self.metric for m in evidence.baseline_measurements):
            sentence = f"{self.metric}: none of its items was reached before the variant was stopped."
            return self._finding("inconclusive", sentence, {"n": 0})
        if sample is None:
            known = ", ".join(pairs) or "none"
            return self._finding("error", f"{self.metric} was not measured as paired items (measured: {known}).", {})
        spending = evidence.spending
        test = judge_pairs(sample, self.margin, self.level(spending), early=spending.early, choices=spending.choices)
        looks = self._looks(sample, spending) if spending.early and not self.advisory else []
        return self._finding(test.outcome, self._sentence(test, spending), self._numbers(test, spending), looks)

    def look(self, pairs: Pairs | None, spending: Spending) -> Literal["pass", "fail", "futile"] | None:
        """See `protocols.Gate.look`. Of a slice that is complete before its eval, the verdict is certain."""
        from quantize.stats import judge_pairs, look

        if pairs is None or not spending.early:
            return None
        if pairs.n == pairs.total:
            outcome = judge_pairs(pairs, self.margin, self.level(spending), early=spending.early).outcome
            return "pass" if outcome == "pass" else "fail" if outcome == "fail" else "futile"
        return look(pairs, self.margin, self.level(spending), early=spending.early, choices=spending.choices)

    def level(self, spending: Spending) -> float:
        """The alpha of this attempt."""
        from quantize.stats import attempt_alpha

        return attempt_alpha(self.alpha, spending.attempt_at(self.metric))

    def _looks(self, sample: Pairs, spending: Spending) -> list[Look]:
        from quantize.stats.path import confidence_path
        from quantize.stats.sequential import FAIL_LEVEL

        lower = spending.early * self.level(spending) / spending.choices
        points = confidence_path(sample, lower, FAIL_LEVEL)
        return [Look(items=point.items, lower=point.lower, upper=point.upper) for point in points]

    def _numbers(self, test: SequentialTest, spending: Spending) -> dict[str, float | int | str | None]:
        return {
            "n": test.n,
            "items": test.total,
            "clusters": test.clusters,
            "losses": test.losses,
            "gains": test.gains,
            "difference": test.difference,
            "lower": test.lower,
            "upper": test.upper,
            "p_value": test.p_value,
            "alpha": test.alpha,
            "spent": test.spent,
            "lower_level": test.levels[0],
            "upper_level": test.levels[1],
            "attempt": spending.attempt_at(self.metric),
            "margin": test.margin,
            "method": test.method,
            "stopped": test.stopped,
            "needed": test.needed,
            "mcnemar": test.mcnemar,
        }

    def _finding(
        self,
        outcome: Outcome,
        sentence: str,
        numbers: dict[str, float | int | str | None],
        looks: list[Look] | None = None,
    ) -> Finding:
        return Finding(
            gate=f"{self.metric} not worse than {100 * self.margin:g} points",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
            looks=looks or [],
        )

    def _sentence(self, test: SequentialTest, spending: Spending) -> str:
        difference, lower, upper, margin = (
            100 * value for value in (test.difference, test.lower, test.upper, self.margin)
        )
        covered = 100 * (1 - sum(test.levels))
        counted = f"{test.n} items" if test.n == test.total else f"{test.n} of {test.total} items"
        grouped = f" in {test.clusters} clusters" if test.clusters < test.n else ""
        measured = (
            f"{self.metric} changed by {difference:+.1f} points "
            f"({covered:.0f} % interval {lower:+.1f} to {upper:+.1f}, {counted}{grouped}, "
            f"{test.losses} lost, {test.gains} gained)"
        )
        if test.outcome == "pass":
            said = f"{measured}: {'worse, but within' if upper < 0 else 'within'} the margin of {margin:g} points."
        elif test.outcome == "fail":
            said = f"{measured}: worse than the margin of {margin:g} points allows."
        else:
            needed = f" About {test.needed} items would show it nine times in ten." if test.needed else ""
            said = f"{measured}: this neither shows nor excludes a loss beyond {margin:g} points.{needed}"
        stopped = f" {_STOPPED[test.stopped].format(n=test.n, total=test.total)}" if test.stopped else ""
        attempt = spending.attempt_at(self.metric)
        again = f" Attempt {attempt} on this eval set, judged at alpha {test.alpha:.2g}." if attempt > 1 else ""
        warned = "".join(f" {warning}" for warning in test.warnings)
        alarm = test.mcnemar < 0.05 and test.outcome != "fail"
        alarmed = f" Regression alarm: losses outnumber gains (p = {test.mcnemar:.2g})." if alarm else ""
        return f"{said}{stopped}{alarmed}{again}{warned}"
