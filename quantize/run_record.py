"""`run.json`: what a run found out, and where the bytes lie."""

from __future__ import annotations

from pathlib import Path

from quantize.errors import StoreError
from quantize.evidence import Evidence
from quantize.record import Record
from quantize.verdict import Decision, Verdict

__all__ = ["RESOLVED", "RunRecord", "VariantRecord", "read_record"]

#: The recipe as it was run, overrides applied and paths absolute, in a run's folder.
RESOLVED = "recipe.resolved.json"


class VariantRecord(Record):
    """What a run knows of one variant. `decision` is None where nothing was decided anew or releases were off.

    `engine` served it; `baseline` is the suffix of the labels of the baseline's stages in that engine.
    """

    name: str
    verdict: Verdict
    evidence: Evidence | None
    decision: Decision | None
    stages: dict[str, str]
    engine: str = "transformers"
    baseline: str = ""


class RunRecord(Record):
    """`run.json` of a run directory: all that a report needs, and where the bytes lie."""

    version: int = 1
    run: str
    recipe: str
    recipe_digest: str
    program: str
    started: str
    seconds: float
    device: str
    actor: str
    baseline_stages: dict[str, str]
    variants: list[VariantRecord]
    ran: list[str]
    reused: list[str]

    def stages_of_baseline(self, suffix: str) -> dict[str, str]:
        """The baseline's stages in one engine, by the labels that the first engine's have."""
        named = [(label.partition("@"), key) for label, key in self.baseline_stages.items()]
        return {label: key for (label, at, engine), key in named if at + engine == suffix}

    def keys(self) -> set[str]:
        """The keys of every stage that the run reached."""
        found = set(self.baseline_stages.values())
        for variant in self.variants:
            found |= set(variant.stages.values())
        return found


def read_record(directory: Path) -> RunRecord:
    """The record of a run directory. Raises StoreError where there is none, or it is not ours."""
    path = directory / "run.json"
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            "the run did not get as far as a verdict.", where=str(directory), fix="Run the same recipe to resume it."
        ) from None
    except ValueError as error:
        raise StoreError(
            "this is not a run record of this program.",
            where=str(path),
            fix="An older or newer program made it: run the recipe again.",
        ) from error
