"""What a benchmark keeps on its way, and the artifact that it becomes.

The curves are part 0 of the stage, each block that was run, valid or not, a part of its own: a stage that was killed
goes on after its last block. At the end the parts are put together; `blockfile.py` names the files. Two more stand
beside those:

curve.parquet       one row per request of the curves, as in requests.parquet
loads.json          a `LoadRecord`: the rates that the loads had, and what is to be known of the curves
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from quantize.benchmark.blockfile import (
    BLOCKS_FILE,
    CURVE_FILE,
    FINGERPRINT_FILE,
    ROWS_FILE,
    BlockRecord,
    CurvePoint,
    write_records,
)
from quantize.benchmark.rowfile import read_rows
from quantize.benchmark.rows import REQUEST_ROWS
from quantize.handed import Row
from quantize.record import Record

__all__ = [
    "CURVE_ROWS_FILE",
    "LOADS_FILE",
    "ArmCurve",
    "CurvePart",
    "LoadRecord",
    "block_number",
    "keep_part",
    "kept_block",
    "kept_curves",
    "write_artifact",
]

CURVE_ROWS_FILE = "curve.parquet"
LOADS_FILE = "loads.json"

_PART_FILE = "part.json"
_PART_ROWS = "rows.parquet"
_ATTEMPTS = 1000


class ArmCurve(Record):
    """An arm's curve: `left_out` are points beyond what its server can do, `reasons` what disturbed the others."""

    arm: str
    points: list[CurvePoint]
    left_out: list[int]
    reasons: list[str]


class CurvePart(Record):
    """The curves of a stage, and the `ceilings` of the device (FLOP/s, bytes/s) where a model is timed in process."""

    arms: list[ArmCurve]
    ceilings: dict[str, float] = Field(default_factory=dict)

    @property
    def points(self) -> list[CurvePoint]:
        """All points of all arms."""
        return [point for arm in self.arms for point in arm.points]


class LoadRecord(Record):
    """`rates` of the open loads by name and the `knee` that they are shares of, both in requests a second.

    `warning` says what makes the knee doubtful. Without open loads that take a share of it, it is not looked for.

    `ceilings` are what the device can do at most (`flops` in FLOP/s, `bandwidth` in bytes/s), measured beside the curve
    where a model is timed in process.

    By arm: `left_out` points of its curve, and `reasons` for which its curve may be wrong.
    """

    rates: dict[str, float]
    knee: float | None
    warning: str | None = None
    left_out: dict[str, list[int]]
    reasons: dict[str, list[str]]
    ceilings: dict[str, float] = Field(default_factory=dict)


def block_number(block: int, attempt: int) -> int:
    """The part of a block's attempt. Blocks count from 1, attempts from 0; part 0 holds the curves."""
    return 1 + block * _ATTEMPTS + attempt


def keep_part(directory: Path, part: CurvePart | BlockRecord, rows: Sequence[Row]) -> None:
    """Fill the part of the curves, or of a block."""
    (directory / _PART_FILE).write_text(part.model_dump_json(), encoding="utf-8")
    _write_rows(rows, directory / _PART_ROWS)


def kept_curves(directory: Path) -> tuple[CurvePart, list[Row]]:
    """The curves of a part, and the rows behind them."""
    part = CurvePart.model_validate_json((directory / _PART_FILE).read_bytes())
    return part, read_rows(directory / _PART_ROWS)


def kept_block(directory: Path) -> tuple[BlockRecord, list[Row]]:
    """The block of a part, and its rows."""
    record = BlockRecord.model_validate_json((directory / _PART_FILE).read_bytes())
    return record, read_rows(directory / _PART_ROWS)


def write_artifact(
    out: Path,
    curves: tuple[CurvePart, list[Row]],
    blocks: Sequence[tuple[BlockRecord, list[Row]]],
    loads: LoadRecord,
    fingerprint: Mapping[str, str],
) -> None:
    """Put a stage's parts together in `out`, which holds the requests already."""
    write_records(curves[0].points, out / CURVE_FILE)
    _write_rows(curves[1], out / CURVE_ROWS_FILE)
    write_records([record for record, _ in blocks], out / BLOCKS_FILE)
    _write_rows([row for _, rows in blocks for row in rows], out / ROWS_FILE)
    (out / LOADS_FILE).write_text(loads.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / FINGERPRINT_FILE).write_text(json.dumps(dict(fingerprint), indent=2, sort_keys=True) + "\n", "utf-8")


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    """Exactly the columns and types of `REQUEST_ROWS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        name: pa.list_(pa.float64()) if kind == "list<double>" else pa.type_for_alias(kind)
        for name, kind in REQUEST_ROWS.items()
    }
    schema = pa.schema(list(kinds.items()))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
