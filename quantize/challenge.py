"""Whether a verdict that passed may move an alias: attempts must be counted right, and what serves must be met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from quantize.attempts import ATTEMPT, Ledger, tags_of
from quantize.errors import DataError
from quantize.handed import Row
from quantize.incumbent import Contest, rows_of_version
from quantize.metrics import read_rows
from quantize.promotion import BASELINE
from quantize.registry import Registry, VersionState
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.verdict import Finding

__all__ = ["Challenge"]


@dataclass(frozen=True, slots=True)
class Challenge:
    """The questions that a release asks before it moves anything. `versions` are the registry's, as it found them."""

    registry: Registry
    runner: Runner
    record: RunRecord
    versions: list[VersionState]

    def attempt_tags(self, variant: VariantRecord) -> dict[str, str]:
        """The tags that count this attempt; none where the variant was stopped before it was shown the eval set."""
        bases = variant.verdict.bases
        # Where the registry knows of more, this artifact's own number: the next run judges it at that.
        known = self._number(variant)
        return tags_of(bases, max(known, variant.verdict.attempt)) if bases else {}

    def stale(self, variant: VariantRecord) -> str | None:
        """Why a verdict may not promote: the registry knows of more attempts than it was judged at."""
        number = self._number(variant)
        if variant.verdict.attempt >= number:
            return None
        return (
            f"It was judged as attempt {variant.verdict.attempt} on this eval set, and the registry knows {number - 1} "
            "before it. Run again: it is judged at its own alpha then."
        )

    def against_champion(self, variant: VariantRecord, version: VersionState, champion: str | None) -> list[Finding]:
        """The recipe's gates against the champion that would be replaced; none where there is none."""
        incumbent = next((v for v in self.versions if v.version == champion), None)
        if incumbent is None or incumbent.variant == BASELINE or incumbent.version == version.version:
            return []  # against the baseline it was judged already
        found = partial(self._rows, variant.stages)
        held = rows_of_version(self.registry, incumbent)
        # What the version will be tagged with, it is not yet.
        measured = {**version.tags, "measured_on": self.measured_on(variant.engine)}
        candidate = replace(version, tags=measured)
        contest = self._contest(self.record.stages_of_baseline(variant.baseline))
        return contest.judge(incumbent, held, candidate, found, attempt=variant.verdict.attempt, rivals=1)

    def may_serve(self, candidate: VersionState, incumbent: VersionState, rivals: int) -> bool:
        """Whether a target may move from one champion to another: by the same gates, on their rows.

        `rivals` compete for the target, and any of them may be asked, so alpha is divided among them.
        """
        if f"{candidate.variant}-previous" in incumbent.aliases and incumbent.variant == candidate.variant:
            return True  # it has just replaced it, by these gates
        held, found = (rows_of_version(self.registry, version) for version in (incumbent, candidate))
        numbers = [int(number) for tag, number in candidate.tags.items() if tag.startswith(ATTEMPT)]
        attempt = max(numbers, default=1)
        ours = next((v for v in self.record.variants if v.name == candidate.variant), None)
        contest = self._contest(self.record.stages_of_baseline(ours.baseline if ours is not None else ""))
        findings = contest.judge(incumbent, held, candidate, found, attempt=attempt, rivals=rivals)
        beaten = [finding for finding in findings if finding.outcome != "pass"]
        if beaten:
            self.runner.watcher.note(
                f"version {candidate.version} ({candidate.variant}) does not replace version {incumbent.version}: "
                f"{beaten[0].sentence}"
            )
        return not beaten

    def measured_on(self, engine: str) -> str:
        """The engine and class of device that rows of this run come from."""
        return f"{engine} on {self.runner.plan.device.device_class}"

    def _number(self, variant: VariantRecord) -> int:
        """The attempt that the registry alone would give this artifact."""
        verdict = variant.verdict
        return Ledger.of_versions(self.versions).attempt(verdict.bases, verdict.artifact_digest)

    def _contest(self, baseline: dict[str, str]) -> Contest:
        recipe = self.runner.plan.recipe
        trade = self.registry.trade
        allowed = (trade.smaller_by, trade.margin) if trade is not None else None
        return Contest(recipe.evals, recipe.gates, partial(self._rows, baseline), allowed)

    def _rows(self, stages: dict[str, str], name: str) -> list[Row]:
        """The rows of an arm of this run."""
        if f"evaluate.{name}" not in stages:
            raise DataError(f"{name} was not measured in this run.", where=self.record.run)
        return read_rows(self.runner.store.path("evaluate", stages[f"evaluate.{name}"]))
