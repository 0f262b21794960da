"""Reading `requests.parquet`, and refusing rows that cannot be what was measured.

A number that is computed of rows is worth what they are: so every row has its place, both arms of a valid block were
asked the same, and no token came before its request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantize.benchmark.blockfile import BlockRecord
from quantize.benchmark.rows import REQUEST_ROWS
from quantize.errors import DataError
from quantize.handed import Row

__all__ = ["SLACK", "check_rows", "read_rows"]

_MEND = "The file was changed: remove the artifact and run again."

#: Seconds that two threads of a sender may write down the same moment apart.
SLACK = 1e-3


def read_rows(path: Path) -> list[Row]:
    """All rows, in the order of the file. Raises DataError for columns that are not those of `REQUEST_ROWS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the rows cannot be read: {error}", where=str(path), fix=_MEND) from error
    found = dict(zip(table.schema.names, table.schema.types, strict=True))
    for name, kind in REQUEST_ROWS.items():
        if name not in found:
            raise DataError(f"the column {name!r} is missing.", where=str(path), fix=_MEND)
        expected = pa.list_(pa.float64()) if kind == "list<double>" else pa.type_for_alias(kind)
        if found[name] != expected:
            raise DataError(f"the column {name!r} holds {found[name]} and not {kind}.", where=str(path), fix=_MEND)
    unknown = sorted(set(found) - set(REQUEST_ROWS))
    if unknown:
        raise DataError(f"there is no column {unknown[0]!r} in requests.", where=str(path), fix=_MEND)
    rows: list[Row] = table.to_pylist()
    return rows


def check_rows(rows: Sequence[Row], blocks: Sequence[BlockRecord], path: Path) -> None:
    """Every row possible and in a block of the record; in valid blocks both arms asked the same. Raises DataError."""
    records = {(record.block, record.attempt): record for record in blocks}
    if len(records) < len(blocks):
        raise DataError("one attempt at a block is on record twice.", where=str(path.parent), fix=_MEND)
    seen: set[tuple[Any, ...]] = set()
    asked: dict[tuple[int, int], dict[tuple[str, str], list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        block = (row["block"], row["attempt"])
        where = f"{path}, {_name(*block)}"
        if block not in records:
            raise DataError("there are rows of this block and no record of it.", where=where, fix=_MEND)
        if row["arm"] not in records[block].order:
            raise DataError(f"there are rows of an arm {row['arm']!r}, which it did not have.", where=where, fix=_MEND)
        place = (*block, row["arm"], row["load"], row["place"])
        if place in seen:
            raise DataError(f"{_row(row)} is there twice.", where=where, fix=_MEND)
        seen.add(place)
        _check_times(row, where)
        asked[block][row["load"], row["arm"]].append((row["place"], row["warmup"], row["request"]))
    loads = sorted({load for found in asked.values() for load, _ in found})
    for key, record in records.items():
        if record.valid:
            _check_pair(asked[key], record, loads, f"{path}, {_name(*key)}")


def _check_pair(
    asked: dict[tuple[str, str], list[tuple[Any, ...]]], record: BlockRecord, loads: Sequence[str], where: str
) -> None:
    """Every arm of a valid block was sent every load, and all the same requests in the same order."""
    for load in loads:
        for arm in record.order:
            if (load, arm) not in asked:
                raise DataError(f"there are no rows of the arm {arm!r} at the load {load!r}.", where=where, fix=_MEND)
        first, *others = (sorted(asked[load, arm]) for arm in record.order)
        if any(other != first for other in others):
            raise DataError(f"at the load {load!r} the arms were not sent the same requests.", where=where, fix=_MEND)
        if all(warmup for _, warmup, _ in first):
            raise DataError(f"at the load {load!r} there are rows of the warm-up only.", where=where, fix=_MEND)


def _check_times(row: Row, where: str) -> None:
    """Finite times that only go on, and of an answered request all that is needed to say how long it took."""
    needed = ("block", "attempt", "arm", "load", "place", "warmup", "request", "scheduled")
    missing = [name for name in needed if row[name] is None]
    if row["error.type"] is None:
        missing += [name for name in ("dispatched", "end", "gen_ai.usage.output_tokens") if row[name] is None]
        missing += [] if row["tokens"] else ["tokens"]
    if missing:
        raise DataError(f"{_row(row)} has no {missing[0]!r}.", where=where, fix=_MEND)
    if row["error.type"] is None and row["gen_ai.usage.output_tokens"] < 2:
        raise DataError(f"{_row(row)} has one token: the time between tokens needs two.", where=where, fix=_MEND)
    steps = [row["scheduled"], row["dispatched"], *(row["tokens"] or ()), row["end"]]
    times = [time for time in steps if time is not None]
    # Written so that NaN, which compares with nothing, is refused too.
    if not all(later >= earlier - SLACK for earlier, later in pairwise([float("-inf"), *times, float("inf")])):
        raise DataError(f"the times of {_row(row)} do not follow each other.", where=where, fix=_MEND)


def _row(row: Row) -> str:
    return f"request {row['request']} ({row['arm']}, load {row['load']}, place {row['place']})"


def _name(block: int, attempt: int) -> str:
    return f"block {block}" + (f", attempt {attempt + 1}" if attempt else "")
