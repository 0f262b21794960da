"""Per-item rows: written once by the arm that answered, joined by item id, compared pair by pair."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from quantize.errors import DataError
from quantize.evidence import Comparison, Measurement
from quantize.stats import noninferiority, wilson_interval

__all__ = ["compare_items", "item_measurements", "read_rows", "write_rows"]

Row = dict[str, Any]

#: One-sided level of the limits that are shown where no gate has its own.
_ALPHA = 0.05


def write_rows(rows: list[Row], columns: dict[str, str], out: Path) -> None:
    """Write `rows.parquet` with exactly these columns and Arrow types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "rows.parquet", compression="zstd")


def read_rows(artifact: Path) -> list[Row]:
    """The rows of an `evaluate` artifact. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = artifact / "rows.parquet"
    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the rows cannot be read: {error}", where=str(path)) from error
    return rows


def item_measurements(name: str, rows: list[Row]) -> list[Measurement]:
    """Accuracy over all rows, then per slice, each with its 95 % Wilson interval."""
    groups = {"": rows}
    for row in rows:
        if row["slice"] is not None:
            groups.setdefault(f"/{row['slice']}", []).append(row)
    found = []
    for suffix, group in groups.items():
        right = sum(row["score"] for row in group)
        binary = all(row["score"] in (0.0, 1.0) for row in group)
        interval = wilson_interval(round(right), len(group)) if binary else None
        found.append(
            Measurement(
                name=f"{name}.accuracy{suffix}",
                value=right / len(group),
                unit="share",
                n=len(group),
                direction="higher",
                low=interval.lower if interval else None,
                high=interval.upper if interval else None,
            )
        )
    return found


def compare_items(name: str, baseline: Path, variant: Path) -> list[Comparison]:
    """Join on (item, filter) and count gains and losses, over all items and per slice."""
    left, right = (_keyed(read_rows(path), path) for path in (baseline, variant))
    for one, other, arm in ((left, right, "the variant"), (right, left, "the baseline")):
        lost = sorted(set(one) - set(other))
        if lost:
            raise DataError(f"{arm} has no row for item {lost[0][0]!r} ({len(lost)} missing).", fix=_AGAIN)
    pairs = []
    for key in sorted(left):
        if left[key]["prompt_sha256"] != right[key]["prompt_sha256"]:
            raise DataError(f"the arms were asked different things under item {key[0]!r}.", fix=_AGAIN)
        if left[key]["target"] != right[key]["target"]:
            raise DataError(f"the arms were scored against different answers to item {key[0]!r}.", fix=_AGAIN)
        pairs.append((left[key], right[key]))
    slices = sorted({str(pair[0]["slice"]) for pair in pairs if pair[0]["slice"] is not None})
    found = [_compare(f"{name}.accuracy", pairs)]
    found += [_compare(f"{name}.accuracy/{s}", [pair for pair in pairs if pair[0]["slice"] == s]) for s in slices]
    return found


_AGAIN = "The eval set changed between the arms: run again, so that both are measured on one set."


def _keyed(rows: list[Row], artifact: Path) -> dict[tuple[str, str], Row]:
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (str(row["item_id"]), str(row["filter"]))
        if key in found:
            raise DataError(f"item {key[0]!r} has two rows.", where=str(artifact), fix=_AGAIN)
        score = row["score"]
        if score is None or not math.isfinite(score):
            raise DataError(f"item {key[0]!r} has the score {score}.", where=str(artifact))
        if score not in (0.0, 1.0):
            raise DataError(
                f"item {key[0]!r} has the score {score}; only right (1) and wrong (0) can be compared.",
                where=str(artifact),
                fix="Choose a metric that scores an item 0 or 1.",
            )
        found[key] = row
    if not found:
        raise DataError("there are no rows.", where=str(artifact))
    return found


def _compare(metric: str, pairs: list[tuple[Row, Row]]) -> Comparison:
    """Counts of a paired comparison; the limits are the non-inferiority test's, whatever the margin."""
    n = len(pairs)
    losses = sum(before["score"] > after["score"] for before, after in pairs)
    gains = sum(before["score"] < after["score"] for before, after in pairs)
    test = noninferiority(losses, gains, n, margin=0.05, alpha=_ALPHA)
    return Comparison(
        metric=metric,
        unit="share",
        baseline=sum(before["score"] for before, _ in pairs) / n,
        variant=sum(after["score"] for _, after in pairs) / n,
        difference=(gains - losses) / n,
        low=test.lower,
        high=test.upper,
        level=1 - 2 * _ALPHA,
        n=n,
        method=test.method,
        extra={"losses": losses, "gains": gains, "ties": n - losses - gains},
    )
