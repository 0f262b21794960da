"""Findings, verdicts and decisions, each with all that an audit needs to reach it again.

finding   one gate's result: pass, fail, inconclusive or error, its numbers and one sentence
verdict   all findings of a variant combined: the worst of them
decision  verdict + registry state: promote, hold or reject; stale where that state changed before it was carried out
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantize.evidence import Look
from quantize.record import Record

__all__ = ["Action", "Decision", "Finding", "Outcome", "Verdict", "combine"]

Outcome = Literal["pass", "fail", "inconclusive", "error"]
Action = Literal["promote", "hold", "reject", "stale"]

_WORST_FIRST: tuple[Outcome, ...] = ("error", "fail", "inconclusive", "pass")


class Finding(Record):
    """One gate's result. `numbers` holds what the sentence rests on; `advisory` findings never block.

    `looks` is the confidence sequence of a sample that was looked at while it grew; `detail` the end of the log of what
    failed.
    """

    version: Literal[2] = 2
    gate: str
    kind: str
    metric: str
    outcome: Outcome
    sentence: str
    numbers: dict[str, float | int | str | None]
    advisory: bool = False
    looks: list[Look] = Field(default_factory=list)
    detail: str = ""


class Verdict(Record):
    """All findings of one variant. `rows` are the digests of the files that the findings were computed from.

    `attempt` counts the artifacts of this variant that were shown this eval set; `bases` are the digests of what they
    have in common, one an eval: baseline, items and the variant's name. Empty where the variant was shown none.
    """

    version: Literal[2] = 2
    variant: str
    outcome: Outcome
    findings: list[Finding]
    artifact_digest: str
    baseline_digest: str
    recipe_digest: str
    rows: dict[str, str]
    program: str
    attempt: int = 1
    bases: list[str] = Field(default_factory=list)

    def reasons(self) -> list[str]:
        """The sentences that decided: those of the findings whose outcome is the verdict's, gates before the proof."""
        decided = [f for f in self.findings if f.outcome == self.outcome and not f.advisory]
        return [f.sentence for f in sorted(decided, key=lambda f: f.kind == "proof")]


class Decision(Record):
    """What was done with a verdict, against which registry state, and why.

    `against` are the findings of the same gates against the champion that would have been replaced. `approve` is the
    command that promotes a version that was held for a person alone; "" for any other.
    """

    version: Literal[2] = 2
    variant: str
    action: Action
    outcome: Outcome
    sentence: str
    verdict_digest: str
    artifact_digest: str
    model: str
    model_version: str | None
    previous_version: str | None
    aliases: dict[str, str]
    decided_at: str
    actor: str
    run: str
    against: list[Finding] = Field(default_factory=list)
    approve: str = ""


def combine(findings: list[Finding]) -> Outcome:
    """The worst outcome among the findings that may block; with nothing to judge, an error and never a pass."""
    outcomes = {finding.outcome for finding in findings if not finding.advisory}
    return next((outcome for outcome in _WORST_FIRST if outcome in outcomes), "error")
