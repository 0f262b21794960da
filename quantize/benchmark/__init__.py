"""Latency under load: two arms of one engine in interleaved blocks, and what follows from them."""

from __future__ import annotations

from quantize.benchmark.blockfile import BLOCKS_FILE, CURVE_FILE, FINGERPRINT_FILE, REQUESTS_FILE, ROWS_FILE
from quantize.benchmark.blocks import measure, orders
from quantize.benchmark.keeping import CURVE_ROWS_FILE, LOADS_FILE
from quantize.benchmark.outcome import knee_of, summary
from quantize.benchmark.pair_job import PairJob, Target, Watching, needed, write
from quantize.benchmark.reading import Benchmarked, Knee, knee, read

__all__ = [
    "FILES",
    "Benchmarked",
    "Knee",
    "PairJob",
    "Target",
    "Watching",
    "knee",
    "knee_of",
    "measure",
    "needed",
    "orders",
    "read",
    "summary",
    "write",
]

#: What a benchmark's artifact consists of.
FILES = (REQUESTS_FILE, ROWS_FILE, BLOCKS_FILE, CURVE_FILE, CURVE_ROWS_FILE, LOADS_FILE, FINGERPRINT_FILE)
