"""`run.json`: what a run found out, and where the bytes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from quantize.errors import StoreError
from quantize.evidence import Evidence
from quantize.record import Record
from quantize.review import Checklist
from quantize.store import refuse_newer
from quantize.verdict import Decision, Verdict

__all__ = ["RESOLVED", "RunRecord", "StageTime", "VariantRecord", "read_record"]

RECORD_VERSION: Literal[1] = 1
#: The recipe as it was run, overrides applied and paths absolute, in a run's folder.
RESOLVED = "recipe.resolved.json"


class VariantRecord(Record):
    """What a run knows of one variant. `decision` is None where nothing was decided anew or releases were off.

    `engine` served it; `baseline` is the suffix of the labels of the baseline's stages in that engine. `checklist` is
    what a version that passed was reviewed by.
    """

    name: str
    verdict: Verdict
    evidence: Evidence | None
    decision: Decision | None
    stages: dict[str, str]
    engine: str = "transformers"
    baseline: str = ""
    checklist: Checklist | None = None


class StageTime(Record):
    """When and where a run did a stage: from getting its devices (`device`; empty: it uses none) to the commit.

    `began` and `ended` are UTC with milliseconds, `log` is a path in the run's folder.
    """

    stage: str
    key: str
    device: str
    began: str
    ended: str
    seconds: float
    peak_memory_bytes: int
    log: str


class RunRecord(Record):
    """`run.json` of a run directory: all that a report needs, and where the bytes lie.

    `remarks` are what the baseline means where that is not simply the files as given, and what the release has to say
    beside its decisions: who waits for approval, who could not be told. `times` are of the stages that `ran`.
    """

    version: Literal[1] = RECORD_VERSION
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
    times: list[StageTime] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)

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
        data = path.read_bytes()
        refuse_newer(data, RECORD_VERSION, path, "run")
        return RunRecord.model_validate_json(data)
    except FileNotFoundError:
        raise StoreError(
            "the run did not get as far as a verdict.", where=str(directory), fix="Run the same recipe to resume it."
        ) from None
    except ValueError as error:
        raise StoreError(
            "this is not a run record of this program.",
            where=str(path),
            fix="An older program made it, or it is damaged: run the recipe again.",
        ) from error
