"""What other stages are told of a benchmark's artifact: the baseline's knee, and a summary for the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantize.benchmark.keeping import LOADS_FILE, LoadRecord
from quantize.benchmark.reading import BASELINE, knee, read

__all__ = ["knee_of", "summary"]


def knee_of(directory: Path) -> float:
    """The baseline's knee (requests/s) by the curve of its own benchmark. Raises DataError where it has none."""
    return knee([point for point in read(directory).curve if point.arm == BASELINE]).rate


def summary(directory: Path) -> dict[str, Any]:
    """Blocks run and valid, requests sent and failed, the rates of open loads, ratios of the medians by load."""
    found = read(directory)
    loads = LoadRecord.model_validate_json((directory / LOADS_FILE).read_bytes())
    counted = [row for row in found.rows if not row["warmup"]]
    ratios = {
        comparison.metric: round(comparison.difference, 4)
        for comparison in found.comparisons()
        if comparison.unit == "ratio" and "_p50/" in comparison.metric
    }
    return {
        "blocks": len(found.blocks),
        "valid": len(found.valid),
        "requests": len(counted),
        "failed": sum(row["error.type"] is not None for row in counted),
        "knee": loads.knee,
        "rates": loads.rates,
        "ratios": ratios,
    }
