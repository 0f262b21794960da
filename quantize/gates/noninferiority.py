"""The gate that a promotion rests on: paired non-inferiority at a margin fixed before measuring.

H0: the variant's mean score is lower than the baseline's by the margin or more. "Not significantly different" is not a
pass: with too few items the finding is inconclusive and says how many would be needed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quantize.evidence import Comparison, Evidence
from quantize.record import Record
from quantize.verdict import Finding

__all__ = ["NonInferiority"]


class NonInferiority(Record):
    """`metric` is `<eval>.accuracy` or `<eval>.accuracy/<slice>`; `margin` in shares (0.02 is two points)."""

    kind: Literal["noninferiority"] = "noninferiority"
    metric: str
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    advisory: bool = False

    def judge(self, evidence: Evidence) -> Finding:
        """Decide from the counts of gains and losses (Tango 1998; see `quantize.stats`)."""
        from quantize.stats import noninferiority

        comparison = next((c for c in evidence.comparisons if c.metric == self.metric), None)
        if comparison is None or "losses" not in comparison.extra:
            known = ", ".join(c.metric for c in evidence.comparisons if "losses" in c.extra) or "none"
            return self._finding("error", f"{self.metric} was not measured as paired items (measured: {known}).", {})
        test = noninferiority(
            losses=int(comparison.extra["losses"]),
            gains=int(comparison.extra["gains"]),
            n=comparison.n,
            margin=self.margin,
            alpha=self.alpha,
        )
        numbers: dict[str, float | int | str | None] = {
            "n": test.n,
            "losses": test.losses,
            "gains": test.gains,
            "difference": test.difference,
            "lower": test.lower,
            "upper": test.upper,
            "p_value": test.p_value,
            "alpha": test.alpha,
            "margin": test.margin,
            "method": test.method,
            "needed": test.needed,
            "baseline": comparison.baseline,
            "variant": comparison.variant,
        }
        return self._finding(test.outcome, _sentence(self, comparison, numbers), numbers)

    def _finding(
        self,
        outcome: Literal["pass", "fail", "inconclusive", "error"],
        sentence: str,
        numbers: dict[str, float | int | str | None],
    ) -> Finding:
        return Finding(
            gate=f"{self.metric} not worse than {100 * self.margin:g} points",
            kind=self.kind,
            metric=self.metric,
            outcome=outcome,
            sentence=sentence,
            numbers=numbers,
            advisory=self.advisory,
        )


def _sentence(gate: NonInferiority, comparison: Comparison, numbers: dict[str, float | int | str | None]) -> str:
    difference, lower, upper = (100 * float(numbers[name] or 0.0) for name in ("difference", "lower", "upper"))
    margin = 100 * gate.margin
    measured = (
        f"{gate.metric} changed by {difference:+.1f} points (90 % interval {lower:+.1f} to {upper:+.1f}, "
        f"{comparison.n} items, {numbers['losses']} lost, {numbers['gains']} gained)"
        if gate.alpha == 0.05
        else f"{gate.metric} changed by {difference:+.1f} points ({100 * (1 - 2 * gate.alpha):g} % interval "
        f"{lower:+.1f} to {upper:+.1f}, {comparison.n} items)"
    )
    if lower > -margin:
        return f"{measured}: {'worse, but within' if upper < 0 else 'within'} the margin of {margin:g} points."
    if upper < -margin:
        return f"{measured}: worse than the margin of {margin:g} points allows."
    needed = f" About {numbers['needed']} items would decide." if numbers["needed"] else ""
    return f"{measured}: this neither shows nor excludes a loss beyond {margin:g} points.{needed}"
