"""Rows of requests as a sender would write them, queues simulated, and whole artifacts of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quantize.benchmark.blockfile import (
    BLOCKS_FILE,
    CURVE_FILE,
    FINGERPRINT_FILE,
    REQUESTS_FILE,
    ROWS_FILE,
    BlockRecord,
    CurvePoint,
    write_records,
)
from quantize.benchmark.rows import REQUEST_ROWS

Row = dict[str, Any]


def row(place: int = 0, scheduled: float = 0.0, ttft: float = 0.1, gap: float = 0.01, count: int = 5, **more) -> Row:
    """A request that was answered as soon as it was sent: its tokens `gap` apart, its end with the last."""
    times = [scheduled + ttft + gap * i for i in range(count)]
    return {
        "block": 1,
        "attempt": 0,
        "arm": "baseline",
        "load": "single",
        "place": place,
        "warmup": False,
        "request": f"r{place:05}",
        "scheduled": scheduled,
        "dispatched": scheduled,
        "tokens": times,
        "end": times[-1],
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": count,
        "error.type": None,
        **more,
    }


def failed(place: int, scheduled: float, end: float | None, error: str = "timeout", **more) -> Row:
    """A request without an answer."""
    lost = {"tokens": [], "end": end, "gen_ai.usage.output_tokens": None, "error.type": error}
    return row(place, scheduled, **(lost | more))


def queue(rng: random.Random, n: int, utilisation: float, servers: int = 1, service: float = 1.0) -> list[Row]:
    """Poisson arrivals at `servers` that each take `service` seconds: an M/D/c queue from empty."""
    free = [0.0] * servers
    now, rows = 0.0, []
    for place in range(n):
        now += rng.expovariate(utilisation * servers / service)
        start = max(min(free), now)
        free[free.index(min(free))] = start + service
        rows.append(row(place, now, ttft=start - now + service / 2, gap=service / 8))
    return rows


def loop(tpots: Iterable[float], streams: int = 1, **more) -> list[Row]:
    """A closed loop: each stream sends its next request when its last one is answered."""
    free = [0.0] * streams
    rows = []
    for place, tpot in enumerate(tpots):
        stream = free.index(min(free))
        rows.append(row(place, free[stream], ttft=tpot, gap=tpot, **more))
        free[stream] = rows[-1]["end"]
    return rows


def record(block: int, attempt: int = 0, arms: tuple[str, ...] = ("baseline", "variant"), **more) -> BlockRecord:
    """A valid block in which both arms took 1,000 bytes."""
    return BlockRecord(
        **{
            "block": block,
            "attempt": attempt,
            "order": list(arms),
            "valid": True,
            "reasons": [],
            "starts": dict.fromkeys(arms, 1.0),
            "memory": {arm: {"peak": 1000, "kv": 400, "kv_tokens": 100} for arm in arms},
            "facts": {arm: {} for arm in arms},
            "machine": {arm: {} for arm in arms},
            **more,
        }
    )


def point(streams: int, rate: float, arm: str = "baseline") -> CurvePoint:
    """A point of a curve."""
    return CurvePoint(
        arm=arm,
        streams=streams,
        requests=16,
        requests_per_second=rate,
        output_tokens_per_second=rate * 5,
        ttft_p50=0.1,
        ttft_p95=None,
        tpot_p50=0.01,
        e2e_p50=0.2,
        failures=0,
    )


def write_artifact(
    out: Path, rows: list[Row], blocks: list[BlockRecord], columns: dict[str, Any] | None = None
) -> Path:
    """The files of a benchmark in the folder `out`; `columns` are put in (None: taken out) of the rows' file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        name: pa.list_(pa.float64()) if kind == "list<double>" else pa.type_for_alias(kind)
        for name, kind in REQUEST_ROWS.items()
    }
    kinds = {name: kind for name, kind in (kinds | (columns or {})).items() if kind is not None}
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), out / ROWS_FILE)
    write_records(blocks, out / BLOCKS_FILE)
    write_records([point(1, 1.0), point(2, 1.5), point(1, 2.0, "variant")], out / CURVE_FILE)
    (out / FINGERPRINT_FILE).write_text(json.dumps({"cpu": "a"}))
    request = {"id": "r00000", "prompt": "a b", "input_tokens": 20, "output_tokens": 5}
    (out / REQUESTS_FILE).write_text(json.dumps(request) + "\n")
    return out


def pair_rows(blocks: int, tpot: Callable[[str, int], float], requests: int = 16, **more) -> list[Row]:
    """Both arms at the load `single`, one after another, in every block; each block has one TPOT, by arm and block."""
    return [
        each
        for block in range(1, blocks + 1)
        for arm in ("baseline", "variant")
        for each in loop([tpot(arm, block)] * requests, block=block, arm=arm, **more)
    ]
