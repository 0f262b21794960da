"""How often the gates under load err: variants slower, or failing more often, by exactly what a gate allows.

    python tests/bench/latency_error_rates.py [--scale 1.0]

prints a Markdown table in the form of `error_rates.py`. Every pass is false here, and every fail too (the limit is the
edge of both nulls). Seeded: the same versions of numpy and scipy give the same table.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import numpy as np
from error_rates import row, simulated
from scipy import special

from quantize.stats import blocks_needed, difference_limits, equivalent, ratio_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

ALPHA = 0.05
MARGIN = 0.05
SPREAD = 0.03


def exponential(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return random.exponential(size=size)


def outlying(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return random.normal(size=size) + np.where(random.random(size) < 0.05, 6.0, 0.0) - 0.3


#: What a block's log ratio scatters by: mean 0, in units of `SPREAD`.
NOISE: list[tuple[str, Noise]] = [
    ("normal", lambda random, size: random.normal(size=size)),
    ("heavy-tailed (t with 3 degrees of freedom)", lambda random, size: random.standard_t(3, size)),
    ("both arms skewed (exponential)", lambda random, size: exponential(random, size) - exponential(random, size)),
    ("the variant alone skewed (exponential)", lambda random, size: exponential(random, size) - 1),
    ("the variant alone slower by six times the spread in 1 block of 20", outlying),
]  # fmt: skip


def limits(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both limits of `ratio_interval`, of every row."""
    found = [ratio_interval(own, ALPHA) for own in logs]
    return np.array([f.lower for f in found]), np.array([f.upper for f in found])


def ratios(scale: float) -> None:
    runs = int(20_000 * scale)
    for what, noise in NOISE:
        for blocks in (6, 8, 10):
            logs = math.log1p(MARGIN) + SPREAD * noise(np.random.default_rng(blocks), (runs, blocks))
            lower, upper = limits(logs)
            said = f"{blocks} blocks, noise {what}, ratio at the limit"
            simulated("latency: false pass", said, "5.0%", int((upper <= 1 + MARGIN).sum()), runs)
            simulated("latency: false fail", said, "5.0%", int((lower > 1 + MARGIN).sum()), runs)


def own_noise(scale: float) -> None:
    runs = int(20_000 * scale)
    for blocks in (6, 10):
        for side in (1, -1):
            logs = side * math.log1p(MARGIN) + SPREAD * np.random.default_rng(blocks).normal(size=(runs, blocks))
            hits = sum(equivalent(own, MARGIN, ALPHA) for own in logs)
            edge = 1 + MARGIN if side > 0 else 1 / (1 + MARGIN)
            said = f"{blocks} blocks, normal noise, the baseline's ratio to itself {edge:.3f}"
            simulated("A/A: false 'quiet enough'", said, "≤ 5.0%", hits, runs)


def power(scale: float) -> None:
    runs = int(20_000 * scale)
    for spread in (0.02, 0.05, 0.10):
        blocks = blocks_needed(spread, MARGIN, ALPHA)
        assert blocks is not None
        logs = spread * np.random.default_rng(1).normal(size=(runs, blocks))
        passed = int((limits(logs)[1] <= 1 + MARGIN).sum())
        simulated("latency: power", f"planned {blocks} blocks, s = {spread:g}, true ratio 1", "≥ 90%", passed, runs)


#: The baseline's share of failures, requests in a block, and the correlation of two requests of one block.
SITUATIONS = ((0.0, 64, 0.0), (0.001, 64, 0.0), (0.01, 64, 0.0), (0.01, 640, 0.0), (0.01, 640, 0.02), (0.01, 640, 0.2))


def failures(scale: float) -> None:
    runs, margin = int(4_000 * scale), 0.005
    for share, requests, crowded in SITUATIONS:
        random = np.random.default_rng(2)
        baseline = counts(random, share, requests, crowded, (runs, 10))
        variant = counts(random, share + margin, requests, crowded, (runs, 10))
        hits = naive = 0
        for own, other in zip(variant, baseline, strict=True):
            differences = (own - other) / requests
            both = (int(other.sum()), int(own.sum()))
            hits += difference_limits(differences, ALPHA, both, 10 * requests).upper <= margin
            reach = float(special.stdtrit(9, 1 - ALPHA)) * float(differences.std(ddof=1)) / math.sqrt(10)
            naive += float(differences.mean()) + reach <= margin
        how = f", correlation in a block {crowded:g}" if crowded else ""
        said = f"10 blocks of {requests}, baseline fails {share:.1%}, variant {margin:.1%} more{how}"
        simulated("failures: false pass", said, "≤ 5.0%", hits, runs)
        simulated("t over blocks alone (not used)", said, "5.0%", naive, runs)


def counts(
    random: np.random.Generator, share: float, requests: int, crowded: float, size: tuple[int, int]
) -> np.ndarray:
    """Failures of every block; `crowded` is the correlation of two requests of one block."""
    if not crowded or not share:
        return random.binomial(requests, share, size)
    strength = (1 - crowded) / crowded
    return random.binomial(requests, random.beta(share * strength, (1 - share) * strength, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of repetitions")
    scale = parser.parse_args().scale
    row("rule", "situation", "nominal", "measured")
    row("---", "---", "---", "---")
    ratios(scale)
    own_noise(scale)
    power(scale)
    failures(scale)


if __name__ == "__main__":
    main()
