"""Rows of items: written once by the arm that answered, and read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from quantize.errors import DataError
from quantize.evidence import Measurement
from quantize.handed import Row
from quantize.stats import wilson_interval

#: Columns that rows of items of an older program lack.
_LATER = ("truncated", "scored_by", "problem")

__all__ = ["check_scores", "item_measurements", "read_rows", "write_rows"]


def write_rows(rows: list[Row], columns: dict[str, str], out: Path) -> None:
    """Write `rows.parquet` with exactly these columns and Arrow types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "rows.parquet", compression="zstd")


def read_rows(artifact: Path) -> list[Row]:
    """The rows of an `evaluate` artifact; columns that they did not always have are null. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = artifact / "rows.parquet"
    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the rows cannot be read: {error}", where=str(path), fix=f"Remove {artifact} and run again."
        ) from error
    lacking = [name for name in _LATER if rows and "item_id" in rows[0] and name not in rows[0]]
    return [{**row, **dict.fromkeys(lacking)} for row in rows] if lacking else rows


def check_scores(rows: list[Row], where: str) -> None:
    """Every score a number in [0, 1]. Raises DataError naming the first item whose score is not."""
    for row in rows:
        score = row["score"]
        if score is None or not math.isfinite(score):
            raise DataError(f"item {row['item_id']!r} has the score {score}.", where=where)
        if not 0 <= score <= 1:
            raise DataError(
                f"item {row['item_id']!r} has the score {score}, which is not between 0 and 1.",
                where=where,
                fix="Choose a metric whose scores are shares: margins are shares of it.",
            )


def item_measurements(name: str, rows: list[Row]) -> list[Measurement]:
    """Accuracy over all rows and per slice.

    Of generated answers also how many hold one and how many were cut off, their length in tokens, and how many could
    not be scored, where any.
    """
    groups = {"": rows}
    for row in rows:
        if row["slice"] is not None:
            groups.setdefault(f"/{row['slice']}", []).append(row)
    alone = all(row["cluster"] is None for row in rows)
    found = [
        _share(f"{name}.accuracy{suffix}", [row["score"] for row in group], alone=alone)
        for suffix, group in groups.items()
    ]
    read = [row for row in rows if row["parsed"] is not None]
    if read:
        found.append(_share(f"{name}.parsed", [row["parsed"] for row in read], alone=alone))
        mean = sum(row["tokens"] for row in read) / len(read)
        found.append(
            Measurement(name=f"{name}.output_tokens", value=mean, unit="tokens", n=len(read), direction="lower")
        )
    cut = [row["truncated"] for row in read if row.get("truncated") is not None]
    if cut:
        found.append(_share(f"{name}.truncated", cut, alone=alone, direction="lower"))
    lost = [float(row.get("problem") is not None) for row in rows]
    if any(lost):
        found.append(_share(f"{name}.not_scored", lost, alone=alone, direction="lower"))
    return found


def _share(
    name: str, scores: list[float], *, alone: bool, direction: Literal["higher", "lower"] = "higher"
) -> Measurement:
    """A mean score, with its 95 % Wilson interval where every score is 0 or 1 and every item stands `alone`."""
    total, n = sum(scores), len(scores)
    binary = alone and all(score in (0.0, 1.0) for score in scores)
    interval = wilson_interval(round(total), n) if binary and n else None
    return Measurement(
        name=name,
        value=total / n if n else 0.0,
        unit="share",
        n=n,
        direction=direction,
        low=interval.lower if interval else None,
        high=interval.upper if interval else None,
    )
