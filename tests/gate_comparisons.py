"""Comparisons under load, as a benchmark gives them to gates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quantize.evidence import Comparison, Evidence, Measurement

TPOT = "load.tpot_p50/single"
FAILURES = "load.failures/traffic"


def scattered(ratio: float, spread: float = 0.01, blocks: int = 10) -> list[float]:
    """Logs whose mean is exactly that of `ratio`, and whose standard deviation is exactly `spread`."""
    values = np.random.default_rng(5).normal(size=blocks)
    values = (values - values.mean()) / values.std(ddof=1)
    return [float(value) for value in math.log(ratio) + spread * values]


def compared(
    logs: list[float], metric: str = TPOT, *, direction: str = "lower", baseline: float = 0.02, **extra: Any
) -> Comparison:
    """A comparison as a benchmark gives it."""
    ratio = math.exp(sum(logs) / len(logs)) if logs else 1.0
    return Comparison(
        metric=metric, unit="ratio", baseline=baseline, variant=ratio * baseline, difference=ratio,
        low=None, high=None, level=None, n=len(logs), method="t over blocks",
        extra={"logs": logs, "direction": direction, "blocks": len(logs), "invalid": 0} | extra,
    )  # fmt: skip


def failed(baseline: list[int], variant: list[int], requests: int = 64, metric: str = FAILURES) -> Comparison:
    """A comparison of the requests that failed in every block."""
    differences = [(v - b) / requests for b, v in zip(baseline, variant, strict=True)]
    sent = requests * len(baseline)
    return Comparison(
        metric=metric, unit="share", baseline=sum(baseline) / sent, variant=sum(variant) / sent,
        difference=float(np.mean(differences)), low=None, high=None, level=None, n=len(baseline),
        method="t over blocks",
        extra={
            "differences": differences, "requests": sent,
            "failed": {"baseline": sum(baseline), "variant": sum(variant)},
            "direction": "lower", "blocks": len(baseline), "invalid": 0,
        },
    )  # fmt: skip


def evidence(
    *comparisons: Comparison, noise: list[Comparison] | None = None, own: Measurement | None = None
) -> Evidence:
    return Evidence(
        variant="int4", artifact_digest="a" * 64, baseline_digest="b" * 64,
        measurements=[own] if own else [], baseline_measurements=[],
        comparisons=list(comparisons), hard_stops=[], noise=noise or [],
    )  # fmt: skip
