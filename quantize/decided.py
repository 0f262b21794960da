"""What a version says of its verdict: the tags that later decisions about it rest on."""

from __future__ import annotations

from quantize.verdict import Verdict

__all__ = ["verdict_tags"]


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """Digest and outcome; of the blocking tests the lower limit, the greatest p over alpha, and the difference.

    `ratio` is what Holm's correction needs, 0 where nothing is tested; `difference` is what `prefer: quality` ranks by.
    """
    return {
        "verdict_digest": verdict.digest(),
        "outcome": verdict.outcome,
        "lower": _lower(verdict),
        "ratio": _ratio(verdict),
        "difference": _difference(verdict),
        "recipe_digest": verdict.recipe_digest,
    }


def _ratio(verdict: Verdict) -> str:
    """The greatest p over alpha among the blocking tests: what Holm's correction needs; 0 where nothing is tested."""
    ratios = [
        float(f.numbers["p_value"] or 0.0) / float(f.numbers["alpha"] or 1.0)
        for f in verdict.findings
        if f.kind == "noninferiority" and not f.advisory and f.numbers.get("p_value") is not None
    ]
    return str(max(ratios, default=0.0))


def _difference(verdict: Verdict) -> str:
    """The difference of the first blocking test on a whole eval: what `prefer: quality` ranks by; "" without one.

    Not its lower limit, which an early stop leaves wide.
    """
    tests = [f for f in verdict.findings if f.kind == "noninferiority" and not f.advisory and "/" not in f.metric]
    found = [f.numbers.get("difference") for f in tests]
    return str(found[0]) if found and found[0] is not None else ""


def _lower(verdict: Verdict) -> str:
    """The lower confidence limit of the first non-inferiority finding, "" where there is none."""
    limits = [f.numbers.get("lower") for f in verdict.findings if f.kind == "noninferiority"]
    return str(limits[0]) if limits and limits[0] is not None else ""
