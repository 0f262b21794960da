"""Measurements, the rows behind them, and the evidence that gates look at.

A measurement never stands alone: it carries its unit, its n and, where it has one, its interval. The rows are per item
and stay in Parquet beside it, so that a verdict can be reached again from them.
"""

from __future__ import annotations

from typing import Any, Literal

from quantize.record import Record

__all__ = ["ITEM_ROWS", "TOKEN_ROWS", "ArmMeasurements", "Comparison", "Evidence", "Measurement"]

Direction = Literal["higher", "lower"]

#: Columns of `rows.parquet` of an item metric: one row per (item, filter).
ITEM_ROWS: dict[str, str] = {
    "item_id": "string",
    "filter": "string",
    "prompt_sha256": "string",
    "slice": "string",
    "cluster": "string",
    "score": "double",
    "answer": "string",
    "target": "string",
    "prompt": "string",
}

#: Columns of `rows.parquet` of a text metric: one row per scored token position.
TOKEN_ROWS: dict[str, str] = {
    "document": "int32",
    "position": "int32",
    "token": "int32",
    "nll": "double",
    "kld": "double",
    "top1_agrees": "bool",
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


class ArmMeasurements(Record):
    """What one `evaluate` stage found out about one arm on one eval.

    `hard_stops` are sentences about what makes the numbers worthless: non-finite logits, items without a row.
    `dataset_digest` names the eval's bytes; arms with different ones are never compared.
    """

    version: Literal[1] = 1
    eval: str
    arm: str
    dataset_digest: str
    engine: str
    device: str
    measurements: list[Measurement]
    hard_stops: list[str]


class Comparison(Record):
    """A variant's difference from the baseline in one metric: `difference` with its interval, in the metric's unit.

    `level` is the two-sided confidence level of `low` and `high`. `method` names the procedure. For ratios, the
    difference is of logarithms.
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


class Evidence(Record):
    """Everything that was measured of one variant beside the baseline."""

    version: Literal[1] = 1
    variant: str
    artifact_digest: str
    baseline_digest: str
    measurements: list[Measurement]
    baseline_measurements: list[Measurement]
    comparisons: list[Comparison]
    hard_stops: list[str]
