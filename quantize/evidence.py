"""Measurements, the rows behind them, and the evidence that gates look at.

A measurement never stands alone: it carries its unit, its n and, where it has one, its interval. The rows are per item
and stay in Parquet beside it, so that a verdict can be reached again from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.record import Record

__all__ = [
    "ITEM_ROWS",
    "LOAD",
    "NO_EVALS",
    "TOKEN_ROWS",
    "ArmMeasurements",
    "Comparison",
    "Evidence",
    "Look",
    "Measurement",
    "Progressed",
    "Spending",
    "of_eval",
    "with_memory",
    "without_memory",
]

Direction = Literal["higher", "lower"]

#: Columns of `rows.parquet` of an item metric: one row per (item, filter), in the order of the answers.
#:
#: `place` counts the items in the seeded order from 0, `look` the looks in which they were answered. `score` is in
#: [0, 1], the mean over an item's generations. `parsed` is the share of its generations that hold an answer,
#: `truncated` of those that were cut off, `tokens` their mean length; all are null where the model only chooses.
#: `scored_by` names who had a say in the score beside the recipe (a judge's version, a sandbox), `problem` says why an
#: answer could not be scored; null where nobody had, and where none failed. The last three are null in rows of old.
ITEM_ROWS: dict[str, str] = {
    "place": "int32",
    "look": "int32",
    "item_id": "string",
    "filter": "string",
    "prompt_sha256": "string",
    "slice": "string",
    "cluster": "string",
    "score": "double",
    "parsed": "double",
    "tokens": "double",
    "answer": "string",
    "target": "string",
    "prompt": "string",
    "truncated": "double",
    "scored_by": "string",
    "problem": "string",
}

#: Columns of `rows.parquet` of a text metric: one row per scored token position, in the order of the text.
#:
#: `nll` and `kld` are in nats, `delta_p` is the variant's probability of the token less the baseline's. They and
#: `top1_agrees` are null where no baseline is known. Where the engine gives the likeliest tokens only, `kld` is null
#: and `kld_at_least` bounds it from below; everywhere else that is null.
TOKEN_ROWS: dict[str, str] = {
    "document": "int32",
    "position": "int32",
    "token": "int32",
    "nll": "double",
    "kld": "double",
    "top1_agrees": "bool",
    "delta_p": "double",
    "kld_at_least": "double",
}


class Measurement(Record):
    """One number of one arm. `low` and `high` bound its 95 % interval where it has one; `n` counts what it averages."""

    name: str
    value: float
    unit: str
    n: int
    direction: Direction
    low: float | None = None
    high: float | None = None


class Spending(Record):
    """How much of a gate's alpha a verdict may use, and where.

    `attempt` k of one variant on one eval set is judged at alpha * 6 / (pi^2 k^2). Of that, the share `early` pays for
    stopping early (0: the sample is fixed). `choices` variants compete for one target: an early pass must survive
    Holm's correction among them. `confirmation` names the eval whose gates alone count attempts; None: all do.
    """

    attempt: Annotated[int, Field(ge=1)] = 1
    early: Annotated[float, Field(ge=0, lt=1)] = 0.2
    choices: Annotated[int, Field(ge=1)] = 1
    confirmation: str | None = None

    def attempt_at(self, metric: str) -> int:
        """The attempt that a gate on `metric` (`<eval>.<quantity>`) is judged at."""
        counted = self.confirmation is None or metric.partition(".")[0] == self.confirmation
        return self.attempt if counted else 1


class Look(Record):
    """What a gate saw after a look: `items` answered, and the confidence sequence for the mean difference."""

    items: int
    lower: float
    upper: float


class Progressed(Record):
    """How far an arm came in an eval: `answered` of `items`, in `looks` looks; `stopped` says why it went no further.

    `gate` is the gate that stopped it (for a pass: the last one that held out).
    """

    items: int
    answered: int
    looks: int
    stopped: Literal["pass", "fail", "futile"] | None = None
    gate: str | None = None


class ArmMeasurements(Record):
    """What one `evaluate` stage found out about one arm on one eval.

    `hard_stops` are sentences about what makes the numbers worthless: non-finite logits, items without a row.
    `dataset_digest` names the eval's bytes; arms with different ones are never compared. `progressed` is None for a
    text, which is measured whole.
    """

    version: Literal[2] = 2
    eval: str
    arm: str
    dataset_digest: str
    engine: str
    device: str
    measurements: list[Measurement]
    hard_stops: list[str]
    progressed: Progressed | None = None


class Comparison(Record):
    """A variant's difference from the baseline in one metric: `difference` with its interval, in the metric's unit.

    `level` is the two-sided confidence level of `low` and `high`. `method` names the procedure. In the unit
    `ln ratio` the difference is of logarithms, in `ratio` it is the ratio itself.
    """

    metric: str
    unit: str
    baseline: float
    variant: float
    difference: float
    low: float | None
    high: float | None
    level: float | None
    n: int
    method: str
    extra: dict[str, Any]


#: What measurements under load are called by.
LOAD = "load"
#: What measurements of an artifact itself, and of its speed under load, are called by; no eval may be.
NO_EVALS = ("weights", "memory", LOAD)


class Evidence(Record):
    """Everything that was measured of one variant beside the baseline.

    `noise` compares the baseline with itself, measured again in other batches and another order. `progressed` tells by
    eval how far the variant came. `notes` are what a reader must know before believing the numbers. `format` is the
    artifact's container on disk.
    """

    version: Literal[2] = 2
    variant: str
    artifact_digest: str
    baseline_digest: str
    measurements: list[Measurement]
    baseline_measurements: list[Measurement]
    comparisons: list[Comparison]
    hard_stops: list[str]
    noise: list[Comparison] = Field(default_factory=list)
    progressed: dict[str, Progressed] = Field(default_factory=dict)
    spending: Spending = Spending()
    notes: list[str] = Field(default_factory=list)
    format: str = ""


def of_eval(metric: str) -> bool:
    """Whether a quantity was measured on an eval, and not of the artifact: its weights, its memory, its speed."""
    return metric.partition(".")[0] not in NO_EVALS


def with_memory(evidence: Evidence, proof: Mapping[str, Any], baseline: Mapping[str, Any]) -> Evidence:
    """The evidence, and what both arms took in memory when they were proven, from the summaries of those stages.

    It is no part of what is stored, which is equal for equal bytes: a run adds it to its own record.
    """
    return evidence.model_copy(
        update={
            "measurements": [*evidence.measurements, *_memory(proof)],
            "baseline_measurements": [*evidence.baseline_measurements, *_memory(baseline)],
        }
    )


def without_memory(evidence: Evidence) -> Evidence:
    """The evidence as it is stored: what `with_memory` added, taken away."""
    arms = {"measurements": evidence.measurements, "baseline_measurements": evidence.baseline_measurements}
    kept = {name: [m for m in found if not m.name.startswith("memory.")] for name, found in arms.items()}
    return evidence.model_copy(update=kept)


def _memory(summary: Mapping[str, Any]) -> list[Measurement]:
    """`memory.peak` of the process that held the weights and, where the engine knows, `memory.weights`."""
    taken: Mapping[str, int] = summary.get("memory") or {}
    names = [name for name in ("peak", "weights") if name in taken]
    return [Measurement(name=f"memory.{n}", value=taken[n], unit="bytes", n=1, direction="lower") for n in names]
