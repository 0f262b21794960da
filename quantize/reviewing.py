"""Going through the checklist of a version in a release: what it rests on is gathered, and the list kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from quantize.approval import CHECKLIST_FILE
from quantize.claims import check_claims
from quantize.errors import Interrupted, QuantizeError
from quantize.promotion import BASELINE, alias_map
from quantize.proved import known_proof
from quantize.registry import Registry, VersionState
from quantize.review import Asked, Case, Checklist, Fallback, as_markdown, review
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.store import writing
from quantize.verdict import Decision

__all__ = ["Reviewer"]

_FOLDER = "review"


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Reviews what passed in a release. `versions` are the registry's, as the release found them."""

    registry: Registry
    runner: Runner
    record: RunRecord
    versions: list[VersionState]

    def review(self, variant: VariantRecord, decision: Decision, serving: str) -> Checklist | None:
        """The checklist of a variant that passed; `serving` is the digest of its serving files."""
        if variant.evidence is None or decision.model_version is None:
            return None
        recipe = self.runner.plan.recipe
        return review(
            Case(
                model=self.registry.name,
                version=decision.model_version,
                run=self.record.run,
                evidence_run=decision.run,
                verdict=variant.verdict,
                evidence=variant.evidence,
                against=decision.against,
                engine=variant.engine,
                asked=Asked(recipe.noise_floor, recipe.benchmark is not None, recipe.confirmation),
                stages=variant.stages,
                baseline_stages=self._baseline(variant),
                fallback=self._fallback(variant, decision),
                serving=serving,
            )
        )

    def keep(self, decision: Decision, checklist: Checklist) -> dict[str, str]:
        """Write the checklist into the run's folder and its MLflow run; returns the tag that knows it again."""
        folder = self.runner.directory / _FOLDER / decision.variant
        paths = [folder / CHECKLIST_FILE, folder / Path(CHECKLIST_FILE).with_suffix(".md")]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            paths[0].write_text(checklist.model_dump_json(indent=1), encoding="utf-8")
            paths[1].write_text(as_markdown(checklist), encoding="utf-8")
        self.registry.log(decision.run, {}, {}, {"": paths})
        return {"review_digest": checklist.digest()}

    def _baseline(self, variant: VariantRecord) -> dict[str, str]:
        """The baseline's stages in the variant's engine, the ones that were run under the labels of the first."""
        return self.record.stages_of_baseline(variant.baseline)

    def _fallback(self, variant: VariantRecord, decision: Decision) -> Fallback:
        """Where a rollback would go: the champion that is replaced, else what was before it, else the baseline."""
        aliases = alias_map(self.versions)
        before = aliases.get(variant.name)
        if before == decision.model_version:
            before = aliases.get(f"{variant.name}-previous")
        version = next((v for v in self.versions if v.version == before), self.versions[0])
        known = Fallback(version.version, version.variant or "of others", version.artifact_digest)
        try:
            check_claims(self.registry, version)
        except Interrupted:
            raise
        except QuantizeError as error:
            return replace(known, problem=error.what)
        return replace(known, proved=self._proved(version, variant))

    def _proved(self, version: VersionState, variant: VariantRecord) -> str:
        """How a version is known to load: the baseline answered in this run, another was proven when it was judged."""
        if version.variant == BASELINE:
            told = [label for label in self._baseline(variant) if label.partition(".")[0] in ("prove", "evaluate")]
            return f"it was loaded in this run ({', '.join(told)})" if told else ""
        proof = known_proof(version)
        return f"it was loaded in {proof.engine} and proven on {proof.when}" if proof is not None else ""
