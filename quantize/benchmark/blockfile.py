"""The files of a benchmark's artifact, and what stands in them beside the rows: the blocks, and the curves of the arms.

    requests.jsonl      the requests, fixed before anything is sent
    requests.parquet    one row per request that was sent in a block (`rows.py`)
    blocks.json         one `BlockRecord` per block that was run, in the order run, valid or not
    curve.json          one `CurvePoint` per point of an arm's curve
    fingerprint.json    the machine and the engine, by name

All are written once, when the last block is done, and read by whoever judges or checks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from quantize.errors import DataError
from quantize.record import Record

__all__ = [
    "BLOCKS_FILE",
    "CURVE_FILE",
    "FINGERPRINT_FILE",
    "REQUESTS_FILE",
    "ROWS_FILE",
    "BlockRecord",
    "CurvePoint",
    "read_blocks",
    "read_curve",
    "write_records",
]

REQUESTS_FILE = "requests.jsonl"
ROWS_FILE = "requests.parquet"
BLOCKS_FILE = "blocks.json"
CURVE_FILE = "curve.json"
FINGERPRINT_FILE = "fingerprint.json"

AnyRecord = TypeVar("AnyRecord", bound=Record)


class BlockRecord(Record):
    """A block that was run: both arms once, in `order`. `attempt` counts from 0 how often it was run again.

    By arm: `starts` are seconds until its server answered, `memory` bytes (`peak`, and where known `weights`, `kv`) and
    how many tokens fit (`kv_tokens`), `facts` what the server chose itself, `machine` what the device and its clocks
    did meanwhile. `reasons` say why a block is not valid.
    """

    block: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=0)]
    order: list[str]
    valid: bool
    reasons: list[str]
    starts: dict[str, float]
    memory: dict[str, dict[str, int]]
    facts: dict[str, dict[str, str]]
    machine: dict[str, dict[str, float | str]]


class CurvePoint(Record):
    """A closed loop of `streams` requests under way at any time: what `arm` completes, and how long it takes for it.

    Times are in seconds. `ttft_p95` is None where too few requests tell it, the other times where none was answered.
    `failures` counts the requests that were not answered whole; rates are of those that were.
    """

    arm: str
    streams: Annotated[int, Field(ge=1)]
    requests: Annotated[int, Field(ge=1)]
    requests_per_second: Annotated[float, Field(ge=0)]
    output_tokens_per_second: Annotated[float, Field(ge=0)]
    ttft_p50: float | None
    ttft_p95: float | None
    tpot_p50: float | None
    e2e_p50: float | None
    failures: Annotated[int, Field(ge=0)]


def read_blocks(directory: Path) -> list[BlockRecord]:
    """The blocks of a benchmark's artifact, in the order run. Raises DataError."""
    return _read(directory / BLOCKS_FILE, BlockRecord)


def read_curve(directory: Path) -> list[CurvePoint]:
    """The points of all arms' curves. Raises DataError."""
    return _read(directory / CURVE_FILE, CurvePoint)


def write_records(records: Sequence[Record], path: Path) -> None:
    """Write blocks or points as one JSON list, the bytes the same for the same values."""
    path.write_text(json.dumps([record.model_dump(mode="json") for record in records], indent=2) + "\n")


def _read(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    try:
        return TypeAdapter(list[kind]).validate_json(path.read_bytes())  # type: ignore[valid-type]
    except OSError as error:
        raise DataError(f"this file of a benchmark cannot be read ({error.strerror}).", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{place}: {first['msg']}.", where=str(path), fix="The file was changed: remove the artifact and run again."
        ) from None
